"""Cache of code hashes and manifests: valid only while sources and images are unchanged."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib import metadata

import pytest
from PIL import Image
from torchvision import datasets

from pipeline.common.errors import UserError
from pipeline.common.paths import data_folder, runs_folder
from pipeline.data import sources
from pipeline.declare.derived import EnsembleSpec
from pipeline.plan.expand import DerivedRun
from pipeline.schedule import task_cache
from pipeline.schedule.task_cache import DOWNLOADS, TaskCache, cache_file, manifest_key
from pipeline.schedule.tasks import check_key, finished_tasks, make_tasks, planned_tasks
from pipeline.track.run_folder import RunFolder
from tests.support.smoke_runs import smoke_run

RUNS = [smoke_run(seed=seed) for seed in range(2)]
DERIVED = DerivedRun(
    "resnet/cifar10_depth", "smoke", "it", 0, EnsembleSpec(kind="ensemble", members={"resnet-20": 2}), tuple(RUNS)
)


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / "home"))
    for name in ("REPRO_DATA", "REPRO_SHARDS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(task_cache, "edited_since_start", lambda _: False)  # a checkout may be seconds old
    runs_folder().mkdir(parents=True)


@pytest.fixture
def finished(record, experiment):
    """Function that makes tasks, marks all of them as finished, and writes the cache; returns the tasks."""

    def finish(runs):
        cache = TaskCache()
        tasks = make_tasks(runs, cache)
        for task in tasks:
            folder = RunFolder(task.folder)
            folder.create(task.description())
            folder.finish(record(experiment, "plain-20", 0, 9.5, identity=task.identity))
        cache.write()
        return tasks

    return finish


def test_finished_tasks_are_those_that_make_tasks_returns(finished):
    runs = [*RUNS, DERIVED]
    assert finished_tasks(runs, TaskCache()) is None
    tasks = finished(runs)
    assert finished_tasks(runs, TaskCache()) == tasks


def test_finished_tasks_are_found_without_reading_images(finished, monkeypatch):
    finished(RUNS)
    monkeypatch.setattr(sources, "load_images", lambda *_, **__: pytest.fail("read images"))
    assert finished_tasks(RUNS, TaskCache()) is not None


def test_one_unfinished_run_means_none(finished):
    *_, last = finished(RUNS)
    (last.folder / "result.json").unlink()
    assert finished_tasks(RUNS, TaskCache()) is None
    assert finished_tasks(RUNS[:1], TaskCache()) is not None


def test_a_network_that_is_not_in_the_cache_means_none(finished):
    finished(RUNS)
    assert finished_tasks([smoke_run("plain-20", changes={"model.name": "resnet_cifar"})], TaskCache()) is None


def test_a_plan_is_made_from_the_cache_without_reading_images_or_building_networks(monkeypatch):
    runs = [*RUNS, DERIVED]
    tasks = planned_tasks(runs, TaskCache())
    assert tasks == make_tasks(runs)
    monkeypatch.setattr(sources, "load_images", lambda *_, **__: pytest.fail("read images"))
    monkeypatch.setattr("pipeline.schedule.tasks.check_run", lambda *_: pytest.fail("built a network"))
    assert planned_tasks(runs, TaskCache()) == tasks


def test_a_network_that_was_not_checked_is_checked_before_a_plan_is_shown(monkeypatch):
    planned_tasks(RUNS, TaskCache())
    other = smoke_run("plain-20", changes={"model.depth": 26})
    found = []
    monkeypatch.setattr("pipeline.schedule.tasks.check_run", lambda run, _: found.append(run.recipe.model.args))
    planned_tasks([*RUNS, other], TaskCache())
    assert {"depth": 26} in found
    found.clear()
    planned_tasks([*RUNS, other], TaskCache())
    assert found == []


def test_a_network_that_does_not_fit_is_an_error_of_every_plan():
    """A failed check is not cached."""
    run = smoke_run("plain-20", changes={"model.depth": 21})
    for _ in range(2):
        with pytest.raises(UserError, match="the nearest valid depths are 20 and 26"):
            planned_tasks([run], TaskCache())


def test_checks_are_those_of_recipe_and_data():
    run = smoke_run("plain-20")
    assert check_key(run, "data") == check_key(replace(run, seed=7), "data")  # the seed changes no shape
    assert check_key(run, "data") != check_key(run, "other data")
    assert check_key(run, "data") != check_key(smoke_run("plain-20", changes={"model.depth": 26}), "data")


def test_finding_finished_tasks_does_not_import_torch():
    code = "import sys, pipeline.schedule.tasks, pipeline.schedule.reproduce; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# --- images ------------------------------------------------------------------------------------------------


def write_class_folders(name):
    """Two classes of two images in each split."""
    for split in ("train", "test"):
        for label in ("dark", "light"):
            folder = data_folder() / name / split / label
            folder.mkdir(parents=True)
            for number in range(2):
                Image.new("L", (8, 8), 10 * number).save(folder / f"{number}.png")


def test_a_replaced_image_of_the_same_size_and_time_changes_the_key():
    write_class_folders("mine")
    before = manifest_key("mine", is_sharded=False)
    assert manifest_key("mine", is_sharded=False) == before
    path = data_folder() / "mine" / "train" / "dark" / "0.png"
    about = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert manifest_key("mine", is_sharded=False) != before


def test_a_changed_image_means_none(finished):
    write_class_folders("mine")
    runs = [smoke_run(changes={"data.name": "mine"})]
    finished(runs)
    assert finished_tasks(runs, TaskCache()) is not None
    Image.new("L", (8, 8), 77).save(data_folder() / "mine" / "test" / "light" / "0.png")
    assert finished_tasks(runs, TaskCache()) is None


def test_a_file_that_appears_changes_the_key():
    (data_folder() / DOWNLOADS["mnist"]).mkdir(parents=True)
    (data_folder() / DOWNLOADS["mnist"] / "a").write_text("1")
    before = manifest_key("mnist", is_sharded=False)
    assert before is not None
    (data_folder() / "mnist").mkdir()
    (data_folder() / "mnist" / "manifest.json").write_text("{}")
    assert manifest_key("mnist", is_sharded=False) not in (before, None)


def test_a_set_without_files_has_no_key_unless_it_is_built_in():
    assert manifest_key("mnist", is_sharded=False) is None
    assert manifest_key("nothing", is_sharded=False) is None
    assert manifest_key("../x", is_sharded=False) is None
    assert manifest_key("digits", is_sharded=False) is not None
    assert manifest_key("noise", is_sharded=False) is not None


@pytest.mark.parametrize("shards", ["s3://bucket/sets", "http://127.0.0.1:9/sets", "~/sets"])
def test_shards_that_are_not_in_a_local_folder_have_no_key(monkeypatch, shards):
    monkeypatch.setenv("REPRO_SHARDS", shards)
    write_class_folders("mine")
    assert manifest_key("mine", is_sharded=True) is None
    assert manifest_key("digits", is_sharded=False) is not None  # never searched there


def test_downloads_are_where_torchvision_puts_them(tmp_path):
    for name, folder in DOWNLOADS.items():
        if name in sources.SVHN_PARTS:
            assert folder == sources.SVHN_FOLDER
            continue
        class_name, _ = sources.TORCHVISION_SETS[name]
        dataset = getattr(datasets, class_name)
        assert folder == getattr(dataset, "base_folder", f"{class_name}/raw")


# --- the file ----------------------------------------------------------------------------------------------


def test_a_changed_source_file_empties_the_cache(tmp_path, monkeypatch):
    source = tmp_path / "pipeline" / "train" / "train.py"
    source.parent.mkdir(parents=True)
    monkeypatch.setattr(task_cache, "ROOT", tmp_path)
    source.write_text("A = 1\n")
    os.utime(source, (0, 0))  # not edited after this process started
    cache = TaskCache()
    cache.add_code("resnet_cifar", "abc")
    cache.write()
    assert TaskCache().codes == {"resnet_cifar": "abc"}
    source.write_text("A = 2\n")
    assert TaskCache().codes == {}


def test_another_library_version_empties_the_cache(monkeypatch):
    cache = TaskCache()
    cache.add_code("resnet_cifar", "abc")
    cache.write()
    monkeypatch.setattr(metadata, "version", lambda name: "0.0")
    assert TaskCache().codes == {}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sources": 1}'])
def test_a_damaged_file_counts_as_empty(content):
    cache_file().write_text(content)
    assert (TaskCache().codes, TaskCache().manifests) == ({}, {})


def test_a_file_with_damaged_entries_counts_as_empty():
    cache_file().write_text(json.dumps({"sources": TaskCache().sources, "codes": {"a": "b"}, "manifests": [1]}))
    assert (TaskCache().codes, TaskCache().manifests) == ({}, {})


def test_nothing_is_written_without_additions_or_without_a_folder():
    cache = TaskCache()
    cache.write()
    assert not cache_file().exists()
    cache.add_code("a", "b")
    runs_folder().rmdir()
    cache.write()
    assert not runs_folder().exists()


def test_values_are_not_stored_under_the_hash_of_sources_edited_meanwhile(monkeypatch):
    monkeypatch.setattr(task_cache, "source_digest", lambda *_: "before")
    cache = TaskCache()
    monkeypatch.setattr(task_cache, "source_digest", lambda *_: "after")
    cache.add_code("resnet-20", "of the sources before")
    cache.write()
    assert TaskCache().codes == {}


def test_a_process_older_than_an_edit_writes_nothing(monkeypatch):
    monkeypatch.setattr(task_cache, "edited_since_start", lambda files: bool(list(files)))
    cache = TaskCache()
    cache.add_code("resnet-20", "old")
    cache.write()
    assert not cache_file().exists()
