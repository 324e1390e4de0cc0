"""Test descriptors of images against a loop over images and views."""

import io

import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.data.jpeg import decode
from pipeline.data.normalise import Normaliser, normalise_crops
from pipeline.data.prefetch import StopRequested
from pipeline.data.views import protocol_views
from pipeline.declare.protocol import parse_protocol
from pipeline.derive import descriptors
from pipeline.derive.descriptors import image_descriptors, join_scales, unit_length
from pipeline.train.evaluate import EnsembleMember
from pipeline.train.inputs import ReadOptions
from tests.support.image_sets import random_image
from tests.support.in_memory_samples import InMemorySamples

CPU = torch.device("cpu")


class Counting(nn.Module):
    """A convolution, its ReLU, and the mean over positions; counts its calls. `dense` has other features."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.calls = nn.Conv2d(3, 6, 5, stride=2), 0

    def forward(self, x):
        self.calls += 1
        return self.conv(x).relu().mean((2, 3))

    def dense(self, x):
        return 2 * self.forward(x)


@pytest.fixture(scope="module")
def samples():
    """Seven images of different sizes, as PNG files."""
    files = []
    for seed in range(7):
        content = io.BytesIO()
        Image.fromarray(random_image(seed)).save(content, "PNG")
        files.append(content.getvalue())
    return InMemorySamples(files)


@pytest.fixture
def member():
    """A network, and a normaliser that subtracts a mean image of 32 x 32 with a colour gradient."""
    mean = torch.linspace(0, 90, 32 * 32 * 3).reshape(32, 32, 3)
    return EnsembleMember(Counting().eval(), Normaliser("raw-mean-image", torch.ones(3), mean, 0.0))


def slow(member, samples, part, short):
    """Descriptors at one scale, image by image and view by view, each mirror image on its own."""
    rows = []
    for index in range(len(samples)):
        views = []
        groups = protocol_views(decode(samples.files[index], ""), part)
        group = groups[part.shorts.index(short)]
        normalise = member.normalise.with_mean_colour() if group.dense else member.normalise
        apply = member.network.dense if group.dense else member.network
        for number in range(len(group.pixels)):
            at = None if group.corners is None else group.corners[number : number + 1]
            x = normalise_crops(normalise, group.pixels[number : number + 1], at, group.frame)
            views += [apply(x)] + ([apply(x.flip(3))] if group.mirror else [])
        rows.append(torch.cat(views).double().mean(0))
    return torch.stack(rows).float()


@pytest.mark.parametrize("view", ["1-crop-28-of-32", "10-crop-28-of-square-32", "dense-of-32-40"])
def test_descriptors_are_means_over_views_of_each_scale(view, samples, member, tmp_path):
    protocol = parse_protocol(view)
    [part] = protocol.parts
    found = image_descriptors(
        member, samples, protocol, folder=tmp_path, name="x", device=CPU, options=ReadOptions(readers=2)
    )
    assert len(found) == len(part.shorts)
    with torch.inference_mode():
        for scale, short in zip(found, part.shorts, strict=True):
            torch.testing.assert_close(scale, slow(member, samples, part, short), rtol=1e-5, atol=1e-5)


def test_scales_are_averaged_or_stacked():
    scales = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 6.0]])]
    assert join_scales(scales, stack=False).tolist() == [[2.0, 4.0]]
    assert join_scales(scales, stack=True).tolist() == [[1.0, 2.0, 3.0, 6.0]]


def test_unit_length_divides_by_the_l2_norm():
    found = unit_length(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_finished_blocks_are_not_computed_again_and_give_the_same_bits(samples, member, tmp_path, monkeypatch):
    monkeypatch.setattr(descriptors, "BLOCK_IMAGES", 3)
    view = parse_protocol("1-crop-28-of-32")
    arguments = {"name": "x", "device": CPU}
    whole = image_descriptors(member, samples, view, folder=tmp_path / "whole", options=ReadOptions(), **arguments)
    calls = member.network.calls
    reports = []

    def stop():
        return len(reports) > 2  # in the third block

    options = ReadOptions(stop=stop, report=reports.append)
    with pytest.raises(StopRequested):
        image_descriptors(member, samples, view, folder=tmp_path / "part", options=options, **arguments)
    assert len(list((tmp_path / "part").iterdir())) == 2
    before = member.network.calls
    again = image_descriptors(member, samples, view, folder=tmp_path / "part", options=ReadOptions(), **arguments)
    assert member.network.calls - before == calls / 3
    assert torch.equal(again[0], whole[0])


def test_a_damaged_block_is_computed_again(samples, member, tmp_path):
    view = parse_protocol("1-crop-28-of-32")
    arguments = {"folder": tmp_path, "name": "x", "device": CPU, "options": ReadOptions()}
    [first] = image_descriptors(member, samples, view, **arguments)
    [file] = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-4])
    [second] = image_descriptors(member, samples, view, **arguments)
    assert torch.equal(first, second)
