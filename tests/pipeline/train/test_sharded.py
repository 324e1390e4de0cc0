"""Test runs on images in shards: protocols, feeds, reader threads, and equal bits after an interruption."""

import itertools

import pytest
import torch

from pipeline.common.errors import UserError
from pipeline.data import manifest, statistics
from pipeline.data.colour import CropBatchBuilder
from pipeline.data.crops import CropSpec
from pipeline.data.sharded_feed import ShardedFeed
from pipeline.declare.data_settings import Crop, Data, Jitter
from pipeline.declare.load import load_experiment
from pipeline.declare.metrics import metric_names
from pipeline.track.run_folder import RunFolder
from pipeline.train.inputs import ReadOptions
from pipeline.train.load import load_training_data
from pipeline.train.ranks import current_ranks
from pipeline.train.sharded import crop_spec
from tests.support.sharded_runs import load_shards, train_sharded
from tests.support.smoke_runs import stop_after, weights


@pytest.fixture(scope="module")
def uninterrupted_sharded(sharded_run, data_root, tmp_path_factory):
    path = tmp_path_factory.mktemp("uninterrupted_sharded")
    return train_sharded(path, sharded_run, data_root), path


def test_every_protocol_has_its_own_metrics_and_counts_every_image(
    uninterrupted_sharded, sharded_run, sharded_experiment
):
    record, _ = uninterrupted_sharded
    assert record.status == "finished"
    for protocol in sharded_run.recipe.data.test:
        assert record.metrics[f"test/{protocol}/images"] == 12
        assert record.metrics[f"val/{protocol}/images"] == 5
        assert 0 <= record.metrics[f"test/{protocol}/top5_error_pct"] <= 100
    assert set(metric_names(load_experiment(str(sharded_experiment)), "resnet-18", named=False)) == set(
        record.metrics
    )
    first = sharded_run.recipe.data.test[0]
    for name in ("top1_error_pct", "top5_error_pct", "loss", "images"):
        assert record.metrics[f"test/{name}"] == record.metrics[f"test/{first}/{name}"]


def test_evaluations_in_training_use_the_first_protocol(uninterrupted_sharded):
    entries = {entry["step"]: entry["metrics"] for entry, _ in RunFolder(uninterrupted_sharded[1]).journal()}
    assert [step for step, metrics in entries.items() if "test/images" in metrics] == [4, 8]
    assert entries[4]["test/images"] == 12


