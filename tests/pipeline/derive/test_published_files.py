"""Publishers' files: the check of torch's cache, and how the publisher of a file tests it."""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import torchvision
from timm.models import get_pretrained_cfg

from lightning_modules.published.catalogue import PUBLISHED_NETWORKS
from pipeline.common.errors import UserError
from pipeline.derive.published_files import (
    check_cached_download,
    find_settings,
    has_published_name,
    name_contradiction,
    torchvision_settings,
)

CONTENT = b"weights"
DIGITS = hashlib.sha256(CONTENT).hexdigest()[:8]
URL = f"https://download.pytorch.org/models/net-{DIGITS}.pth"


def settings_of(file, entries):
    return find_settings(file, hashlib.sha256(file.read_bytes()).hexdigest(), entries)


def entry_of(source, model):
    return next(entry for entry in PUBLISHED_NETWORKS if (entry.source, entry.model) == (source, model))


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """The file for URL in torch's cache, with the published content."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / f"net-{DIGITS}.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    return file


def test_the_published_file_and_a_missing_one_are_accepted(cached):
    check_cached_download(URL)
    cached.unlink()
    check_cached_download(URL)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"other weights", f"its sha256 begins with {hashlib.sha256(b'other weights').hexdigest()[:8]}"),
        (CONTENT[:3], f"its sha256 begins with {hashlib.sha256(CONTENT[:3]).hexdigest()[:8]}"),
        (b"", "it is empty"),
    ],
)
def test_another_file_under_the_published_name_is_refused(cached, content, problem):
    cached.write_bytes(content)
    with pytest.raises(UserError) as caught:
        check_cached_download(URL)
    assert str(caught.value) == (
        f"{cached} is not the file published at {URL}: {problem}; delete it and run again to download it"
    )


def test_a_name_confirms_the_content_by_its_digits(tmp_path):
    for name, expected in ((f"resnet20-{DIGITS}.th", True), ("resnet20-12fca82f.th", False), ("w.pth", False)):
        assert has_published_name(tmp_path / name, hashlib.sha256(CONTENT).hexdigest()) is expected


def test_a_stated_error_needs_the_publishers_file(tmp_path):
    entry = entry_of("pytorch_resnet_cifar10", "resnet20")
    (tmp_path / "resnet20.th").write_bytes(CONTENT)
    assert settings_of(tmp_path / "resnet20.th", [entry]) is None
    (tmp_path / f"resnet20-{DIGITS}.th").write_bytes(CONTENT)
    settings = settings_of(tmp_path / f"resnet20-{DIGITS}.th", [entry])
    assert (settings.stated_top1_error_pct, settings.mean) == (8.27, (0.485, 0.456, 0.406))


def test_torchvisions_second_weights_are_known_by_their_hash(tmp_path, monkeypatch):
    """V2 of ResNet-50 is tested on 224 of 232 pixels, V1 on 224 of 256; the file's name does not matter."""
    v2 = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
    published = SimpleNamespace(url=URL, meta=v2.meta, transforms=v2.transforms)
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda model: [published])
    (tmp_path / "mine.pth").write_bytes(CONTENT)
    settings = settings_of(tmp_path / "mine.pth", [entry_of("torchvision", "resnet50")])
    assert (settings.protocol, settings.stated_top1_error_pct) == (
        "1-crop-224-of-232",
        pytest.approx(100 - 80.858),
    )
    (tmp_path / "mine.pth").write_bytes(b"other")
    assert settings_of(tmp_path / "mine.pth", [entry_of("torchvision", "resnet50")]) is None


def test_inception_v3_gets_the_input_that_torchvisions_network_computes():
    """torchvision normalises as for other networks, and its pretrained network changes that to [-1, 1]."""
    settings = torchvision_settings(
        entry_of("torchvision", "inception_v3"), torchvision.models.Inception_V3_Weights.IMAGENET1K_V1
    )
    pixels = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    theirs = torchvision.models.Inception3.__dict__["_transform_input"](
        SimpleNamespace(transform_input=True),
        torchvision.transforms.functional.normalize(pixels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    )
    ours = torchvision.transforms.functional.normalize(pixels, settings.mean, settings.std)
    torch.testing.assert_close(ours, theirs)
    assert settings.protocol == "1-crop-299-of-342"


@pytest.mark.parametrize(
    "entry", [e for e in PUBLISHED_NETWORKS if e.source == "torchvision"], ids=lambda e: e.model
)
def test_the_usual_protocol_of_torchvision_is_that_of_its_first_weights(entry):
    weights = torchvision.models.get_model_weights(entry.model).IMAGENET1K_V1
    assert torchvision_settings(entry, weights).protocol == entry.protocol


def timm_protocol(about):
    """Return the protocol of timm's own transforms in evaluation."""
    config = timm.data.resolve_data_config(pretrained_cfg=about.to_dict(), use_test_size=True)
    resize, crop = timm.data.create_transform(**config).transforms[:2]
    name = f"1-crop-{crop.size[0]}-of-{resize.size}"
    return name + ("-bicubic" if "bicubic" in str(resize.interpolation).lower() else "")


@pytest.mark.parametrize(
    ("model", "tag", "protocol"),
    [
        ("inception_v4", "tf_in1k", "1-crop-299-of-341-bicubic"),
        ("inception_resnet_v2", "tf_in1k", "1-crop-299-of-333-bicubic"),
        ("inception_v3", "tf_in1k", "1-crop-299-of-341-bicubic"),
    ],
)
def test_the_usual_protocol_of_timms_inceptions_is_timms(model, tag, protocol):
    assert entry_of("timm", model).protocol == protocol == timm_protocol(get_pretrained_cfg(f"{model}.{tag}"))


@pytest.mark.parametrize(
    ("model", "tag"),
    [("resnet50", "a1_in1k"), ("resnet18", "tv_in1k"), ("densenet121", "ra_in1k"), ("inception_v4", "tf_in1k")],
)
def test_timms_config_beside_the_file_gives_protocol_and_normalisation(tmp_path, model, tag):
    about = get_pretrained_cfg(f"{model}.{tag}")
    config = {"architecture": model, "num_classes": 1000, "pretrained_cfg": about.to_dict()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(CONTENT)
    entries = [entry for entry in PUBLISHED_NETWORKS if entry.model == model]
    settings = settings_of(tmp_path / "model.safetensors", entries)
    assert settings.weights == f"timm {model}.{tag}"
    assert settings.protocol == timm_protocol(about)
    assert (settings.mean, settings.std) == (about.mean, about.std)


@pytest.mark.parametrize(
    "config",
    ["not json", "[]", "{}", '{"architecture": "resnet18", "pretrained_cfg": {"interpolation": "bicubic"}}'],
)
def test_another_config_is_ignored(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "w.pth").write_bytes(CONTENT)
    assert settings_of(tmp_path / "w.pth", [entry_of("timm", "resnet18")]) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("squeezenet1_0-b66bff10.pth", "its sha256 begins with 0676ba61, and not with b66bff10 as its name says"),
        ("resnet50-0676ba61.pth", ""),
        ("mine.pth", ""),
    ],
)
def test_a_name_with_the_sha256_of_another_file_is_noticed(name, said):
    found = name_contradiction(Path(name), "0676ba61" + "0" * 56)
    assert found.startswith(said)
    assert bool(found) is bool(said)
