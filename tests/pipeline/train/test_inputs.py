"""Runs that learn from photographs in shards: counted, resumed to the bit; data and recipe that do not fit."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.common.errors import UserError
from pipeline.data import manifest, sources, statistics
from pipeline.data.batches import BatchBuilder
from pipeline.data.colour import CropBatchBuilder
from pipeline.data.crops import CropSpec
from pipeline.data.images import DataError
from pipeline.data.normalise import fit_normaliser
from pipeline.data.order import batch_indices
from pipeline.data.shard_manifest import with_checksum
from pipeline.data.sharded_feed import ShardedFeed
from pipeline.declare.load import load_experiment
from pipeline.declare.recipe import Crop, Data
from pipeline.derive.published_weights import labelled_samples
from pipeline.plan.expand import plan_runs
from pipeline.track.run_folder import RunFolder
from pipeline.train.inputs import ReadOptions, input_shape, require_counts
from pipeline.train.load import load_training_data
from pipeline.train.ranks import current_ranks
from pipeline.train.sharded import crop_spec
from pipeline.train.train import train
from tests.support.making import prepared
from tests.support.rank_processes import Ranks
from tests.support.smoke_runs import stop_after, task_at, weights

TOY = """
paper: {title: Toy, authors: Nobody, year: 2026, section: "1"}
question: Does it learn from photographs?
data:
  name: photographs
  val: 5
  normalise: raw-mean-image
  augment: [flip, pca-colour, photometric]
  crop: {side: 32, short: [36, 44]}
  test: [1-crop-32-of-36, 10-crop-32-of-square-36, dense-of-32-40]
train:
  steps: 9
  batch_size: 4
  lr: 0.01
  log_every: 3
  eval_every: 4
  optimizer: {name: sgd, momentum: 0.9}
variants:
  resnet-18: {model: {name: resnet_imagenet, depth: 18}}

