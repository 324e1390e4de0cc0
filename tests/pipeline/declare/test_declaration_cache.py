"""Test the cache of declarations: what it returns is what the files say, and every change of them empties it."""

import json
import shutil

import pytest

from pipeline.common.paths import runs_folder
from pipeline.declare import declaration_cache, load
from pipeline.declare.declaration_cache import CachedDeclaration, DeclarationCache, declarations_file
from pipeline.declare.experiment import DeclarationError
from pipeline.declare.load import EXPERIMENTS, DeclarationReader, load_all, load_experiment
from tests.support.elsewhere import ONLY_DERIVED


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with a few experiments that `load_all` reads, in a home that has runs."""
    copy = tmp_path / "experiments"
    for name in ("lenet5/mnist", "resnet/cifar10_depth"):
        (copy / name).parent.mkdir(parents=True)
        shutil.copy(EXPERIMENTS / f"{name}.yaml", copy / f"{name}.yaml")
    (copy / "toy").mkdir()
    pair = ONLY_DERIVED.replace("toy/depth", "resnet/cifar10_depth")  # an ensemble of runs of another experiment
    (copy / "toy" / "pair.yaml").write_text(pair, encoding="utf-8")
    monkeypatch.setenv("REPRO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(load, "EXPERIMENTS", copy)
    monkeypatch.setattr(declaration_cache, "edited_since_start", lambda _: False)
    runs_folder().mkdir(parents=True)
    return copy


def test_cached_experiments_equal_those_that_are_read(folder, monkeypatch):
    """Also in which keys were given, as a scale's settings are merged over these alone."""
    first = load_all()
    monkeypatch.setattr(load, "read_experiment", lambda *_: pytest.fail("parsed a file"))
    monkeypatch.setattr(load, "check_experiment", lambda _: pytest.fail("checked an experiment"))
    again = load_all()
    assert again == first
    for one, other in zip(first, again, strict=True):
        assert one.model_dump(exclude_unset=True) == other.model_dump(exclude_unset=True)
        assert {name: dict(each.others) for name, each in one.others.items()} == {
            name: dict(each.others) for name, each in other.others.items()
        }
    pair = load_experiment("toy/pair", folder)
    assert [*pair.others] == ["resnet/cifar10_depth"]
    assert pair.seeds_of("resnet/cifar10_depth/plain-20", "smoke") == (0, 1, 2)


def test_every_experiment_of_the_project_is_the_same_from_the_cache(tmp_path, monkeypatch):
    reader = DeclarationReader(EXPERIMENTS)
    for name in reader.names:
        experiment = reader.read(name)
        stored = json.loads(json.dumps(CachedDeclaration.of(experiment, (), ()).declaration))
        again = CachedDeclaration(stored, (), ()).experiment()
        assert again == experiment
        assert again.model_dump(exclude_unset=True) == experiment.model_dump(exclude_unset=True)


def test_recipes_and_identities_are_the_same_from_the_cache(folder):
    first = {one.name: one for one in load_all()}
    for one in load_all():
        for scale in one.scales if one.trains else ():
            for variant in one.variants_at(scale):
                assert one.recipe(variant, scale) == first[one.name].recipe(variant, scale)


def test_a_changed_file_is_read_again(folder):
    load_all()
    file = folder / "lenet5" / "mnist.yaml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("Does LeNet-5, trained", "Does LeNet-5, taught"), encoding="utf-8")
    assert load_experiment("lenet5/mnist", folder).question.startswith("Does LeNet-5, taught")
    file.write_text(text.replace("question:", "quesion:"), encoding="utf-8")
    with pytest.raises(DeclarationError, match="quesion: unknown key; did you mean 'question'"):
        load_experiment("lenet5/mnist", folder)


def test_a_new_and_a_removed_file_empty_the_cache(folder):
    load_all()
    (folder / "lenet5" / "more.yaml").write_text(
        (folder / "lenet5" / "mnist.yaml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    assert "lenet5/more" in [one.name for one in load_all()]
    (folder / "lenet5" / "more.yaml").unlink()
    assert "lenet5/more" not in [one.name for one in load_all()]


def test_changed_code_empties_the_cache(folder, monkeypatch):
    load_all()
    names = [f"{name}.yaml" for name in load.experiment_names(folder)]
    assert not DeclarationCache(folder, names).is_outdated
    monkeypatch.setattr(declaration_cache, "loading_code", lambda: "other code")
    assert DeclarationCache(folder, names).is_outdated


def test_code_that_was_edited_after_the_start_writes_nothing(folder, monkeypatch):
    monkeypatch.setattr(declaration_cache, "edited_since_start", lambda _: True)
    load_all()
    assert not declarations_file().exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1}', '{"key": "KEY", "experiments": {"a/b": {}}}'])
def test_a_damaged_file_counts_as_empty(folder, content):
    names = [f"{name}.yaml" for name in load.experiment_names(folder)]
    key = DeclarationCache(folder, names).key
    declarations_file().write_text(content.replace("KEY", key), encoding="utf-8")
    assert DeclarationCache(folder, names).declarations == {}


def test_nothing_is_written_where_there_are_no_runs(folder):
    runs_folder().rmdir()
    load_all()
    assert not runs_folder().exists()


def test_a_file_elsewhere_with_the_name_of_a_known_one_is_read_itself(folder, tmp_path):
    load_all()
    file = tmp_path / "mine" / "lenet5" / "mnist.yaml"
    file.parent.mkdir(parents=True)
    text = (folder / "lenet5" / "mnist.yaml").read_text(encoding="utf-8")
    file.write_text(text.replace("Does LeNet-5, trained", "Does mine, trained"), encoding="utf-8")
    assert load_experiment(str(file), folder).question.startswith("Does mine, trained")
