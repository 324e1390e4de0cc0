"""Evaluation against a slow, obvious loop."""

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
    return LabelledImages(pixels, torch.randint(0, classes, (count,), generator=draw))


def batches(images, size):
    return evaluation_batches(
        BatchBuilder(images, normalise=fit_normaliser("scale", images)), images.labels, batch_size=size
    )


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
    found = evaluate_batches(network, batches(images, size), F.cross_entropy, expected=43, bf16=False)
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
    evaluate_batches(network, batches(some(43), 10), F.cross_entropy, expected=43, bf16=False)
    assert network.batches == [10, 10, 10, 10, 3]


@pytest.mark.parametrize("expected", [42, 44])
def test_a_count_that_is_not_the_manifest_s_is_no_result(network, expected):
    with pytest.raises(RuntimeError, match=f"43 images were evaluated where the manifest counts {expected}"):
        evaluate_batches(network, batches(some(43), 10), F.cross_entropy, expected=expected, bf16=False)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("expected", [43, 44])
def test_the_network_s_mode_and_statistics_are_as_before_also_after_a_refusal(network, training, expected):
    network.train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        evaluate_batches(network, batches(some(43), 10), F.cross_entropy, expected=expected, bf16=False)
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

    evaluate_batches(network, batches(some(43), 43), loss, expected=43, bf16=True)
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


# --- photographs and test protocols ------------------------------------------------------------------------


class Files:
    """Pictures of any size, as a folder or shards would give them."""

    def __init__(self, contents, labels):
        self.contents, self.labels = contents, torch.as_tensor(labels)

    def __len__(self):
        return len(self.labels)

    def read(self, indices):
        return [self.contents[i] for i in indices]

    def where(self, index):
        return f"test.tar, sample {index}"


class Placed(nn.Module):
    """Ten classes by where which colour is: no view, and no mirror image, gives the answer of another."""

    def __init__(self, seed=0):
        super().__init__()
        self.fc = nn.Linear(48, 10)
        draw = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.fc.weight, std=1.5, generator=draw)
        nn.init.zeros_(self.fc.bias)
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return self.fc(F.adaptive_avg_pool2d(x, 4).flatten(1))


def mean_subtracted(mean):
    """x/255 - mean, of one colour (3,) or an image (S, S, 3)."""
    return Normaliser("per-pixel-mean", torch.ones(3) / 255, torch.as_tensor(mean, dtype=torch.float32), 0.0)


COLOUR = np.array([0.5, 0.3, 0.4])
IMAGE = pillow_protocols.picture(32, 32, seed=99) / 255
SIZES = [(40, 60), (60, 40), (33, 33), (100, 90), (9, 30), (50, 31), (24, 36)]


@pytest.fixture(scope="module")
def photographs():
    pictures = [pillow_protocols.picture(*size, seed=1600 + i) for i, size in enumerate(SIZES * 2)]  # no close calls
    labels = np.random.default_rng(5).integers(0, 10, len(pictures))
    with torch.no_grad():  # every second picture is one that the network knows, more or less
        planes = [(torch.from_numpy(p) / 255 - torch.tensor(COLOUR)).permute(2, 0, 1) for p in pictures[::2]]
        labels[::2] = [Placed()(x[None].float()).argmax() for x in planes]
    return pictures, Files([pillow_protocols.png(pixels) for pixels in pictures], labels)


def judged(members, samples, name, *, threads=0, bf16=False, expected=None, **share):
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


def by_hand_pictures(networks, pictures, labels, name):
    """Wrong in top 1, wrong in top 5, mean loss: view by view; `networks` with their means."""
    wrong1 = wrong5 = 0
    losses = []
    for pixels, label in zip(pictures, labels.tolist(), strict=True):
        answer = pillow_protocols.probabilities(networks, pixels, pillow_protocols.PROTOCOLS[name])
        best = answer.argsort()[::-1]
        wrong1 += best[0] != label
        wrong5 += label not in best[:5]
        losses.append(-math.log(answer[label]))
    return wrong1, wrong5, np.mean(losses)


@pytest.mark.parametrize("mean", [COLOUR, IMAGE], ids=["colour", "image"])
@pytest.mark.parametrize("name", pillow_protocols.PROTOCOLS)
def test_every_protocol_is_a_loop_over_single_views(photographs, name, mean):
    pictures, samples = photographs
    network = Placed()
    wrong1, wrong5, loss = by_hand_pictures([(network, mean)], pictures, samples.labels, name)
    found = judged([EnsembleMember(network, mean_subtracted(mean))], samples, name)
    assert (found.images, found.wrong1, found.wrong5) == (14, wrong1, wrong5)
    assert found.loss == pytest.approx(loss, rel=5e-4)  # Pillow's pixels differ a little
    assert 0 < wrong5 < wrong1 < 14