@pytest.mark.parametrize("after", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_run_stopped_within_an_epoch_ends_with_the_same_bits(
    uninterrupted_sharded, sharded_run, data_root, tmp_path, after
):
    assert train_sharded(tmp_path, sharded_run, data_root, stop=stop_after(after)) is None
    record = train_sharded(tmp_path, sharded_run, data_root)
    assert weights(tmp_path) == weights(uninterrupted_sharded[1])
    assert record.metrics == uninterrupted_sharded[0].metrics


def test_reader_threads_change_no_bit(uninterrupted_sharded, sharded_run, data_root, tmp_path):
    assert train_sharded(tmp_path, sharded_run, data_root, readers=3).metrics == uninterrupted_sharded[0].metrics
    assert weights(tmp_path) == weights(uninterrupted_sharded[1])


@pytest.mark.parametrize(
    "moment", [2, *(pytest.param(moment, marks=pytest.mark.slow) for moment in (7, 12, 16)), 18]
)
def test_run_stopped_in_statistics_or_evaluation_resumes_there(
    uninterrupted_sharded, sharded_run, data_root, tmp_path, monkeypatch, moment
):
    """Stop at the `moment`-th call of `stop`: in statistics, training or evaluation."""
    calls = 0

    def stop():
        nonlocal calls
        calls += 1
        return calls >= moment

    monkeypatch.setattr(statistics, "SUM_CHUNK", 8)
    messages = []
    assert (
        train_sharded(
            tmp_path / "run", sharded_run, data_root, data_root=tmp_path, stop=stop, report=messages.append
        )
        is None
    )
    record = train_sharded(tmp_path / "run", sharded_run, data_root, data_root=tmp_path, report=messages.append)
    assert weights(tmp_path / "run") == weights(uninterrupted_sharded[1])
    assert record.metrics == uninterrupted_sharded[0].metrics
    steps = [entry["step"] for entry, _ in RunFolder(tmp_path / "run").journal()]
    assert steps == [3, 4, 6, 8, 9]
    evaluations = [message for message in messages if message.startswith("evaluating")]
    assert len(evaluations) <= 2 * len(sharded_run.recipe.data.test) + 1  # only the interrupted one is repeated


# --- two ranks -----------------------------------------------------------------------------------------------


def train_on_rank(path, sharded_run, data_root, cache, moment=None):
    """Train on this rank; on rank 1 alone, `stop` returns True from its `moment`-th call on."""
    calls, messages = itertools.count(1), []
    statistics.SUM_CHUNK = 8

    def stop():
        return moment is not None and current_ranks().rank == 1 and next(calls) >= moment

    return train_sharded(
        path, sharded_run, data_root, data_root=cache, stop=stop, report=messages.append
    ), messages


@pytest.fixture(scope="module")
def uninterrupted_on_ranks(two_ranks, sharded_run, data_root, tmp_path_factory):
    path = tmp_path_factory.mktemp("uninterrupted_on_ranks")
    return two_ranks.run(train_on_rank, path, sharded_run, data_root, data_root), path


def test_ranks_count_every_image_once_and_only_rank_0_reports(uninterrupted_on_ranks, sharded_run):
    [(record, messages), (other, other_messages)], _ = uninterrupted_on_ranks
    assert record == other
    assert (record.world, record.metrics["test/images"], record.metrics["val/images"]) == (2, 12, 5)
    assert [message for message in messages if message.startswith("evaluating")] == [
        f"evaluating {count} {part} images by {protocol}"
        for protocol in sharded_run.recipe.data.test
        for part, count in (("test", 12), ("val", 5))
    ]
    assert other_messages == []


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "moments", [(1, 15), *(pytest.param((moment,), marks=SLOW) for moment in (3, 7, 8, 11, 14, 19, 23))], ids=str
)
def test_ranks_resume_with_the_same_bits_after_one_was_stopped(
    two_ranks, uninterrupted_on_ranks, sharded_run, data_root, tmp_path, moments
):
    """Stop in statistics, which rank 0 alone computes, in training, or in evaluations."""
    args = tmp_path / "run", sharded_run, data_root, tmp_path / "cache"
    for moment in moments:
        assert [ended for ended, _ in two_ranks.run(train_on_rank, *args, moment)] == [None, None]
    [(record, _), (other, _)] = two_ranks.run(train_on_rank, *args)
    [(expected, _), _], path = uninterrupted_on_ranks
    assert record == other
    assert record.metrics == expected.metrics
    assert weights(tmp_path / "run") == weights(path)
    assert [entry["step"] for entry, _ in RunFolder(tmp_path / "run").journal()] == [3, 4, 6, 8, 9]


# --- the training data ---------------------------------------------------------------------------------------


def test_statistics_are_those_of_the_training_images_and_cached(
    uninterrupted_sharded, sharded_run, data_root, monkeypatch
):
    images = load_shards(data_root)
    crop = sharded_run.recipe.data.crop
    assert len(list((data_root).rglob("*.safetensors"))) == 1
    part, _ = manifest.sample_split(images.train, train_count=None, val_count=5)
    computed = statistics.pixel_statistics(part, crop, threads=0, cache=None, key="")
    assert computed.count == 16

    def fail_to_read(*_):
        raise AssertionError("read again")

    monkeypatch.setattr(type(images.train), "read", fail_to_read)
    key = f"{images.manifest.sha256} None 5"
    cached = statistics.pixel_statistics(part, crop, threads=0, cache=data_root / ".cache", key=key)
    assert cached.total.equal(computed.total)


