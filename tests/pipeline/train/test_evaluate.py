"""Test evaluation against a loop over single images and views; each image counts exactly once."""

import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_modules.networks import build
from pipeline.common.errors import UserError
from pipeline.data.batches import BatchBuilder, evaluation_batches
from pipeline.data.images import DataError, LabelledImages
from pipeline.data.normalise import Normaliser, fit_normaliser
from pipeline.declare.protocol import parse_protocol
from pipeline.train import evaluate as under_test
from pipeline.train.evaluate import (
    EVAL_VIEWS,
    EnsembleMember,
    ErrorCounts,
    combine_counts,
    evaluate_batches,
    evaluate_samples,
    response_std,
)
from tests.support import pillow_protocols


class Small(nn.Module):
    """A network with batch normalisation, dropout and ten classes."""

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


def random_images(count=43, classes=10):
    """Return random images of 8 x 8 pixels."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 8, 8, 3), dtype=torch.uint8, generator=generator)
    return LabelledImages(pixels, torch.randint(0, classes, (count,), generator=generator))


def evaluation_batches_of(images, size):
    """Return batches of images / 255."""
    return evaluation_batches(
        BatchBuilder(images, normalise=fit_normaliser("scale", images)), images.labels, batch_size=size
    )


def evaluate_one_by_one(network, images):
    """Evaluate one image at a time; return top-1 errors, top-5 errors and mean loss."""
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
def test_errors_equal_those_of_a_loop_over_single_images(network, size):
    images = random_images()
    wrong1, wrong5, loss = evaluate_one_by_one(network, images)
    found = evaluate_batches(
        network, evaluation_batches_of(images, size), F.cross_entropy, expected=43, bf16=False
    )
    assert (found.images, found.wrong1, found.wrong5) == (43, wrong1, wrong5)
    assert 0 < wrong5 < wrong1 < 43
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert found.metrics("test") == {
        "test/top1_error_pct": pytest.approx(100 * wrong1 / 43),
        "test/top5_error_pct": pytest.approx(100 * wrong5 / 43),
        "test/loss": pytest.approx(loss, rel=1e-5),
        "test/images": 43,
    }


def test_each_image_is_evaluated_once_and_the_last_batch_is_smaller(network):
    network.batches.clear()
    evaluate_batches(
        network, evaluation_batches_of(random_images(43), 10), F.cross_entropy, expected=43, bf16=False
    )
    assert network.batches == [10, 10, 10, 10, 3]


@pytest.mark.parametrize("expected", [42, 44])
def test_number_of_images_must_be_that_of_the_manifest(network, expected):
    with pytest.raises(RuntimeError, match=f"43 images were evaluated, but the manifest counts {expected}"):
        evaluate_batches(
            network, evaluation_batches_of(random_images(43), 10), F.cross_entropy, expected=expected, bf16=False
        )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("expected", [43, 44])
def test_mode_and_statistics_of_the_network_are_restored_also_after_an_error(network, training, expected):
    network.train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        evaluate_batches(
            network, evaluation_batches_of(random_images(43), 10), F.cross_entropy, expected=expected, bf16=False
        )
    except RuntimeError:
        assert expected == 44
    assert {module.training for module in network.modules()} == {training}
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_loss_of_bf16_scores_is_computed_in_fp32(network):
    dtypes = []

    def loss(scores, labels):
        dtypes.append(scores.dtype)
        return F.cross_entropy(scores, labels)

    evaluate_batches(network, evaluation_batches_of(random_images(43), 43), loss, expected=43, bf16=True)
    assert dtypes == [torch.float32]


def test_response_std_equals_numpy_std_of_each_layer(network):
    images = random_images()
    responses = {1: [], 2: []}
    hooks = [
        bn.register_forward_hook(lambda _m, _i, output, n=n: responses[n].append(output.detach().numpy().copy()))
        for n, bn in ((1, network.bn1), (2, network.bn2))
    ]
    network.eval()
    for _, pixels, _ in evaluation_batches_of(images, 10):
        network(pixels)
    for hook in hooks:
        hook.remove()
    network.train()
    expected = np.mean([np.concatenate(rows).astype(np.float64).std() for rows in responses.values()])
    assert response_std(network, evaluation_batches_of(images, 10)) == pytest.approx(expected, rel=1e-6)
    assert network.training
    assert not network.bn1._forward_hooks


def test_network_without_batch_norm_has_no_response_std():
    assert (
        response_std(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), evaluation_batches_of(random_images(), 10))
        is None
    )


# --- test protocols ----------------------------------------------------------------------------------------


class InMemorySamples:
    """Samples of encoded images in memory."""

    def __init__(self, contents, labels):
        self.contents, self.labels = contents, torch.as_tensor(labels)

    def __len__(self):
        return len(self.labels)

    def read(self, indices):
        return [self.contents[i] for i in indices]

    def where(self, index):
        return f"test.tar, sample {index}"


class PositionDependent(nn.Module):
    """A network that depends on the position of colours, so that every view has other scores."""

    def __init__(self, seed=0):
        super().__init__()
        self.fc = nn.Linear(48, 10)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.fc.weight, std=1.5, generator=generator)
        nn.init.zeros_(self.fc.bias)
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return self.fc(F.adaptive_avg_pool2d(x, 4).flatten(1))


def mean_subtracted(mean):
    """Return a normaliser that computes x / 255 - mean; the mean is a colour (3,) or an image (S, S, 3)."""
    return Normaliser("per-pixel-mean", torch.ones(3) / 255, torch.as_tensor(mean, dtype=torch.float32), 0.0)


COLOUR = np.array([0.5, 0.3, 0.4])
IMAGE = pillow_protocols.picture(32, 32, seed=99) / 255
SIZES = [(40, 60), (60, 40), (33, 33), (100, 90), (9, 30), (50, 31), (24, 36)]


@pytest.fixture(scope="module")
def images_and_samples():
    """Images of several sizes, and the same images as samples with labels."""
    images = [
        pillow_protocols.picture(*size, seed=1600 + i) for i, size in enumerate(SIZES * 2)
    ]  # seeds without nearly equal scores
    labels = np.random.default_rng(5).integers(0, 10, len(images))
    with torch.no_grad():  # every second label is the prediction on the whole image
        planes = [(torch.from_numpy(p) / 255 - torch.tensor(COLOUR)).permute(2, 0, 1) for p in images[::2]]
        labels[::2] = [PositionDependent()(x[None].float()).argmax() for x in planes]
    return images, InMemorySamples([pillow_protocols.png(pixels) for pixels in images], labels)


def evaluate(members, samples, name, *, threads=0, bf16=False, expected=None, **share):
    return evaluate_samples(
        members,
        samples,
        parse_protocol(name),
        expected=len(samples) if expected is None else expected,
        threads=threads,
        bf16=bf16,
        device="cpu",
        **share,
    )


def evaluate_view_by_view(networks, images, labels, name):
    """Evaluate view by view; return top-1 errors, top-5 errors and mean loss. `networks` are pairs with a mean."""
    wrong1 = wrong5 = 0
    losses = []
    for pixels, label in zip(images, labels.tolist(), strict=True):
        probabilities = pillow_protocols.probabilities(networks, pixels, pillow_protocols.PROTOCOLS[name])
        best = probabilities.argsort()[::-1]
        wrong1 += best[0] != label
        wrong5 += label not in best[:5]
        losses.append(-math.log(probabilities[label]))
    return wrong1, wrong5, np.mean(losses)


@pytest.mark.parametrize("mean", [COLOUR, IMAGE], ids=["colour", "image"])
@pytest.mark.parametrize("name", pillow_protocols.PROTOCOLS)
def test_every_protocol_equals_a_loop_over_single_views(images_and_samples, name, mean):
    images, samples = images_and_samples
    network = PositionDependent()
    wrong1, wrong5, loss = evaluate_view_by_view([(network, mean)], images, samples.labels, name)
    found = evaluate([EnsembleMember(network, mean_subtracted(mean))], samples, name)
    assert (found.images, found.wrong1, found.wrong5) == (14, wrong1, wrong5)
    assert found.loss == pytest.approx(loss, rel=5e-4)  # Pillow rounds pixels differently
    assert 0 < wrong5 < wrong1 < 14


def test_mean_colour_is_subtracted_from_a_dense_view_of_the_size_of_the_mean_image():
    samples = InMemorySamples(
        [pillow_protocols.png(pillow_protocols.picture(side, side, seed=side)) for side in (32, 40)], [1, 2]
    )
    image, colour = (
        evaluate([EnsembleMember(PositionDependent(), mean_subtracted(mean))], samples, "dense-of-32").loss
        for mean in (IMAGE, IMAGE.mean((0, 1)))
    )
    assert image == pytest.approx(colour, rel=1e-6)


@pytest.mark.parametrize("name", ["10-crop-23-of-square-32", "dense-of-40-and-50-crop-24-of-40"])
def test_ensemble_averages_networks_with_their_own_means(images_and_samples, name):
    images, samples = images_and_samples
    networks = [(PositionDependent(1), COLOUR), (PositionDependent(2), IMAGE)]
    expected = evaluate_view_by_view(networks, images, samples.labels, name)
    members = [EnsembleMember(network, mean_subtracted(mean)) for network, mean in networks]
    found = evaluate(members, samples, name)
    assert (found.wrong1, found.wrong5, found.loss) == (*expected[:2], pytest.approx(expected[2], rel=5e-4))
    assert evaluate(members[::-1], samples, name).loss == pytest.approx(found.loss, rel=1e-12)
    assert evaluate(members[:1], samples, name).loss != pytest.approx(found.loss, rel=0.01)
    assert evaluate(members[:1] * 3, samples, name).loss == pytest.approx(
        evaluate(members[:1], samples, name).loss
    )


def without_mirror(image, part):
    return [replace(group, mirror=False) for group in original_views(image, part)]


def without_position(normaliser, pixels, corners, frame):
    return original_normalise(normaliser, pixels, None, None)


def flipped(image, part):
    return [replace(group, pixels=group.pixels.flip(1)) for group in original_views(image, part)]


def weighted_by_views(samples, protocol, indices):
    found = original_stacks(samples, protocol, indices)
    return [replace(stack, share=2 * len(stack.groups[0].pixels) / protocol.views) for stack in found]


original_views, original_normalise = under_test.protocol_views, under_test.normalise_crops
original_stacks = under_test.view_stacks


@pytest.mark.parametrize(
    ("name", "function", "fault"),
    [
        ("10-crop-24-of-32", "protocol_views", without_mirror),
        ("dense-of-24-37", "protocol_views", without_mirror),
        ("1-crop-24-of-32", "protocol_views", flipped),
        ("10-crop-23-of-square-32", "normalise_crops", without_position),
        ("dense-of-40-and-50-crop-24-of-40", "view_stacks", weighted_by_views),  # all views of equal weight
    ],
)
def test_comparison_detects_a_fault(monkeypatch, images_and_samples, name, function, fault):
    _, samples = images_and_samples
    members = [EnsembleMember(PositionDependent(), mean_subtracted(IMAGE))]
    correct = evaluate(members, samples, name).loss
    monkeypatch.setattr(under_test, function, fault)
    assert evaluate(members, samples, name).loss != pytest.approx(correct, rel=3e-3)


@pytest.mark.parametrize("name", pillow_protocols.PROTOCOLS)
def test_number_of_views_is_that_of_the_protocol_in_limited_batches(images_and_samples, name):
    _, samples = images_and_samples
    network = PositionDependent()
    evaluate([EnsembleMember(network, mean_subtracted(COLOUR))], samples, name)
    assert sum(map(len, network.seen)) == parse_protocol(name).views * len(samples)
    assert max(map(len, network.seen)) <= EVAL_VIEWS == 64
    if parse_protocol(name).views < 10 and "dense" not in name:  # images share a batch
        assert len(network.seen) == 1


@pytest.mark.parametrize(("name", "views"), [("10-crop-24-of-32", 10), ("150-crop-24-of-32-37-56", 150)])
def test_views_differ_and_half_of_them_are_mirrored(name, views):
    network = PositionDependent()
    samples = InMemorySamples([pillow_protocols.png(pillow_protocols.picture(100, 90))], [0])
    evaluate([EnsembleMember(network, mean_subtracted(COLOUR))], samples, name)
    views_seen = torch.cat(network.seen)
    assert len(views_seen) == len(torch.unique(views_seen, dim=0)) == views
    assert torch.equal(torch.unique(views_seen, dim=0), torch.unique(views_seen.flip(3), dim=0))


def test_batches_of_larger_views_are_smaller(monkeypatch, images_and_samples):
    _, samples = images_and_samples
    monkeypatch.setattr(under_test, "EVAL_PIXELS", 10 * 24**2)
    network = PositionDependent()
    small_batches = evaluate([EnsembleMember(network, mean_subtracted(COLOUR))], samples, "50-crop-24-of-32")
    assert max(map(len, network.seen)) == 10
    monkeypatch.undo()
    assert evaluate(
        [EnsembleMember(network, mean_subtracted(COLOUR))], samples, "50-crop-24-of-32"
    ).loss == pytest.approx(small_batches.loss, rel=1e-6)
    assert max(map(len, network.seen)) == 50


@pytest.mark.parametrize("name", ["1-crop-24-of-32", "144-crop-24-of-32-36-40-44", "dense-of-24-37"])
def test_number_of_threads_changes_no_bit(images_and_samples, name):
    _, samples = images_and_samples
    members = [EnsembleMember(PositionDependent(), mean_subtracted(COLOUR))]
    assert len({evaluate(members, samples, name, threads=threads) for threads in (0, 1, 2, 5)}) == 1


# --- counting ----------------------------------------------------------------------------------------------


class NumberReader(nn.Module):
    """Reads an image's number from its single colour, and predicts number % 7."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        red, green, _ = (255 * x[:, :, 0, 0]).round().long().T
        number = red + 256 * green
        self.seen += number.tolist()
        return F.one_hot(number % 7, 10).float()