def test_a_dense_view_that_has_a_mean_images_size_by_chance_has_its_mean_colour_taken_out():
    samples = Files([pillow_protocols.png(pillow_protocols.picture(side, side, seed=side)) for side in (32, 40)], [1, 2])
    image, colour = (
        judged([EnsembleMember(Placed(), mean_subtracted(mean))], samples, "dense-of-32").loss
        for mean in (IMAGE, IMAGE.mean((0, 1)))
    )
    assert image == pytest.approx(colour, rel=1e-6)


@pytest.mark.parametrize("name", ["10-crop-23-of-square-32", "dense-of-40-and-50-crop-24-of-40"])
def test_an_ensemble_averages_its_networks_each_with_its_own_mean(photographs, name):
    pictures, samples = photographs
    networks = [(Placed(1), COLOUR), (Placed(2), IMAGE)]
    expected = by_hand_pictures(networks, pictures, samples.labels, name)
    members = [EnsembleMember(network, mean_subtracted(mean)) for network, mean in networks]
    found = judged(members, samples, name)
    assert (found.wrong1, found.wrong5, found.loss) == (*expected[:2], pytest.approx(expected[2], rel=5e-4))
    assert judged(members[::-1], samples, name).loss == pytest.approx(found.loss, rel=1e-12)
    assert judged(members[:1], samples, name).loss != pytest.approx(found.loss, rel=0.01)
    assert judged(members[:1] * 3, samples, name).loss == pytest.approx(judged(members[:1], samples, name).loss)


def unmirrored(image, part):
    return [replace(group, mirror=False) for group in under_test_views(image, part)]


def one_frame(normaliser, pixels, corners, frame):
    return under_test_normalised(normaliser, pixels, None, None)


def turned(image, part):
    return [replace(group, pixels=group.pixels.flip(1)) for group in under_test_views(image, part)]


def by_views(samples, protocol, indices):
    found = under_test_stacks(samples, protocol, indices)
    return [replace(stack, share=2 * len(stack.groups[0].pixels) / protocol.views) for stack in found]


under_test_views, under_test_normalised = under_test.protocol_views, under_test.normalise_crops
under_test_stacks = under_test.view_stacks


@pytest.mark.parametrize(
    ("name", "function", "fault"),
    [
        ("10-crop-24-of-32", "views", unmirrored),
        ("dense-of-24-37", "views", unmirrored),
        ("1-crop-24-of-32", "views", turned),
        ("10-crop-23-of-square-32", "normalised", one_frame),
        ("dense-of-40-and-50-crop-24-of-40", "stacks", by_views),  # every view alike, whichever part it is of
    ],
)
def test_a_fault_would_show(monkeypatch, photographs, name, function, fault):
    _, samples = photographs
    members = [EnsembleMember(Placed(), mean_subtracted(IMAGE))]
    right = judged(members, samples, name).loss
    monkeypatch.setattr(under_test, function, fault)
    assert judged(members, samples, name).loss != pytest.approx(right, rel=3e-3)


@pytest.mark.parametrize("name", pillow_protocols.PROTOCOLS)
def test_a_network_is_really_shown_as_many_views_as_the_name_says_and_few_at_a_time(photographs, name):
    _, samples = photographs
    network = Placed()
    judged([EnsembleMember(network, mean_subtracted(COLOUR))], samples, name)
    assert sum(map(len, network.seen)) == parse_protocol(name).views * len(samples)
    assert max(map(len, network.seen)) <= EVAL_VIEWS == 64
    if parse_protocol(name).views < 10 and "dense" not in name:  # pictures share a batch
        assert len(network.seen) == 1


@pytest.mark.parametrize(("name", "views"), [("10-crop-24-of-32", 10), ("150-crop-24-of-32-37-56", 150)])
def test_views_of_a_picture_are_all_different_and_half_of_them_mirror_images(name, views):
    network = Placed()
    samples = Files([pillow_protocols.png(pillow_protocols.picture(100, 90))], [0])
    judged([EnsembleMember(network, mean_subtracted(COLOUR))], samples, name)
    shown = torch.cat(network.seen)
    assert len(shown) == len(torch.unique(shown, dim=0)) == views
    assert torch.equal(torch.unique(shown, dim=0), torch.unique(shown.flip(3), dim=0))


