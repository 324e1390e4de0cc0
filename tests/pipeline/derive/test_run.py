"""Steps with real runs of seconds: what comes out is what the networks alone say, and what cannot be is told."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save

from lightning_modules.networks import build
from pipeline.common.errors import UserError
from pipeline.data import manifest, sources
from pipeline.data.batches import BatchBuilder
from pipeline.data.normalise import fit_normaliser
from pipeline.declare.derived import (
    ERROR_METRICS,
    TRANSFER_METRICS,
    CompressionSpec,
    EnsembleSpec,
    ProtocolSpec,
    TransferSpec,
)
from pipeline.declare.load import load_experiment
from pipeline.declare.protocol import parse_protocol
from pipeline.derive.compression import decompress
from pipeline.derive.context import load_network
from pipeline.derive.run import COMPRESSED_FILE, make_derived
from pipeline.plan.expand import DerivedRun, plan_runs
from pipeline.track.record import Record
from pipeline.track.run_folder import RunFolder
from pipeline.train.evaluate import AveragedNetworks, EnsembleMember, ErrorCounts, evaluate_samples
from pipeline.train.inputs import ReadOptions
from pipeline.train.load import load_training_data
from pipeline.train.train import train
from tests.support import smoke_runs
from tests.support.making import prepared
from tests.support.smoke_runs import CODE, images_of, task_at, train_in

ENSEMBLE = EnsembleSpec(kind="ensemble", members={"resnet-20": 3})


@pytest.fixture(scope="module")
def runs():
    return [smoke_runs.smoke_run(seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def folders(runs, tmp_path_factory):
    """The folders of three ResNet-20, trained for 12 updates."""
    found = [RunFolder(tmp_path_factory.mktemp("runs") / str(run.seed)) for run in runs]
    for run, folder in zip(runs, folders_first := found, strict=True):
        assert train_in(folder.path, run)
    return folders_first


def step_of(kind, runs):
    return DerivedRun(runs[0].experiment, runs[0].scale, "it", runs[0].seed, kind, tuple(runs))


def done(path, derived, folders, images=None, *, other=None, counted=None, **options):
    """Make the derived run in the folder `path`; its members are in `folders`, `counted` replaces its manifest."""
    images = images or images_of("noise")
    needs = tuple(str(folder.path) for folder in folders)
    task = task_at(path, derived, other or images, identity="id", needs=needs)
    if counted:
        task = replace(task, manifest=manifest.manifest_to_dict(counted))
    return make_derived(task, images, other, **options)


def network(folder, run):
    """A run's network, loaded by hand."""
    made = build(run.recipe.model.name, run.recipe.model.args, num_classes=10, in_channels=3)
    made.load_state_dict(load_file(folder.network_file))
    return made.eval()


def scores_of(networks, images, trained_on):
    """Each network's scores of all images: (networks, N, classes)."""
    maker = BatchBuilder(images, normalise=fit_normaliser("per-pixel-mean", trained_on))
    with torch.inference_mode():
        pixels = maker(torch.arange(len(images)))
        return torch.stack([one(pixels) for one in networks])


# --- an ensemble -------------------------------------------------------------------------------------------


def test_what_a_run_can_be_claimed_of_is_what_it_measures(folders):
    measured = load_experiment(smoke_runs.RESNET).measured("resnet-20", named=True)
    assert set(folders[0].result().metrics) == set(measured)


def test_an_ensemble_averages_the_soft_max(runs, folders, tmp_path):
    record = done(tmp_path, step_of(ENSEMBLE, runs), folders)
    images = images_of("noise")
    networks = [network(folder, run) for run, folder in zip(runs, folders, strict=True)]
    mean = scores_of(networks, images.test, images.train).softmax(2).mean(0)
    assert record.metrics["test/loss"] == pytest.approx(
        float(F.nll_loss(mean.log(), images.test.labels)), rel=1e-4
    )
    wrong = int((mean.argmax(1) != images.test.labels).sum())
    assert record.metrics["test/top1_error_pct"] == 100 * wrong / 100
    assert record.metrics["test/images"] == 100
    assert record.ended == "3 networks averaged"


