"""Networks, batches and evaluation on a GPU's device without a GPU.

Under FakeTensorMode a tensor has a shape and a device but no values. An operation on tensors of two devices fails
as on a GPU, so a tensor that was left on the CPU is found, unless it is a single number. Gradients need CUDA
itself and are not tested here.
"""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from lightning_modules.classifier import batch_totals
from lightning_modules.networks import build
from lightning_modules.recipe import Batch
from lightning_modules.weights import limit_filters
from pipeline.data import order
from pipeline.data.batches import BatchBuilder, InMemoryFeed, evaluation_batches
from pipeline.data.colour import SHARDED_AUGMENTATIONS, ColourPCA, CropBatchBuilder
from pipeline.data.images import LabelledImages
from pipeline.data.normalise import Normaliser
from pipeline.train.evaluate import evaluate_batches, response_std
from tests.lightning_modules.test_every_network import CASES

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def _fake_tensors() -> Iterator[None]:
    """Make all tensors of a test fake ones."""
    order._cached_permutation.cache_clear()
    with FakeTensorMode():
        yield
    order._cached_permutation.cache_clear()  # fake permutations must not reach other tests


def to_gpu(network: nn.Module) -> nn.Module:
    """Move parameters and buffers as `Module.to` does, which cannot swap fake tensors."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(parameter.detach().to(GPU))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(GPU)
    return network


def images(n: int = 12, channels: int = 3) -> LabelledImages:
    pixels = torch.randint(0, 256, (n, 32, 32, channels), dtype=torch.uint8)
    return LabelledImages(pixels, torch.randint(0, 10, (n,)))


def normaliser(**changes) -> Normaliser:
    return Normaliser(
        **({"name": "test", "scale": torch.ones(3), "shift": torch.zeros(3), "pad_value": 0.0} | changes)
    )


NETWORKS = [pytest.param(name, marks=[pytest.mark.slow] if case.slow else []) for name, case in CASES.items()]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_keeps_its_tensors_on_the_device(name):
    case = CASES[name]
    network = to_gpu(build(name, case.args, num_classes=case.classes, in_channels=case.image[0]))
    for training in (True, False):
        outputs = network.train(training)(torch.randn(2, *case.image, device=GPU))
        for scores in outputs if isinstance(outputs, tuple) else [outputs]:
            assert scores.device.type == "cuda"
    limit_filters(network, 1.0)


def test_a_tensor_left_on_the_cpu_is_found():
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.ones(3)  # neither a parameter nor a buffer

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    with pytest.raises(RuntimeError, match="device"):
        to_gpu(Forgetful())(torch.randn(2, 3, device=GPU))


@pytest.mark.parametrize(
    "augment", [(), ("pad4-crop", "flip"), ("reflect4-crop", "flip"), ("distort",)], ids="+".join
)
@pytest.mark.parametrize("mean_image", [False, True])
def test_training_batches_of_images_in_memory(augment, mean_image):
    shift = torch.zeros(32, 32, 3) if mean_image else torch.zeros(3)
    held = images()
    builder = BatchBuilder(held, normalise=normaliser(shift=shift), augment=augment, device=GPU)
    feed = InMemoryFeed(
        builder, held.labels, seed=0, batch_size=4, start_step=0, stop_step=2, accumulation_steps=2
    )
    found = list(feed)
    assert len(found) == 4
    for batch in found:
        assert batch.images.shape == (2, 3, 32, 32)
        assert batch.images.device.type == batch.labels.device.type == "cuda"


@pytest.mark.parametrize("kind", ["local_contrast", "whitening"])
def test_normalisations_of_whole_images(kind):
    value = True if kind == "local_contrast" else torch.ones(3072, 3072, dtype=torch.float64)
    builder = BatchBuilder(images(), normalise=normaliser(**{kind: value}), pad_to=36, device=GPU)
    assert builder(torch.arange(4)).device.type == "cuda"


def test_batches_of_crops_with_all_augmentations():
    with FakeTensorMode(shape_env=ShapeEnv()):  # the number of flipped images is a symbol
        pca = ColourPCA(torch.ones(3), torch.ones(3, 3))
        builder = CropBatchBuilder(normalise=normaliser(), augment=SHARDED_AUGMENTATIONS, pca=pca, device=GPU)
        pixels = torch.randint(0, 256, (4, 30, 31, 3), dtype=torch.uint8)
        assert builder(pixels, draws=builder.draw(0, 0, 4)).device.type == "cuda"


def test_counts_of_a_training_step():
    scores, labels = torch.randn(4, 10, device=GPU), torch.zeros(4, dtype=torch.int64, device=GPU)
    loss = F.cross_entropy(scores, labels)
    assert batch_totals(scores, labels, loss, loss).device.type == "cuda"


def test_evaluation_reads_its_counts_once_at_the_end():
    """Reading a value waits for the GPU. Fake tensors have none: the evaluation must get to its end before."""
    network, held = (
        to_gpu(build("resnet_cifar", {"depth": 8, "shortcut": "A"}, num_classes=10, in_channels=3)),
        images(),
    )
    builder = BatchBuilder(held, normalise=normaliser(), device=GPU)
    seen = []

    def batches() -> Iterator[Batch]:
        for batch in evaluation_batches(builder, held.labels, batch_size=5):
            seen.append(len(batch.labels))
            yield batch

    with pytest.raises(DataDependentOutputException):
        evaluate_batches(network, batches(), F.cross_entropy, expected=12, bf16=False)
    assert seen == [5, 5, 2]
    seen.clear()
    with pytest.raises(DataDependentOutputException):
        response_std(network, batches())
    assert seen == [5, 5, 2]
