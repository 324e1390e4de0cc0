"""Test columns of a FractalNet: evaluated by hand, one layer after the other, from the stored weights."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from lightning_modules.networks import build
from pipeline.common.errors import UserError
from pipeline.data.batches import BatchBuilder
from pipeline.data.normalise import fit_normaliser
from pipeline.declare.derived import ColumnSpec
from pipeline.derive.column import column_index
from pipeline.track.run_folder import RunFolder
from tests.support.derived_runs import derived_of, make_in
from tests.support.smoke_runs import images_of, train_in, with_network

WIDTHS = [4, 4, 8, 8]  # 4 blocks, for images of 16 x 16
# Column -> its convolutions within a block, from f_3 = [f_2 o f_2] join conv and f_2 = [conv o conv] join conv.
PATHS = {
    1: ["conv"],
    2: ["first.conv", "second.conv"],
    3: ["first.first.conv", "first.second.conv", "second.first.conv", "second.second.conv"],
}


@pytest.fixture(scope="module")
def fractal_run():
    """A run of a small FractalNet with 3 columns."""
    return with_network("fractalnet", columns=3, widths=WIDTHS, dropout=[])


@pytest.fixture(scope="module")
def fractal_folder(fractal_run, tmp_path_factory):
    """The folder of `fractal_run`, trained for 12 steps with drop-path."""
    path = tmp_path_factory.mktemp("fractal") / "run"
    assert train_in(path, fractal_run)
    return RunFolder(path)


def column(number, **settings):
    return ColumnSpec(kind="column", of="resnet-20", column=number, **settings)


def scores_by_hand(weights, number, x):
    for block in range(1, len(WIDTHS) + 1):
        for path in PATHS[number]:
            name = f"block{block}.fractal.{path}"
            x = F.conv2d(x, weights[f"{name}.conv.weight"], padding=1)
            mean, variance = weights[f"{name}.bn.running_mean"], weights[f"{name}.bn.running_var"]
            x = F.batch_norm(x, mean, variance, weights[f"{name}.bn.weight"], weights[f"{name}.bn.bias"]).relu()
        x = F.max_pool2d(x, 2)
    return F.linear(x.flatten(1), weights["prediction.weight"], weights["prediction.bias"])


def test_column_has_the_errors_of_its_own_path(fractal_run, fractal_folder, tmp_path):
    images, losses = images_of("noise"), {}
    normalise = fit_normaliser("per-pixel-mean", images.train)
    pixels, seen = (
        BatchBuilder(part, normalise=normalise)(torch.arange(len(part))) for part in (images.test, images.train)
    )
    for number in (1, 2, 3):
        record = make_in(tmp_path / str(number), derived_of(column(number), [fractal_run]), [fractal_folder])
        scores = scores_by_hand(load_file(fractal_folder.network_file), number, pixels)
        losses[number] = record.metrics["test/loss"]
        assert losses[number] == pytest.approx(float(F.cross_entropy(scores, images.test.labels)), rel=1e-5)
        assert record.metrics["test/top1_error_pct"] == int((scores.argmax(1) != images.test.labels).sum())
        assert record.metrics["test/images"] == 100
        scores = scores_by_hand(load_file(fractal_folder.network_file), number, seen)
        loss = float(F.cross_entropy(scores, images.train.labels))
        assert record.metrics["trainset/loss"] == pytest.approx(loss, rel=1e-5)
        assert record.metrics["trainset/images"] == len(images.train)
        assert record.ended == f"column {number} of 3, {4 * len(PATHS[number])} convolutions"
    assert len({fractal_folder.result().metrics["test/loss"], *losses.values()}) == 4


def test_deepest_column_is_the_last_one(fractal_run, fractal_folder, tmp_path):
    records = [
        make_in(tmp_path / str(number), derived_of(column(number), [fractal_run]), [fractal_folder])
        for number in (3, "deepest")
    ]
    assert records[0].metrics == records[1].metrics


def test_network_without_this_column_is_a_user_error(runs, folders, fractal_run, fractal_folder, tmp_path):
    with pytest.raises(UserError) as caught:
        make_in(tmp_path / "a", derived_of(column(1), runs[:1]), folders[:1])
    assert str(caught.value) == "resnet-20 has no columns: its network is ResNetCifar, not FractalNet"
    with pytest.raises(UserError, match=r"^resnet-20 has no column 4: its network has 3 columns$"):
        make_in(tmp_path / "b", derived_of(column(4), [fractal_run]), [fractal_folder])


def test_plain_network_of_the_same_paper_has_no_columns():
    plain = build("fractalnet_plain", {"depth": 5}, num_classes=10, in_channels=3)
    with pytest.raises(UserError, match="its network is PlainNet, not FractalNet"):
        column_index(plain, column(1))