def test_its_record_lies_in_its_folder_as_a_runs_does(runs, folders, tmp_path):
    step = step_of(ENSEMBLE, runs)
    record = done(tmp_path, step, folders)
    assert RunFolder(tmp_path).result() == record
    assert Record.from_dict(record.to_dict()) == record
    assert (record.experiment, record.scale, record.variant, record.seed) == (
        "resnet/cifar10_depth",
        "smoke",
        "it",
        0,
    )
    assert (record.declaration, record.code, record.data) == (step.declaration, CODE, "noise")
    assert (record.status, record.changes) == ("finished", {})
    assert record.manifest == manifest.manifest_of(images_of("noise")).sha256[:16]
    assert record.seconds > 0


def test_a_record_names_the_networks_it_is_of(runs, folders, tmp_path):
    named = [copied(folder, tmp_path / f"run{i}", identity=f"run-{i}") for i, folder in enumerate(folders)]
    for folder, original in zip(named, folders, strict=True):
        folder.network_file.write_bytes(original.network_file.read_bytes())
    record = done(tmp_path / "step", step_of(ENSEMBLE, runs), named)
    assert record.members == ("run-0", "run-1", "run-2")
    assert RunFolder(tmp_path / "step").result().members == record.members
    assert folders[0].result().members == ()


def test_an_ensemble_of_one_network_thrice_is_that_network(runs, folders, tmp_path):
    record = done(tmp_path, step_of(ENSEMBLE, [runs[1]] * 3), [folders[1]] * 3)
    alone = folders[1].result().metrics
    for metric in ("test/top1_error_pct", "test/top5_error_pct"):
        assert record.metrics[metric] == alone[metric]
    assert record.metrics["test/loss"] == pytest.approx(alone["test/loss"], rel=1e-5)


def test_probabilities_are_averaged_and_not_scores():
    class Says(torch.nn.Module):
        def __init__(self, *scores):
            super().__init__()
            self.scores = torch.tensor([scores])

        def forward(self, x):
            return self.scores.expand(len(x), -1)

    # one is nearly sure of class 0; two lean, with larger scores in all, towards class 1
    average = AveragedNetworks([Says(0.0, -9.0), Says(10.0, 10.5), Says(10.0, 10.5)])(torch.zeros(1, 1))
    half = 1 / (1 + math.exp(-0.5))
    expected = (1 / (1 + math.exp(-9)) + 2 * (1 - half)) / 3
    assert float(average.exp()[0, 0]) == pytest.approx(expected)
    assert float(average.exp().sum()) == pytest.approx(1)


# --- what is consumed --------------------------------------------------------------------------------------


def test_a_run_that_has_not_ended_is_named(runs, folders, tmp_path):
    with pytest.raises(UserError, match="needs resnet-20 seed 1, which has not ended on this machine"):
        done(tmp_path, step_of(ENSEMBLE, runs), [folders[0], RunFolder(tmp_path / "nothing"), folders[2]])
    assert not (tmp_path / "result.json").exists()


def copied(folder, path, **changes):
    """A folder's record, changed, in another folder, without its network."""
    record = replace(folder.result(), **changes)
    path.mkdir()
    RunFolder(path).finish(record, None)
    return RunFolder(path)


def test_a_run_that_did_not_converge_is_named(runs, folders, tmp_path):
    bad = copied(
        folders[0], tmp_path / "bad", status="not converged", ended="the loss became nan at step 3", metrics={}
    )
    with pytest.raises(UserError, match="needs resnet-20 seed 0, which did not converge: the loss became nan at"):
        done(tmp_path, step_of(ENSEMBLE, runs), [bad, *folders[1:]])


def test_a_network_that_lies_elsewhere_is_named(runs, folders, tmp_path):
    gone = copied(folders[0], tmp_path / "gone")
    with pytest.raises(
        UserError, match=r"the last model of resnet-20 seed 0 is not at .*trained on another machine"
    ):
        done(tmp_path, step_of(ENSEMBLE, runs), [gone, *folders[1:]])