def numbered_samples(count):
    """Return images whose colour is their number; the label is number % 7, or 9 where that is 0."""
    pixels = [np.full((8, 9, 3), (i % 256, i // 256, 0), dtype=np.uint8) for i in range(count)]
    return InMemorySamples(
        [pillow_protocols.png(image) for image in pixels], [9 if i % 7 == 0 else i % 7 for i in range(count)]
    )


def evaluate_on_ranks(samples, world, threads):
    """Evaluate each rank's share; return the errors, and the numbers of the images seen."""
    network = NumberReader()
    member = EnsembleMember(network, fit_normaliser("scale", random_images(1)))
    parts = [
        evaluate([member], samples, "1-crop-4-of-8", threads=threads, rank=rank, world=world)
        for rank in range(world)
    ]
    return parts, network.seen


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("count", [1, 7, 499])
def test_each_image_is_counted_once_with_any_number_of_ranks_and_threads(monkeypatch, count, batch, world):
    monkeypatch.setattr(under_test, "EVAL_VIEWS", batch)
    samples = numbered_samples(count)
    for threads in (0, 2):
        parts, seen = evaluate_on_ranks(samples, world, threads)
        assert sorted(seen) == list(range(count))
        assert [part.images for part in parts] == [len(range(rank, count, world)) for rank in range(world)]
        found = combine_counts(parts, count)
        wrong = len(range(0, count, 7))
        assert (found.images, found.wrong1, found.wrong5) == (
            count,
            wrong,
            wrong,
        )  # a label among equal scores counts as wrong
        right_loss, wrong_loss = math.log(math.e + 9) - 1, math.log(math.e + 9)
        assert found.loss == pytest.approx((wrong * wrong_loss + (count - wrong) * right_loss) / count, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_each_of_10_000_images_is_counted_once(monkeypatch, world, threads, batch):
    monkeypatch.setattr(under_test, "EVAL_VIEWS", batch)
    parts, seen = evaluate_on_ranks(numbered_samples(10_000), world, threads)
    assert sorted(seen) == list(range(10_000))
    assert combine_counts(parts, 10_000).wrong1 == len(range(0, 10_000, 7))


@pytest.mark.parametrize("expected", [13, 15])
def test_number_of_samples_must_be_that_of_the_manifest(images_and_samples, expected):
    _, samples = images_and_samples
    with pytest.raises(RuntimeError, match=f"14 images were evaluated, but the manifest counts {expected}"):
        evaluate(
            [EnsembleMember(PositionDependent(), mean_subtracted(COLOUR))],
            samples,
            "1-crop-24-of-32",
            expected=expected,
        )


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("change", [lambda read: read[:-1], lambda read: [*read, read[0]]], ids=["less", "twice"])
def test_missing_or_repeated_image_is_an_error(monkeypatch, images_and_samples, change, threads):
    _, samples = images_and_samples
    monkeypatch.setattr(samples, "read", lambda indices: change([samples.contents[i] for i in indices]))
    with pytest.raises(RuntimeError, match=r"1[35] images were read, but 14 were requested: no result"):
        evaluate(
            [EnsembleMember(PositionDependent(), mean_subtracted(COLOUR))],
            samples,
            "1-crop-24-of-32",
            threads=threads,
        )


def test_missing_or_repeated_rank_is_an_error():
    parts, _ = evaluate_on_ranks(numbered_samples(8), 2, 0)
    assert combine_counts(parts, 8).images == combine_counts(parts[::-1], 8).images == 8
    for wrong in ([parts[0]], [parts[0], parts[0]], [*parts, parts[1]], []):
        with pytest.raises(
            RuntimeError, match=r"each rank must report its share exactly once, but these did: .*: no result"
        ):
            combine_counts(wrong, 8)
    with pytest.raises(RuntimeError, match=r"but these did: 0 of 2, 0 of 3"):
        combine_counts([ErrorCounts(4, 0, 0, 0.1, 0, 2), ErrorCounts(4, 0, 0, 0.1, 0, 3)], 8)
    for expected in (7, 9):
        with pytest.raises(RuntimeError, match=f"8 images were evaluated, but the manifest counts {expected}"):
            combine_counts(parts, expected)


def test_rank_without_images_does_not_change_the_errors():
    parts, _ = evaluate_on_ranks(numbered_samples(1), 3, 0)
    assert [part.images for part in parts] == [1, 0, 0]
    assert combine_counts(parts, 1) == replace(parts[0], rank=0, world=1)


def test_loss_of_a_rank_is_weighted_by_its_images():
    found = combine_counts([ErrorCounts(3, 1, 0, 2.0, 0, 2), ErrorCounts(1, 1, 1, 4.0, 1, 2)], 4)
    assert found == ErrorCounts(4, 2, 1, (3 * 2.0 + 4.0) / 4)


@pytest.mark.parametrize("world", [2, 3, 50])
def test_errors_of_ranks_on_batches_equal_those_of_one(network, world):
    images = random_images(43)
    builder = BatchBuilder(images, normalise=fit_normaliser("scale", images))
    parts = [
        evaluate_batches(
            network,
            evaluation_batches(builder, images.labels, batch_size=10, rank=rank, world=world),
            F.cross_entropy,
            expected=43,
            bf16=False,
            rank=rank,
            world=world,
        )
        for rank in range(world)
    ]
    assert [part.images for part in parts[40:]] == [0] * len(
        parts[40:]
    )  # a batch of 10 has no image for these ranks
    expected = evaluate_batches(
        network, evaluation_batches_of(images, 43), F.cross_entropy, expected=43, bf16=False
    )
    found = combine_counts(parts, 43)
    assert (found.images, found.wrong1, found.wrong5) == (43, expected.wrong1, expected.wrong5)
    assert found.loss == pytest.approx(expected.loss)


# --- errors ------------------------------------------------------------------------------------------------


def reader_threads():
    """Return the reader threads that are running."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


@pytest.mark.parametrize("threads", [0, 2])
def test_broken_image_is_an_error_with_its_name(threads):
    content = pillow_protocols.png(pillow_protocols.picture(300, 400))
    samples = InMemorySamples([content] * 70 + [content[: len(content) // 2]] + [content] * 29, [0] * 100)
    network = PositionDependent()
    with pytest.raises(DataError, match=r"^test\.tar, sample 70 is not a readable image") as caught:
        evaluate([EnsembleMember(network, mean_subtracted(COLOUR))], samples, "1-crop-24-of-32", threads=threads)
    assert caught.value.__traceback__  # although the exception is held, its threads have ended
    assert reader_threads() == []
    assert not network.fc.weight.grad


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("expected", [14, 15])
def test_modes_of_the_networks_are_restored_also_after_an_error(images_and_samples, training, expected):
    _, samples = images_and_samples
    networks = [PositionDependent(1).train(training), PositionDependent(2).train(not training)]
    modes = []
    for network in networks:
        network.fc.register_forward_hook(
            lambda module, *_: modes.append((module.training, torch.is_grad_enabled()))
        )
    try:
        evaluate(
            [EnsembleMember(n, mean_subtracted(COLOUR)) for n in networks],
            samples,
            "1-crop-24-of-32",
            expected=expected,
        )
    except RuntimeError:
        assert expected == 15
    assert set(modes) == {(False, False)}
    assert [network.training for network in networks] == [training, not training]


class WithAuxiliary(PositionDependent):
    """Returns a tuple of scores in training, like GoogLeNet."""

    def forward(self, x):
        scores = super().forward(x)
        return (scores, scores, scores) if self.training else scores


def test_auxiliary_classifiers_are_not_evaluated(images_and_samples):
    _, samples = images_and_samples
    found = [
        evaluate([EnsembleMember(network_class().train(), mean_subtracted(COLOUR))], samples, "10-crop-24-of-32")
        for network_class in (PositionDependent, WithAuxiliary)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("name", "args", "protocol", "message"),
    [
        (
            "alexnet",
            {"units": 2},
            "1-crop-224-of-256",
            "'1-crop-224-of-256' does not fit: alexnet reads images of 227 x 227 pixels, not 224 x 224;"
            " use crops of a size that it reads",
        ),
        (
            "alexnet",
            {"units": 2},
            "dense-of-200",
            "'dense-of-200' does not fit: alexnet, applied densely, reads images of 227 x 227 pixels or more,"
            " not 200 x 300; use larger scales, or crops of a size that it reads",
        ),
        (
            "alexnet_cifar",
            {"local": True},
            "dense-of-40",
            "'dense-of-40' does not fit: alexnet_cifar cannot be applied densely: the filters of local3 belong to"
            " one place; use larger scales, or crops of a size that it reads",
        ),
        (
            "resnet_imagenet",
            {"depth": 18},
            "dense-of-24-32",
            "'dense-of-24-32' does not fit: a ResNet for ImageNet reads images of 32 x 32 pixels or more,"
            " not 24 x 36; use larger scales, or crops of a size that it reads",
        ),
    ],
)
def test_views_that_the_network_cannot_read_are_a_user_error(name, args, protocol, message):
    network = build(name, args, num_classes=10, in_channels=3)
    samples = InMemorySamples([pillow_protocols.png(pillow_protocols.picture(24, 36))], [0])
    with pytest.raises(UserError, match=message) as caught:
        evaluate([EnsembleMember(network, mean_subtracted(COLOUR))], samples, protocol, threads=2)
    assert "\n" not in str(caught.value)
    assert reader_threads() == []


# --- precision ---------------------------------------------------------------------------------------------


class Confident(PositionDependent):
    """In float32 all probabilities but one underflow to 0."""

    def forward(self, x):
        return 3000 * super().forward(x)


def test_tiny_probabilities_keep_a_finite_loss_and_their_order():
    pixels = pillow_protocols.picture(33, 33)
    network = Confident()
    with torch.no_grad():
        scores = network((torch.from_numpy(pixels) / 255 - torch.tensor(COLOUR)).permute(2, 0, 1)[None].float())[0]
    for rank in range(1, 10):
        label = int(scores.argsort(descending=True)[rank])
        assert scores.softmax(0)[label] == 0
        samples = InMemorySamples([pillow_protocols.png(pixels)], [label])
        found = evaluate([EnsembleMember(network, mean_subtracted(COLOUR))], samples, "1-crop-33-of-33")
        assert (found.wrong1, found.wrong5) == (1, int(rank >= 5))
        assert found.loss == pytest.approx(float(scores.max() - scores[label]), rel=1e-4)


def test_network_computes_in_bf16_if_requested(images_and_samples):
    _, samples = images_and_samples
    dtypes = set()
    network = PositionDependent()
    network.fc.register_forward_hook(lambda _module, _inputs, scores: dtypes.add(scores.dtype))
    found = evaluate([EnsembleMember(network, mean_subtracted(COLOUR))], samples, "10-crop-24-of-32", bf16=True)
    assert dtypes == {torch.bfloat16}
    plain = evaluate([EnsembleMember(network, mean_subtracted(COLOUR))], samples, "10-crop-24-of-32")
    assert plain.loss != found.loss == pytest.approx(plain.loss, rel=0.02)  # bfloat16 has three digits


def test_probabilities_of_bf16_scores_are_not_rounded_to_bf16():
    network = PositionDependent()
    scores = []
    network.fc.register_forward_hook(lambda _module, _inputs, output: scores.append(output.double()))
    samples = InMemorySamples([pillow_protocols.png(pillow_protocols.picture(33, 33))], [3])
    found = evaluate([EnsembleMember(network, mean_subtracted(COLOUR))], samples, "10-crop-24-of-33", bf16=True)
    assert found.loss == pytest.approx(-math.log(scores[0].softmax(1).mean(0)[3]), rel=1e-12)


def test_single_crop_of_the_whole_image_equals_evaluate_batches(network):
    images = random_images()
    samples = InMemorySamples([pillow_protocols.png(pixels.numpy()) for pixels in images.pixels], images.labels)
    expected = evaluate_batches(
        network, evaluation_batches_of(images, 43), F.cross_entropy, expected=43, bf16=False
    )
    found = evaluate([EnsembleMember(network, fit_normaliser("scale", images))], samples, "1-crop-8-of-8")
    assert (found.wrong1, found.wrong5) == (expected.wrong1, expected.wrong5)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resnet_cifar", {"depth": 8, "shortcut": "A"}),
        ("wide_resnet_cifar", {"depth": 10, "k": 1}),
        ("preact_resnet_cifar", {"depth": 11, "layers_per_unit": 3}),
        ("resnext_cifar", {"cardinality": 2, "width": 4}),
        ("densenet_cifar", {"depth": 10, "k": 4}),
        ("stochastic_depth_cifar", {"depth": 8, "p_L": 1.0}),
    ],
)
def test_forward_is_the_average_over_positions_for_global_pooling_and_a_linear_layer(name, args):
    torch.manual_seed(0)
    network = build(name, args, num_classes=10, in_channels=3).eval()
    pool = next(m for m in network.modules() if isinstance(m, nn.AdaptiveAvgPool2d))
    linear = next(m for m in network.modules() if isinstance(m, nn.Linear))
    maps = []
    pool.register_forward_pre_hook(lambda _module, inputs: maps.append(inputs[0]))
    x = torch.randn(2, 3, 24, 36)
    with torch.no_grad():
        scores = network(x)
        [features] = maps
        scores_at = torch.stack([linear(features[:, :, i, j]) for i in range(6) for j in range(9)])
    assert not hasattr(network, "dense")
    assert features.shape[2:] == (6, 9)
    torch.testing.assert_close(scores, scores_at.mean(0), atol=1e-5, rtol=1e-5)
    assert scores_at.std(0).min() > 0.001