def test_batches_are_those_of_the_declared_crop_and_augmentation(data_root, sharded_run):
    images, data = load_shards(data_root), sharded_run.recipe.data
    training_data = load_training_data(images, data, torch.device("cpu"), sha256="x", options=ReadOptions())
    batch = next(iter(training_data.feed(sharded_run.recipe.train, 3, 2, 1)))
    part, _ = manifest.sample_split(images.train, train_count=None, val_count=5)
    found = statistics.pixel_statistics(part, data.crop, threads=0, cache=None, key="")
    builder = CropBatchBuilder(
        normalise=statistics.fit_sharded_normaliser("raw-mean-image", found),
        augment=("flip", "pca-colour", "photometric"),
        pca=statistics.principal_colours(found),
    )
    crop = CropSpec(32, (36, 44), None, False, None, None, "bilinear")
    [expected] = ShardedFeed(part, builder, crop, seed=3, batch_size=4, start_step=2, stop_step=3, threads=0)
    assert batch.images.equal(expected.images)
    assert batch.labels.equal(expected.labels)


@pytest.mark.parametrize(
    ("declared", "expected"),
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
def test_crop_spec_is_the_declared_crop(declared, expected):
    assert crop_spec(Crop(**declared)) == expected


def test_declared_jitter_and_random_interpolation_reach_the_batches(data_root, sharded_run):
    images, data = load_shards(data_root), sharded_run.recipe.data
    crop = {**data.crop.model_dump(), "interpolation": "random"}
    declared = data.model_dump() | {
        "augment": ["flip"],
        "normalise": "scale",
        "jitter": {"contrast": 0.4},
        "crop": crop,
    }
    training_data = load_training_data(
        images, Data(**declared), torch.device("cpu"), sha256="x", options=ReadOptions()
    )
    batch = next(iter(training_data.feed(sharded_run.recipe.train, 3, 2, 1)))
    part, _ = manifest.sample_split(images.train, train_count=None, val_count=5)
    builder = CropBatchBuilder(
        normalise=statistics.fit_sharded_normaliser("scale", None), augment=("flip",), jitter=Jitter(contrast=0.4)
    )
    spec = CropSpec(32, (36, 44), None, False, None, None, "random")
    [expected] = ShardedFeed(part, builder, spec, seed=3, batch_size=4, start_step=2, stop_step=3, threads=0)
    assert batch.images.equal(expected.images)


def test_held_out_errors_are_those_of_the_first_protocol(data_root, sharded_run):
    """The network depends on the position of colours, so each protocol has another loss."""

    class EmptyCache:
        def read(self):
            return {}

        def add(self, name, errors):
            pass

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 3))
    images = load_shards(data_root)
    training_data = load_training_data(
        images, sharded_run.recipe.data, torch.device("cpu"), sha256="x", options=ReadOptions()
    )
    held_out = training_data.held_out_errors(network, torch.nn.functional.cross_entropy, bf16=False)
    final = training_data.final_metrics(network, torch.nn.functional.cross_entropy, bf16=False, cache=EmptyCache())
    assert held_out == {key: value for key, value in final.items() if key.count("/") == 1}
    for part in ("test", "val"):
        losses = [final[f"{part}/{protocol}/loss"] for protocol in sharded_run.recipe.data.test]
        assert held_out[f"{part}/loss"] == losses[0]
        assert len(set(losses)) == 3


def test_curvature_estimates_are_refused(data_root, sharded_run):
    data = load_training_data(
        load_shards(data_root), sharded_run.recipe.data, torch.device("cpu"), sha256="x", options=ReadOptions()
    )
    with pytest.raises(UserError, match="'sdlm' needs small images in memory"):
        data.curvature_patterns(0, 0, 5)