seeds: [0]
scales: {paper: {}}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data folder with a prepared set: 3 classes, 21 training pictures, 12 test pictures."""
    folder = tmp_path_factory.mktemp("data")
    shards = prepared(folder / "work")
    assert (shards.name, len(shards.train), len(shards.test)) == ("photographs", 21, 12)
    (folder / "work" / "shards").rename(folder / "photographs")
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    file = tmp_path_factory.mktemp("toy") / "photographs.yaml"
    file.write_text(TOY, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def run(toy):
    return plan_runs(load_experiment(str(toy)), scale="paper", variants=["resnet-18"])[0]


def train_in(path: Path, run, root: Path, *, data_root: Path | None = None, **options):
    images = sources.load_images(run.recipe.data.name, root, sharded=True)
    return train(task_at(path, run, images, data_root=data_root or root), images, **options)


@pytest.fixture(scope="module")
def whole(run, root, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    return train_in(path, run, root), path


def test_every_protocol_has_its_own_metric_and_counts_every_picture(whole, run, toy):
    record, _ = whole
    assert record.status == "finished"
    for protocol in run.recipe.data.test:
        assert record.metrics[f"test/{protocol}/images"] == 12
        assert record.metrics[f"val/{protocol}/images"] == 5
        assert 0 <= record.metrics[f"test/{protocol}/top5_error_pct"] <= 100
    assert set(load_experiment(str(toy)).measured("resnet-18", named=False)) == set(record.metrics)
    first = run.recipe.data.test[0]
    for name in ("top1_error_pct", "top5_error_pct", "loss", "images"):
        assert record.metrics[f"test/{name}"] == record.metrics[f"test/{first}/{name}"]


def test_it_is_judged_while_it_trains_by_the_first_protocol(whole):
    entries = {entry["step"]: entry["metrics"] for entry, _ in RunFolder(whole[1]).journal()}
    assert [step for step, metrics in entries.items() if "test/images" in metrics] == [4, 8]
    assert entries[4]["test/images"] == 12


@pytest.mark.parametrize("after", [1, 5])
def test_a_run_stopped_within_an_epoch_ends_with_the_same_bits(whole, run, root, tmp_path, after):
    assert train_in(tmp_path, run, root, stop=stop_after(after)) is None
    record = train_in(tmp_path, run, root)
    assert weights(tmp_path) == weights(whole[1])
    assert record.metrics == whole[0].metrics


def test_reader_threads_change_no_bit(whole, run, root, tmp_path):
    assert train_in(tmp_path, run, root, readers=3).metrics == whole[0].metrics
    assert weights(tmp_path) == weights(whole[1])


@pytest.mark.parametrize("moment", [2, 7, 12, 16, 18])
def test_a_run_stopped_while_it_reads_or_judges_goes_on_there(whole, run, root, tmp_path, monkeypatch, moment):
    """Asked to stop at any moment, statistics and all evaluations included; asked at each again, it still ends."""
    asked = 0

    def stop():
        nonlocal asked
        asked += 1
        return asked >= moment

    monkeypatch.setattr(statistics, "SUM_CHUNK", 8)
    told = []
    assert train_in(tmp_path / "run", run, root, data_root=tmp_path, stop=stop, report=told.append) is None
    record = train_in(tmp_path / "run", run, root, data_root=tmp_path, report=told.append)
    assert weights(tmp_path / "run") == weights(whole[1])
    assert record.metrics == whole[0].metrics
    steps = [entry["step"] for entry, _ in RunFolder(tmp_path / "run").journal()]
    assert steps == [3, 4, 6, 8, 9]
    judged = [words for words in told if words.startswith("evaluating")]
    assert len(judged) <= 2 * len(run.recipe.data.test) + 1  # the one that was stopped, and no other, twice


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    two = Ranks(tmp_path_factory.mktemp("pair"), 2)
    yield two
    two.close()


def trained_on_ranks(path, run, root, cache, moment=None):
    """Train on both ranks; the second alone is asked to stop, from the `moment`-th time on that it looks."""
    asked, told = itertools.count(1), []
    statistics.SUM_CHUNK = 8

    def stop():
        return moment is not None and current_ranks().rank == 1 and next(asked) >= moment

    return train_in(path, run, root, data_root=cache, stop=stop, report=told.append), told


@pytest.fixture(scope="module")
def whole_of_ranks(pair, run, root, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole_of_ranks")
    return pair.run(trained_on_ranks, path, run, root, root), path


def test_ranks_together_count_every_picture_once_and_the_first_speaks(whole_of_ranks, run):
    [(record, told), (other, silent)], _ = whole_of_ranks
    assert record == other
    assert (record.world, record.metrics["test/images"], record.metrics["val/images"]) == (2, 12, 5)
    assert [words for words in told if words.startswith("evaluating")] == [
        f"evaluating {count} {part} images by {protocol}"
        for protocol in run.recipe.data.test
        for part, count in (("test", 12), ("val", 5))
    ]
    assert silent == []


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "moments", [(1, 15), *(pytest.param((moment,), marks=SLOW) for moment in (3, 7, 8, 11, 14, 19, 23))], ids=str
)
def test_ranks_of_which_one_is_stopped_go_on_to_the_same_bits(pair, whole_of_ranks, run, root, tmp_path, moments):
    """Asked in statistics, which the first alone makes, in training, and in evaluations."""
    words = tmp_path / "run", run, root, tmp_path / "cache"
    for moment in moments:
        assert [ended for ended, _ in pair.run(trained_on_ranks, *words, moment)] == [None, None]
    [(record, _), (other, _)] = pair.run(trained_on_ranks, *words)
    [(whole, _), _], path = whole_of_ranks
    assert record == other
    assert record.metrics == whole.metrics
    assert weights(tmp_path / "run") == weights(path)
    assert [entry["step"] for entry, _ in RunFolder(tmp_path / "run").journal()] == [3, 4, 6, 8, 9]


def test_errors_kept_are_those_of_the_same_model(tmp_path):
    folder = RunFolder(tmp_path)
    folder.evaluation_cache("a").add("test/x", {"test/loss": 1.0})
    folder.evaluation_cache("a").add("test/y", {"test/loss": 2.0})
    assert set(folder.evaluation_cache("a").read()) == {"test/x", "test/y"}
    assert folder.evaluation_cache("b").read() == {}
    (tmp_path / "checkpoints" / "judged.json").write_text("{")
    assert folder.evaluation_cache("a").read() == {}


def test_statistics_are_of_the_pictures_trained_on_and_kept(whole, run, root, monkeypatch):
    images = sources.load_images(run.recipe.data.name, root, sharded=True)
    crop = run.recipe.data.crop
    assert len(list((root).rglob("*.safetensors"))) == 1
    part, _ = manifest.sample_split(images.train, train_count=None, val_count=5)
    fresh = statistics.pixel_statistics(part, crop, threads=0, cache=None, key="")
    assert fresh.count == 16

    def nothing(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(type(images.train), "read", nothing)
    key = f"{images.manifest.sha256} None 5"
    again = statistics.pixel_statistics(part, crop, threads=0, cache=root / ".cache", key=key)
    assert again.total.equal(fresh.total)


def test_the_manifest_of_shards_is_the_runs_manifest(run, root):
    images = sources.load_images(run.recipe.data.name, root, sharded=True)
    found = manifest.manifest_of(images)
    assert (found.train, found.test, found.image) == (21, 12, (3, 0, 0))
    assert found.per_class == {"train": [7, 7, 7], "test": [4, 4, 4]}
    assert found.sha256 == images.manifest.sha256
    assert manifest.manifest_from_dict(manifest.manifest_to_dict(found)) == found


def test_a_part_held_out_is_never_trained_on(root, run):
    images = sources.load_images(run.recipe.data.name, root, sharded=True)
    training_part, validation = manifest.sample_split(images.train, train_count=10, val_count=5)
    seen = {training_part.where(i) for i in range(10)} & {validation.where(i) for i in range(5)}
    assert not seen
    assert (len(training_part), len(validation)) == (10, 5)
    everything, nothing = manifest.sample_split(images.train, train_count=None, val_count=0)
    assert everything is images.train
    assert len(nothing) == 0


# --- what a run is fed, and judged by while it trains ----------------------------------------------------------


def test_photographs_are_fed_as_declared(root, run):
    images, data = sources.load_images(run.recipe.data.name, root, sharded=True), run.recipe.data
    made = load_training_data(images, data, torch.device("cpu"), sha256="x", options=ReadOptions())
    batch = next(iter(made.feed(run.recipe.train, 3, 2, 1)))
    part, _ = manifest.sample_split(images.train, train_count=None, val_count=5)
    found = statistics.pixel_statistics(part, data.crop, threads=0, cache=None, key="")
    maker = CropBatchBuilder(
        normalise=statistics.fit_sharded_normaliser("raw-mean-image", found),
        augment=("flip", "pca-colour", "photometric"),
        pca=statistics.principal_colours(found),
    )
    cut = CropSpec(32, (36, 44), None, False, None, None, "bilinear")
    [expected] = ShardedFeed(part, maker, cut, seed=3, batch_size=4, start_step=2, stop_step=3, threads=0)
    assert batch.images.equal(expected.images)
    assert batch.labels.equal(expected.labels)


@pytest.mark.parametrize(
    ("declared", "cut"),
    [
        ({"side": 32, "short": 36}, CropSpec(32, (36, 36), None, False, None, None, "bilinear")),
        ({"side": 32, "short": (36, 44)}, CropSpec(32, (36, 44), None, False, None, None, "bilinear")),
        (
            {"side": 32, "short": 36, "centre": 34, "at": "five", "interpolation": "bicubic"},
            CropSpec(32, (36, 36), 34, True, None, None, "bicubic"),
        ),
        (
            {"side": 32, "area": (0.1, 1.0), "aspect": (0.5, 2.0)},
            CropSpec(32, None, None, False, (0.1, 1.0), (0.5, 2.0), "bilinear"),
        ),
    ],
)
def test_a_crop_is_cut_as_declared(declared, cut):
    assert crop_spec(Crop(**declared)) == cut


def test_small_images_are_fed_as_declared_by_statistics_of_those_trained_on(run):
    images, augment = sources.load_images("noise", Path("nowhere")), ("pad2-crop", "flip")
    data = Data(name="noise", val=120, pad_to=20, normalise="per-channel", augment=augment)
    made = load_training_data(images, data, torch.device("cpu"), sha256="x", options=ReadOptions())
    batch = next(iter(made.feed(run.recipe.train, 3, 2, 1)))
    training, held_out = manifest.train_val_split(images.train, train_count=None, val_count=120)
    assert len(held_out) == 120
    maker = BatchBuilder(training, normalise=fit_normaliser("per-channel", training), augment=augment, pad_to=20)
    indices = batch_indices(3, 2, 4, len(training))
    assert batch.images.equal(maker(indices, maker.draw(3, 2, 4)))
    assert batch.labels.equal(training.labels[indices])


def test_photographs_held_out_are_judged_by_the_first_protocol(root, run):
    """Which differs from the last: a network that sees the place of colours tells them apart."""

    class Nothing:
        def read(self):
            return {}

        def add(self, name, errors):
            pass

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 3))
    images = sources.load_images(run.recipe.data.name, root, sharded=True)
    made = load_training_data(images, run.recipe.data, torch.device("cpu"), sha256="x", options=ReadOptions())
    now = made.held_out_errors(network, torch.nn.functional.cross_entropy, bf16=False)
    every = made.final_metrics(network, torch.nn.functional.cross_entropy, bf16=False, cache=Nothing())
    assert now == {key: value for key, value in every.items() if key.count("/") == 1}
    for part in ("test", "val"):
        losses = [every[f"{part}/{protocol}/loss"] for protocol in run.recipe.data.test]
        assert now[f"{part}/loss"] == losses[0]
        assert len(set(losses)) == 3


@pytest.mark.parametrize("part", ["train", "test"])
def test_as_many_images_are_there_as_the_manifest_counts(root, run, part):
    images = sources.load_images(run.recipe.data.name, root, sharded=True)
    counted = manifest.manifest_of(images)
    require_counts(images, counted)
    here = getattr(counted, part)
    with pytest.raises(DataError, match=rf"^photographs has {here} {part} images, but its manifest counts 9; "):
        require_counts(images, replace(counted, **{part: 9}))


# --- data and recipe that do not belong together ---------------------------------------------------------------

CROP = {"crop": {"side": 32, "short": 36}, "test": ["1-crop-32-of-36"]}


def test_photographs_without_a_crop_are_refused(root, run):
    images = sources.load_images(run.recipe.data.name, root, sharded=True)
    with pytest.raises(
        UserError, match=r"holds images of many sizes; declare in data.crop how they are cropped"
    ):
        input_shape(images, Data(name="x"))
    with pytest.raises(DataError, match=r"holds pictures of many sizes, .* say in data.crop"):
        sources.load_images(run.recipe.data.name, root)  # into memory, as a recipe without a crop asks for


def test_small_images_with_a_crop_are_refused():
    with pytest.raises(UserError, match=r"data.crop is for images in shards, and noise is a set of small"):
        input_shape(sources.load_images("noise", Path("nowhere")), Data(name="noise", **CROP))


def test_a_normalisation_of_small_images_is_refused(root, run):
    images = sources.load_images(run.recipe.data.name, root, sharded=True)
    with pytest.raises(
        DataError, match=r"normalisation 'gcn-zca' needs images of one size in memory; for sharded images"
    ):
        input_shape(images, Data(name="x", normalise="gcn-zca", **CROP))


def test_a_set_that_is_not_there_says_how_to_make_it(tmp_path):
    with pytest.raises(
        DataError, match=r"there are none in \S+imagenet; make them with: repro data prepare SOURCE"
    ):
        sources.load_images("imagenet", tmp_path, sharded=True)


def test_shards_under_another_name_are_refused(root, run):
    (root / "pictures").symlink_to(root / run.recipe.data.name)
    with pytest.raises(
        DataError, match=r"the shards in \S+ are of 'photographs'; put them into a folder of that name"
    ):
        sources.load_images("pictures", root, sharded=True)


def test_a_set_called_imagenet_has_its_counts(root, run, tmp_path):
    """Also one whose manifest says so itself."""
    folder = tmp_path / "imagenet"
    shutil.copytree(root / run.recipe.data.name, folder)
    said = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(with_checksum(said | {"name": "imagenet"}))
    with pytest.raises(DataError, match=r"is not ImageNet: 21 \+ 12 pictures, where ILSVRC-2012 has 1281167 for"):
        sources.load_images("imagenet", tmp_path, sharded=True)
    with pytest.raises(DataError, match=r"is not ImageNet"):
        labelled_samples(str(folder), 3)


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"crop": {"side": 32, "short": 36}}, "'crop' needs a 'test' protocol, such as 1-crop-224-of-256"),
        ({"test": ["1-crop-32-of-36"]}, "'test' needs 'crop': test protocols are for images of varying size"),
        (CROP | {"augment": ["pad4-crop"]}, "'pad4-crop' cannot be combined with 'crop': it is for small images"),
        (CROP | {"pad_to": 64}, "'pad_to' cannot be combined with 'crop': it is for small images"),
        ({"augment": ["pca-colour"]}, "'pca-colour' needs 'crop': it is for images of varying size"),
        (CROP | {"test": ["7-crop-32-of-36"]}, "the crops for 1 short side must"),
        (CROP | {"crop": {"side": 32}}, "give either 'short' (resize, then crop) or 'area' with 'aspect'"),
        (CROP | {"crop": {"side": 32, "area": [0.1, 1.0]}}, "'area' and 'aspect' must be given together"),
        (CROP | {"crop": {"side": 32, "short": [44, 36]}}, "'short' must be increasing, not [44, 36]"),
        (CROP | {"crop": {"side": 32, "short": 30}}, "'side' must be <= 'centre', and 'centre' must be <= 'short'"),
        (
            CROP | {"crop": {"side": 32, "short": 40, "centre": 44}},
            "'side' must be <= 'centre', and 'centre' must be <= 'short'",
        ),
        (
            CROP | {"crop": {"side": 32, "area": [0.1, 1.5], "aspect": [0.75, 1.3]}},
            "'area' must be <= 1 and cannot be combined with 'centre' or 'at'",
        ),
    ],
)
def test_a_declaration_that_cannot_be_is_refused(declared, words):
    with pytest.raises(ValueError, match=r".") as caught:
        Data(name="x", **declared)
    assert words in str(caught.value)