def test_a_damaged_network_is_named(runs, folders, tmp_path):
    bad = copied(folders[0], tmp_path / "bad")
    bad.network_file.write_bytes(folders[0].network_file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cannot read .*network\.safetensors .*move its folder away"):
        done(tmp_path, step_of(ENSEMBLE, runs), [bad, *folders[1:]])


def test_images_that_changed_since_are_refused(runs, folders, tmp_path):
    other = replace(images_of("noise"), classes=tuple("abcdefghij"))
    with pytest.raises(UserError, match="noise: the images changed since resnet-20 seed 0 was trained"):
        done(tmp_path, step_of(ENSEMBLE, runs), folders, images=other)


def test_a_loaded_network_is_the_one_that_was_judged(runs, folders):
    loaded = load_network(runs[0], folders[0], manifest.manifest_of(images_of("noise")))
    images = images_of("noise")
    [scores] = scores_of([loaded.eval()], images.test, images.train)
    wrong = int((scores.argmax(1) != images.test.labels).sum())
    assert folders[0].result().metrics["test/top1_error_pct"] == wrong


# --- stopping ----------------------------------------------------------------------------------------------


def test_asked_to_stop_it_leaves_no_record(runs, folders, tmp_path):
    assert done(tmp_path, step_of(ENSEMBLE, runs), folders, stop=lambda: True) is None
    assert RunFolder(tmp_path).result() is None


def test_what_was_measured_before_it_stopped_is_not_measured_again(runs, folders, tmp_path, monkeypatch):
    step = step_of(
        CompressionSpec(kind="compression", of="resnet-20", density=0.5, conv_bits=4, fc_bits=4), runs[:1]
    )
    asked = iter([False, True])
    assert done(tmp_path, step, folders[:1], stop=lambda: next(asked)) is None
    whole = done(tmp_path / "whole", step, folders[:1])
    counted = []
    monkeypatch.setattr(
        "pipeline.train.in_memory.evaluate_batches",
        lambda *_, **__: counted.append(1) or ErrorCounts(100, 7, 3, 0.5),
    )
    resumed = done(tmp_path, step, folders[:1])
    assert len(counted) == 2  # pruned and compressed; the original was measured before
    assert resumed.metrics["original/loss"] == whole.metrics["original/loss"]
    assert resumed.metrics["test/top1_error_pct"] == 7.0


# --- compression -------------------------------------------------------------------------------------------


def test_a_compression_is_judged_by_what_its_file_holds(runs, folders, tmp_path):
    step = step_of(
        CompressionSpec(kind="compression", of="resnet-20", density=0.3, conv_bits=4, fc_bits=3), runs[:1]
    )
    record = done(tmp_path, step, folders[:1])
    content = (tmp_path / COMPRESSED_FILE).read_bytes()
    decoded = network(folders[0], runs[0])
    decoded.load_state_dict(decompress(content))
    images = images_of("noise")
    [scores] = scores_of([decoded], images.test, images.train)
    assert record.metrics["test/loss"] == pytest.approx(
        float(F.cross_entropy(scores, images.test.labels)), rel=1e-4
    )
    assert record.metrics["original/loss"] == folders[0].result().metrics["test/loss"]
    assert len({record.metrics[f"{stage}/loss"] for stage in ("original", "pruned", "test")}) == 3
    assert record.metrics["compressed/bytes"] == len(content)
    ratio = record.metrics["compressed/original_bytes"] / len(content)
    assert record.metrics["compressed/ratio"] == ratio > 6
    assert record.ended == f"compressed {ratio:.1f} times"


def test_lenet_5_is_compressed_with_its_codes_untouched(runs, folders, tmp_path):
    run, images = smoke_runs.smoke_run("lenet5", experiment=smoke_runs.LENET), images_of("digits")
    torch.manual_seed(0)
    made = build("lenet5", {}, num_classes=10, in_channels=1)
    folder = made_up_folder(tmp_path / "run", made, folders[0].result(), manifest.manifest_of(images))
    step = step_of(load_experiment(smoke_runs.LENET).derived_spec("lenet5-compressed", "smoke"), [run])
    record = done(tmp_path / "step", step, [folder], images=images)
    decoded = decompress((tmp_path / "step" / COMPRESSED_FILE).read_bytes())
    before = made.state_dict()
    [codes] = [name for name in before if name.endswith("codes")]
    assert torch.equal(decoded[codes], before[codes])
    assert int((decoded["f6.weight"] != 0).sum()) == 120 * 84 / 2
    assert record.metrics["compressed/ratio"] > 4
    assert set(record.metrics) == set(load_experiment(smoke_runs.LENET).measured("lenet5-compressed", named=True))
    assert record.metrics["test/images"] == 360


def made_up_folder(path, network, record, counted):
    """The folder of a run that never was, with this network."""
    folder = RunFolder(path)
    path.mkdir()
    folder.finish(replace(record, manifest=counted.sha256[:16]), save(network.state_dict()))
    return folder


# --- transfer ----------------------------------------------------------------------------------------------

TRANSFER = TransferSpec(kind="transfer", of="resnet-20", data="shades", c=1.0)


def shades(root, size=16, each=12):
    """Class folders of three greys, with some noise."""
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for label, grey in enumerate((40, 110, 200)):
            folder = root / "shades" / split / f"grey{label}"
            folder.mkdir(parents=True)
            for number in range(each):
                pixels = np.clip(grey + draw.integers(-25, 26, (size, size, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return sources.load_images("shades", root)


def test_a_linear_classifier_learns_another_set_from_the_features(runs, folders, tmp_path):
    other = shades(tmp_path)
    counted = manifest.manifest_of(other)
    record = done(tmp_path / "step", step_of(TRANSFER, runs[:1]), folders[:1], other=other)
    assert record.data == "shades"
    assert record.manifest == counted.sha256[:16]
    assert record.metrics["test/images"] == 36
    assert record.metrics["test/top1_error_pct"] < 34  # of 67 by guessing
    assert record.metrics["features"] == 64  # below ResNet-20's full connection
    assert set(record.metrics) == {*TRANSFER_METRICS, *(f"test/{error}" for error in ERROR_METRICS)}
    assert record.ended.endswith("iterations on 64 features")
    assert record.status == "finished"


def test_a_classifier_that_did_not_converge_is_said_not_to_have(runs, folders, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.derive.transfer.ITERATIONS", 2)
    other = shades(tmp_path)
    counted = manifest.manifest_of(other)
    record = done(tmp_path / "step", step_of(TRANSFER, runs[:1]), folders[:1], other=other)
    assert (record.status, record.metrics) == ("not converged", {})
    assert record.ended.startswith("the classifier on 64 features did not converge: lbfgs failed to converge")
    assert RunFolder(tmp_path / "step").result().status == "not converged"


def test_images_of_another_size_are_refused(runs, folders, tmp_path):
    other = shades(tmp_path, size=20)
    counted = manifest.manifest_of(other)
    with pytest.raises(UserError, match="learned from images of 16 x 16 x 3, and those of shades are 20 x 20 x 3"):
        done(tmp_path / "step", step_of(TRANSFER, runs[:1]), folders[:1], other=other)


def test_images_that_are_not_as_many_as_the_manifest_counts_are_refused(runs, folders, tmp_path):
    for part, counted in (("train", 99), ("test", 90)):
        wrong = replace(manifest.manifest_of(images_of("noise")), **{part: counted})
        with pytest.raises(UserError, match=rf"has \d+ {part} images, but its manifest counts {counted}; "):
            done(tmp_path, step_of(ENSEMBLE, runs), folders, counted=wrong)
    assert RunFolder(tmp_path).result() is None


# --- photographs -------------------------------------------------------------------------------------------

CHANGES = {"train.steps": 1, "train.batch_size": 2, "train.lr_drops": None, "data.test": ["1-crop-64-of-72"]}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Pictures in shards, two ResNet-18 that saw two of them, and their folders."""
    root = tmp_path_factory.mktemp("photographs")
    shards = prepared(root, classes=2, train=5, test=4)
    runs = [
        run
        for run in plan_runs(load_experiment("resnet/imagenet"), scale="stand-in", seeds=2, changes=CHANGES)
        if not isinstance(run, DerivedRun)
    ]
    folders = [RunFolder(root / f"run{run.seed}") for run in runs]
    for run, folder in zip(runs, folders, strict=True):
        assert train(task_at(folder.path, run, shards), shards)
    return shards, runs, folders


def test_a_run_is_judged_by_other_protocols(photographs, tmp_path):
    shards, runs, folders = photographs
    step = step_of(
        ProtocolSpec(kind="protocol", of="resnet-18-a", test=("10-crop-64-of-72", "1-crop-64-of-72")), runs[:1]
    )
    record = done(tmp_path, step, folders[:1], images=shards)
    before = folders[0].result().metrics
    assert record.metrics["test/1-crop-64-of-72/loss"] == pytest.approx(before["test/loss"], rel=1e-5)
    assert record.metrics["test/10-crop-64-of-72/loss"] != record.metrics["test/1-crop-64-of-72/loss"]
    assert record.metrics["test/loss"] == record.metrics["test/10-crop-64-of-72/loss"]
    assert record.metrics["test/10-crop-64-of-72/images"] == 8
    assert record.ended == "evaluated by 2 more protocols"


def test_an_ensemble_of_photographs_is_judged_as_its_members_are(photographs, tmp_path):
    shards, runs, folders = photographs
    step = step_of(EnsembleSpec(kind="ensemble", members={"resnet-18-a": 2}), runs)
    record = done(tmp_path, step, folders, images=shards)
    losses = [folder.result().metrics["test/loss"] for folder in folders]
    assert losses[0] != losses[1]
    assert record.metrics["test/1-crop-64-of-72/loss"] < sum(losses) / 2  # the logarithm of a mean, Jensen
    same = done(tmp_path / "same", step, folders[:1] * 2, images=shards)
    assert same.metrics["test/loss"] == pytest.approx(losses[0], rel=1e-5)


def test_each_network_of_an_ensemble_sees_photographs_normalised_as_it_learnt_from_them(photographs, tmp_path):
    shards, runs, folders = photographs
    changes = CHANGES | {"data.normalise": "scale"}
    other, *_ = plan_runs(load_experiment("resnet/imagenet"), scale="stand-in", seeds=1, changes=changes)
    step = step_of(EnsembleSpec(kind="ensemble", members={"resnet-18-a": 2}), [runs[0], other])
    record = done(tmp_path, step, folders[:1] * 2, images=shards)
    counted = manifest.manifest_of(shards)
    network = load_network(runs[0], folders[0], counted)
    of_each = [
        load_training_data(
            shards, run.recipe.data, torch.device("cpu"), sha256="x", options=ReadOptions()
        ).normaliser
        for run in (runs[0], other)
    ]
    assert [one.name for one in of_each] == ["per-pixel-mean", "scale"]
    expected = evaluate_samples(
        [EnsembleMember(network, one) for one in of_each],
        shards.test,
        parse_protocol("1-crop-64-of-72"),
        expected=8,
        threads=0,
        bf16=False,
        device="cpu",
    )
    assert record.metrics["test/loss"] == pytest.approx(expected.loss, rel=1e-6)
    assert record.metrics["test/loss"] != pytest.approx(folders[0].result().metrics["test/loss"], rel=1e-3)


def test_features_of_photographs_are_taken_from_one_crop(photographs, tmp_path):
    shards, runs, folders = photographs
    kind = TransferSpec(kind="transfer", of="resnet-18-a", data="mine", c=1.0, view="1-crop-64-of-72")
    other = prepared(tmp_path / "other", classes=2, train=6, test=3, seed=5)
    record = done(tmp_path / "step", step_of(kind, runs[:1]), folders[:1], images=shards, other=other)
    assert record.metrics["features"] == 512
    assert record.metrics["test/images"] == 6


def test_a_protocol_that_the_network_cannot_read_is_told(photographs, tmp_path):
    shards, _, _ = photographs
    changes = {key: value for key, value in CHANGES.items() if key != "data.test"}
    run, *_ = plan_runs(load_experiment("googlenet/imagenet"), scale="stand-in", seeds=1, changes=changes)
    network = build("googlenet", {}, num_classes=2, in_channels=3)
    counted = manifest.manifest_of(shards)
    folder = made_up_folder(tmp_path / "run", network, photographs[2][0].result(), counted)
    step = step_of(ProtocolSpec(kind="protocol", of="googlenet-with-aux", test=("1-crop-64-of-72",)), [run])
    with pytest.raises(UserError, match=r"test protocol '1-crop-64-of-72' does not fit: .*googlenet reads"):
        done(tmp_path / "step", step, [folder], images=shards)
