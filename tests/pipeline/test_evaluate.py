"""Evaluation against a slow, obvious loop."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.data.batches import BatchMaker, fit_normaliser, in_order
from pipeline.data.images import Images
from pipeline.evaluate import evaluate, response_std


class Small(nn.Module):
    """Two batch-norms, a dropout that only training may feel, and ten classes."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(5, 10)
        self.batches = []

    def forward(self, x):
        self.batches.append(len(x))
        x = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return self.fc(self.drop(x.mean((2, 3))))


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = Small()
    for bn in (network.bn1, network.bn2):  # as after some training
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.5, 2)
        nn.init.normal_(bn.weight)
    return network


def some(count=43, classes=10):
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 8, 8, 3), dtype=torch.uint8, generator=draw)
    return Images(pixels, torch.randint(0, classes, (count,), generator=draw))


def batches(images, size):
    return in_order(BatchMaker(images, normalise=fit_normaliser("scale", images)), images.labels, batch_size=size)


def by_hand(network, images):
    """One image at a time: wrong in top 1, wrong in top 5, mean loss."""
    network.eval()
    wrong1 = wrong5 = loss = 0
    for pixels, label in zip(images.pixels, images.labels.tolist(), strict=True):
        with torch.no_grad():
            scores = network((pixels.float() / 255).permute(2, 0, 1)[None])[0]
        best = scores.argsort(descending=True).tolist()
        wrong1 += best[0] != label
        wrong5 += label not in best[:5]
        loss += float(-scores.log_softmax(0)[label])
    network.train()
    return wrong1, wrong5, loss / len(images)


@pytest.mark.parametrize("size", [1, 10, 43, 500])
def test_errors_are_those_of_a_loop_over_single_images(network, size):
    images = some()
    wrong1, wrong5, loss = by_hand(network, images)
    found = evaluate(network, batches(images, size), F.cross_entropy, expected=43, bf16=False)
    assert (found.images, found.wrong1, found.wrong5) == (43, wrong1, wrong5)
    assert 0 < wrong5 < wrong1 < 43
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert found.metrics("test") == {
        "test/top1_error_pct": pytest.approx(100 * wrong1 / 43),
        "test/top5_error_pct": pytest.approx(100 * wrong5 / 43),
        "test/loss": pytest.approx(loss, rel=1e-5),
        "test/images": 43,
    }


def test_each_image_is_seen_once_and_the_last_batch_is_smaller(network):
    network.batches.clear()
    evaluate(network, batches(some(43), 10), F.cross_entropy, expected=43, bf16=False)
    assert network.batches == [10, 10, 10, 10, 3]


@pytest.mark.parametrize("expected", [42, 44])
def test_a_count_that_is_not_the_manifest_s_is_no_result(network, expected):
    with pytest.raises(RuntimeError, match=f"43 images were evaluated where the manifest counts {expected}"):
        evaluate(network, batches(some(43), 10), F.cross_entropy, expected=expected, bf16=False)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("expected", [43, 44])
def test_the_network_s_mode_and_statistics_are_as_before_also_after_a_refusal(network, training, expected):
    network.train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        evaluate(network, batches(some(43), 10), F.cross_entropy, expected=expected, bf16=False)
    except RuntimeError:
        assert expected == 44
    assert {module.training for module in network.modules()} == {training}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_scores_in_bf16_are_judged_in_fp32(network):
    dtypes = []

    def loss(scores, labels):
        dtypes.append(scores.dtype)
        return F.cross_entropy(scores, labels)

    evaluate(network, batches(some(43), 43), loss, expected=43, bf16=True)
    assert dtypes == [torch.float32]


def test_response_std_is_numpy_s_over_each_layer_s_responses(network):
    images = some()
    responses = {1: [], 2: []}
    hooks = [
        bn.register_forward_hook(lambda _m, _i, output, n=n: responses[n].append(output.detach().numpy().copy()))
        for n, bn in ((1, network.bn1), (2, network.bn2))
    ]
    network.eval()
    for _, pixels, _ in batches(images, 10):
        network(pixels)
    for hook in hooks:
        hook.remove()
    network.train()
    expected = np.mean([np.concatenate(rows).astype(np.float64).std() for rows in responses.values()])
    assert response_std(network, batches(images, 10)) == pytest.approx(expected, rel=1e-6)
    assert network.training
    assert not network.bn1._forward_hooks


def test_a_network_without_batch_norm_has_no_response_std():
    assert response_std(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), batches(some(), 10)) is None
