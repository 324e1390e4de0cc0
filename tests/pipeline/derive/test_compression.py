"""Test Deep Compression: the stages of a derived run, their errors, and resuming."""

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.networks import build
from lightning_modules.recipe import lr_at
from pipeline.data import manifest
from pipeline.declare.derived import CompressionSpec
from pipeline.declare.load import load_experiment
from pipeline.declare.metrics import metric_names
from pipeline.derive.compressed_file import decompress
from pipeline.derive.run import COMPRESSED_FILE
from tests.support.derived_runs import derived_of, fake_run_folder, load_member, make_in, scores_of
from tests.support.smoke_runs import LENET, images_of, smoke_run


def test_errors_after_compression_are_those_of_the_decoded_file(runs, folders, tmp_path):
    derived = derived_of(
        CompressionSpec(kind="compression", of="resnet-20", density=0.3, conv_bits=4, fc_bits=3), runs[:1]
    )
    record = make_in(tmp_path, derived, folders[:1])
    content = (tmp_path / COMPRESSED_FILE).read_bytes()
    decoded = load_member(folders[0], runs[0])
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


def test_compressed_lenet_5_keeps_its_fixed_codes(runs, folders, tmp_path):
    run, images = smoke_run("lenet5", experiment=LENET), images_of("digits")
    torch.manual_seed(0)
    network = build("lenet5", {}, num_classes=10, in_channels=1)
    folder = fake_run_folder(tmp_path / "run", network, folders[0].result(), manifest.manifest_of(images))
    derived = derived_of(load_experiment(LENET).derived_spec("lenet5-compressed", "smoke"), [run])
    record = make_in(tmp_path / "derived", derived, [folder], images=images)
    decoded = decompress((tmp_path / "derived" / COMPRESSED_FILE).read_bytes())
    before = network.state_dict()
    [codes] = [name for name in before if name.endswith("codes")]
    assert torch.equal(decoded[codes], before[codes])
    assert int((decoded["f6.weight"] != 0).sum()) == 120 * 84 / 2
    assert record.metrics["compressed/ratio"] > 4
    assert set(record.metrics) == set(metric_names(load_experiment(LENET), "lenet5-compressed", named=True))
    assert record.metrics["test/images"] == 360


def test_the_rate_of_the_originals_is_that_of_caffe_s_solver_within_2_percent():
    """Caffe's policy "inv": 0.01 (1 + gamma step)^-power, with gamma 0.0001 and power 0.75, for 10,000 steps."""
    train = load_experiment("deep_compression/mnist").recipe("lenet-5", "paper").train
    assert (train.steps, train.lr_end) == (10_000, pytest.approx(0.01 * 2**-0.75, rel=1e-4))
    for step in range(0, 10_000, 50):
        rate = lr_at(step, train.lr, None, (train.lr_end, train.steps), train.lr_power)
        assert rate == pytest.approx(0.01 * (1 + 0.0001 * step) ** -0.75, rel=0.02), step


@pytest.mark.parametrize(
    ("name", "kept", "weights"),
    [  # arXiv:1510.00149, Tables 2 and 3: density times weights of each layer
        ("lenet-300-100", 0.08 * 235_200 + 0.09 * 30_000 + 0.26 * 1000, 266_200),
        ("lenet-5", 0.66 * 500 + 0.12 * 25_000 + 0.08 * 400_000 + 0.19 * 5000, 430_500),
    ],
)
def test_printed_densities_prune_the_networks_of_the_paper_12_times(name, kept, weights, tmp_path, folders):
    experiment, images = "deep_compression/mnist", images_of("digits")
    run = smoke_run(name, experiment=experiment)
    model = run.recipe.model.name
    torch.manual_seed(0)
    network = build(model, {}, num_classes=10, in_channels=1)
    folder = fake_run_folder(tmp_path / "run", network, folders[0].result(), manifest.manifest_of(images))
    derived = derived_of(load_experiment(experiment).derived_spec(f"{name}-compressed", "smoke"), [run])
    record = make_in(tmp_path / "derived", derived, [folder], images=images)
    assert record.metrics["compressed/pruned_ratio"] == pytest.approx(weights / kept)
    assert round(record.metrics["compressed/pruned_ratio"]) == 12
    assert set(record.metrics) == set(metric_names(load_experiment(experiment), f"{name}-compressed", named=True))
    decoded = decompress((tmp_path / "derived" / COMPRESSED_FILE).read_bytes())
    again = build(model, {}, num_classes=10, in_channels=1)
    again.load_state_dict(decoded)
    [scores] = scores_of([again.eval()], images.test, images.train, normalise="scale", pad_to=28)
    wrong = int((scores.argmax(1) != images.test.labels).sum())
    assert record.metrics["test/top1_error_pct"] == pytest.approx(100 * wrong / 360)