def test_larger_views_are_shown_fewer_at_a_time(monkeypatch, photographs):
    _, samples = photographs
    monkeypatch.setattr(under_test, "EVAL_PIXELS", 10 * 24**2)
    network = Placed()
    whole = judged([EnsembleMember(network, mean_subtracted(COLOUR))], samples, "50-crop-24-of-32")
    assert max(map(len, network.seen)) == 10
    monkeypatch.undo()
    assert judged(
        [EnsembleMember(network, mean_subtracted(COLOUR))], samples, "50-crop-24-of-32"
    ).loss == pytest.approx(whole.loss, rel=1e-6)
    assert max(map(len, network.seen)) == 50


@pytest.mark.parametrize("name", ["1-crop-24-of-32", "144-crop-24-of-32-36-40-44", "dense-of-24-37"])
def test_the_numbers_are_the_same_bits_for_any_number_of_threads(photographs, name):
    _, samples = photographs
    members = [EnsembleMember(Placed(), mean_subtracted(COLOUR))]
    assert len({judged(members, samples, name, threads=threads) for threads in (0, 1, 2, 5)}) == 1


# --- exactly once ------------------------------------------------------------------------------------------


class Numbers(nn.Module):
    """Reads a picture's number from its one colour."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        red, green, _ = (255 * x[:, :, 0, 0]).round().long().T
        number = red + 256 * green
        self.seen += number.tolist()
        return F.one_hot(number % 7, 10).float()  # right for six of seven, if the label is number % 7 but for 0


def numbered(count):
    pixels = [np.full((8, 9, 3), (i % 256, i // 256, 0), dtype=np.uint8) for i in range(count)]
    return Files([pillow_protocols.png(image) for image in pixels], [9 if i % 7 == 0 else i % 7 for i in range(count)])


def by_ranks(samples, world, threads):
    network = Numbers()
    member = EnsembleMember(network, fit_normaliser("scale", some(1)))
    parts = [
        judged([member], samples, "1-crop-4-of-8", threads=threads, rank=rank, world=world)
        for rank in range(world)
    ]
    return parts, network.seen


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("count", [1, 7, 499])
def test_each_picture_is_counted_once_on_any_number_of_ranks_and_threads(monkeypatch, count, batch, world):
    monkeypatch.setattr(under_test, "EVAL_VIEWS", batch)
    samples = numbered(count)
    for threads in (0, 2):
        parts, seen = by_ranks(samples, world, threads)
        assert sorted(seen) == list(range(count))
        assert [part.images for part in parts] == [len(range(rank, count, world)) for rank in range(world)]
        found = combine_counts(parts, count)
        wrong = len(range(0, count, 7))
        assert (found.images, found.wrong1, found.wrong5) == (count, wrong, wrong)  # the others tie, and are wrong
        right_one, wrong_one = math.log(math.e + 9) - 1, math.log(math.e + 9)
        assert found.loss == pytest.approx((wrong * wrong_one + (count - wrong) * right_one) / count, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_each_of_10_000_pictures_is_counted_once(monkeypatch, world, threads, batch):
    monkeypatch.setattr(under_test, "EVAL_VIEWS", batch)
    parts, seen = by_ranks(numbered(10_000), world, threads)
    assert sorted(seen) == list(range(10_000))
    assert combine_counts(parts, 10_000).wrong1 == len(range(0, 10_000, 7))


@pytest.mark.parametrize("expected", [13, 15])
def test_pictures_that_are_not_the_manifests_are_no_result(photographs, expected):
    _, samples = photographs
    with pytest.raises(RuntimeError, match=f"14 images were evaluated where the manifest counts {expected}"):
        judged([EnsembleMember(Placed(), mean_subtracted(COLOUR))], samples, "1-crop-24-of-32", expected=expected)


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("change", [lambda read: read[:-1], lambda read: [*read, read[0]]], ids=["less", "twice"])
def test_a_picture_that_was_not_read_or_was_read_twice_is_no_result(monkeypatch, photographs, change, threads):
    _, samples = photographs
    monkeypatch.setattr(samples, "read", lambda indices: change([samples.contents[i] for i in indices]))
    with pytest.raises(RuntimeError, match=r"1[35] pictures came where 14 were read: no result"):
        judged([EnsembleMember(Placed(), mean_subtracted(COLOUR))], samples, "1-crop-24-of-32", threads=threads)


def test_ranks_together_are_refused_when_one_is_missing_or_counted_twice():
    parts, _ = by_ranks(numbered(8), 2, 0)
    assert combine_counts(parts, 8).images == combine_counts(parts[::-1], 8).images == 8
    for wrong in ([parts[0]], [parts[0], parts[0]], [*parts, parts[1]], []):  # two of four are eight, too
        with pytest.raises(RuntimeError, match=r"should be all there, each of them once: no result"):
            combine_counts(wrong, 8)
    with pytest.raises(RuntimeError, match=r"here 0 of 2, 0 of 3"):
        combine_counts([ErrorCounts(4, 0, 0, 0.1, 0, 2), ErrorCounts(4, 0, 0, 0.1, 0, 3)], 8)
    for expected in (7, 9):
        with pytest.raises(RuntimeError, match=f"8 images were evaluated where the manifest counts {expected}"):
            combine_counts(parts, expected)


def test_a_rank_without_a_picture_has_no_share_in_the_errors():
    parts, _ = by_ranks(numbered(1), 3, 0)
    assert [part.images for part in parts] == [1, 0, 0]
    assert combine_counts(parts, 1) == replace(parts[0], rank=0, world=1)


def test_together_weighs_each_ranks_loss_by_its_images():
    found = combine_counts([ErrorCounts(3, 1, 0, 2.0, 0, 2), ErrorCounts(1, 1, 1, 4.0, 1, 2)], 4)
    assert found == ErrorCounts(4, 2, 1, (3 * 2.0 + 4.0) / 4)


@pytest.mark.parametrize("world", [2, 3, 50])
def test_small_images_too_are_judged_by_ranks_together(network, world):
    images = some(43)
    maker = BatchBuilder(images, normalise=fit_normaliser("scale", images))
    parts = [
        evaluate_batches(
            network,
            evaluation_batches(maker, images.labels, batch_size=10, rank=rank, world=world),
            F.cross_entropy,
            expected=43,
            bf16=False,
            rank=rank,
            world=world,
        )
        for rank in range(world)
    ]
    assert [part.images for part in parts[40:]] == [0] * len(parts[40:])  # no batch of 10 has so many places
    whole = evaluate_batches(network, batches(images, 43), F.cross_entropy, expected=43, bf16=False)
    found = combine_counts(parts, 43)
    assert (found.images, found.wrong1, found.wrong5) == (43, whole.wrong1, whole.wrong5)
    assert found.loss == pytest.approx(whole.loss)


# --- what goes wrong ---------------------------------------------------------------------------------------


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


@pytest.mark.parametrize("threads", [0, 2])
def test_a_broken_picture_is_named_and_not_skipped(threads):
    whole = pillow_protocols.png(pillow_protocols.picture(300, 400))
    samples = Files([whole] * 70 + [whole[: len(whole) // 2]] + [whole] * 29, [0] * 100)
    network = Placed()
    with pytest.raises(DataError, match=r"^test\.tar, sample 70 is not a readable image") as refused:
        judged([EnsembleMember(network, mean_subtracted(COLOUR))], samples, "1-crop-24-of-32", threads=threads)
    assert refused.value.__traceback__  # held, and yet nothing of it runs on
    assert readers() == []
    assert not network.fc.weight.grad


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("expected", [14, 15])
def test_networks_are_in_their_own_mode_again_also_after_a_refusal(photographs, training, expected):
    _, samples = photographs
    networks = [Placed(1).train(training), Placed(2).train(not training)]
    modes = []
    for network in networks:
        network.fc.register_forward_hook(
            lambda module, *_: modes.append((module.training, torch.is_grad_enabled()))
        )
    try:
        judged(
            [EnsembleMember(n, mean_subtracted(COLOUR)) for n in networks],
            samples,
            "1-crop-24-of-32",
            expected=expected,
        )
    except RuntimeError:
        assert expected == 15
    assert set(modes) == {(False, False)}
    assert [network.training for network in networks] == [training, not training]


class WithAuxiliary(Placed):
    """As GoogLeNet: more than one answer, but only in training."""

    def forward(self, x):
        scores = super().forward(x)
        return (scores, scores, scores) if self.training else scores


def test_auxiliary_classifiers_have_no_part_in_it(photographs):
    _, samples = photographs
    found = [
        judged([EnsembleMember(kind().train(), mean_subtracted(COLOUR))], samples, "10-crop-24-of-32")
        for kind in (Placed, WithAuxiliary)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("name", "args", "protocol", "words"),
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
            " places; use larger scales, or crops of a size that it reads",
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
def test_a_network_that_cannot_read_such_views_says_what_can_be_used(name, args, protocol, words):
    network = build(name, args, num_classes=10, in_channels=3)
    samples = Files([pillow_protocols.png(pillow_protocols.picture(24, 36))], [0])
    with pytest.raises(UserError, match=words) as refused:
        judged([EnsembleMember(network, mean_subtracted(COLOUR))], samples, protocol, threads=2)
    assert "\n" not in str(refused.value)
    assert readers() == []


# --- numbers -----------------------------------------------------------------------------------------------


class Sure(Placed):
    """So sure that in float32 all but one probability vanish."""

    def forward(self, x):
        return 3000 * super().forward(x)


def test_a_network_that_is_quite_sure_has_a_finite_loss_and_its_fifth_best_class_counts():
    pixels = pillow_protocols.picture(33, 33)
    network = Sure()
    with torch.no_grad():
        scores = network((torch.from_numpy(pixels) / 255 - torch.tensor(COLOUR)).permute(2, 0, 1)[None].float())[0]
    for place in range(1, 10):
        label = int(scores.argsort(descending=True)[place])
        assert scores.softmax(0)[label] == 0
        samples = Files([pillow_protocols.png(pixels)], [label])
        found = judged([EnsembleMember(network, mean_subtracted(COLOUR))], samples, "1-crop-33-of-33")
        assert (found.wrong1, found.wrong5) == (1, int(place >= 5))
        assert found.loss == pytest.approx(float(scores.max() - scores[label]), rel=1e-4)


def test_in_bf16_the_network_computes_and_the_probabilities_do_not(photographs):
    _, samples = photographs
    dtypes = set()
    network = Placed()
    network.fc.register_forward_hook(lambda _module, _inputs, scores: dtypes.add(scores.dtype))
    found = judged([EnsembleMember(network, mean_subtracted(COLOUR))], samples, "10-crop-24-of-32", bf16=True)
    assert dtypes == {torch.bfloat16}
    plain = judged([EnsembleMember(network, mean_subtracted(COLOUR))], samples, "10-crop-24-of-32")
    assert plain.loss != found.loss == pytest.approx(plain.loss, rel=0.02)  # bfloat16 has three digits


def test_probabilities_of_bf16_scores_are_not_rounded_to_bf16():
    network = Placed()
    scores = []
    network.fc.register_forward_hook(lambda _module, _inputs, output: scores.append(output.double()))
    samples = Files([pillow_protocols.png(pillow_protocols.picture(33, 33))], [3])
    found = judged([EnsembleMember(network, mean_subtracted(COLOUR))], samples, "10-crop-24-of-33", bf16=True)
    assert found.loss == pytest.approx(-math.log(scores[0].softmax(1).mean(0)[3]), rel=1e-12)


def test_single_crops_are_what_evaluate_says_of_the_same_images(network):
    images = some()
    samples = Files([pillow_protocols.png(pixels.numpy()) for pixels in images.pixels], images.labels)
    expected = evaluate_batches(network, batches(images, 43), F.cross_entropy, expected=43, bf16=False)
    found = judged([EnsembleMember(network, fit_normaliser("scale", images))], samples, "1-crop-8-of-8")
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
def test_the_scores_averaged_over_places_are_forwards_where_a_network_ends_in_a_mean_and_a_linear_layer(
    name, args
):
    torch.manual_seed(0)
    network = build(name, args, num_classes=10, in_channels=3).eval()
    pool = next(m for m in network.modules() if isinstance(m, nn.AdaptiveAvgPool2d))
    linear = next(m for m in network.modules() if isinstance(m, nn.Linear))
    maps = []
    pool.register_forward_pre_hook(lambda _module, inputs: maps.append(inputs[0]))
    x = torch.randn(2, 3, 24, 36)
    with torch.no_grad():
        scores = network(x)
        [places] = maps
        at_each = torch.stack([linear(places[:, :, i, j]) for i in range(6) for j in range(9)])
    assert not hasattr(network, "dense")
    assert places.shape[2:] == (6, 9)
    torch.testing.assert_close(scores, at_each.mean(0), atol=1e-5, rtol=1e-5)
    assert at_each.std(0).min() > 0.001
