"""Test importing published weights: which files are read, which weights fit, and what torchvision publishes."""

import argparse
import random
import re
import urllib.error

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from lightning_modules.resnet import resnet_cifar
from pipeline.analyse.catalogue import find_network
from pipeline.common.errors import UserError
from pipeline.derive.import_weights import (
    import_file,
    import_torchvision,
    library_counterparts,
    read_weights,
    state_hash,
)
from tests.support.smoke_runs import smoke_run, train_in


def output(network: nn.Module) -> torch.Tensor:
    """Return the scores of two random images."""
    with torch.no_grad():
        return network.eval()(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


# --- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap", [lambda state: state, lambda state: {"state_dict": state, "epoch": 3}, lambda state: {"model": state}]
)
@pytest.mark.parametrize("prefix", ["", "module.", "network.", "_orig_mod."])
def test_state_dict_in_a_checkpoint_is_found(small_network, small_state, tmp_path, wrap, prefix):
    torch.save(wrap({prefix + name: value for name, value in small_state.items()}), tmp_path / "w.pth")
    imported = import_file(small_network, tmp_path / "w.pth")
    expected = resnet_cifar(depth=8)
    expected.load_state_dict(small_state)
    assert torch.equal(output(imported.network), output(expected))
    assert (imported.weights, imported.differs) == ("w.pth", "")


def test_safetensors_file_is_read(small_network, small_state, tmp_path):
    save_file(small_state, tmp_path / "w.safetensors")
    assert import_file(small_network, tmp_path / "w.safetensors").sha256 == state_hash(small_state)


def test_hash_depends_on_values_not_on_order(small_state):
    first = state_hash(small_state)
    assert state_hash(dict(reversed(small_state.items()))) == first
    small_state["fc.bias"][0] += 1e-6
    assert state_hash(small_state) != first


class Bomb:
    """Unpickling it prints "boom"."""

    def __reduce__(self):
        return (print, ("boom",))


def test_file_that_would_run_code_is_refused(small_network, small_state, tmp_path, capfd):
    torch.save({"state_dict": small_state, "bomb": Bomb()}, tmp_path / "w.pth")
    with pytest.raises(
        UserError, match=r"w.pth contains print, and repro loads nothing but weights; save the state_dict alone"
    ):
        import_file(small_network, tmp_path / "w.pth")
    assert "boom" not in capfd.readouterr().out


UNREADABLE = (
    r"^[^\n]*/w.pth is damaged or not a weights file; give a complete .safetensors file or torch checkpoint$"
)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("value", "class_name"),
    [
        (argparse.Namespace(lr=0.1), "argparse.Namespace"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
)
def test_class_of_a_refused_object_is_named(tmp_path, zipped, value, class_name):
    torch.save({"value": value}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError) as caught:
        read_weights(tmp_path / "w.pth")
    assert str(caught.value) == (
        f"{tmp_path}/w.pth contains {class_name}, and repro loads nothing but weights; save the state_dict alone"
    )


@pytest.mark.parametrize(
    "content",
    [
        b"import torch\nprint(1)\n",
        b"cimport numpy\nas np\n",  # a pickle opcode: imports the global "import numpy.as np"
        b"<!DOCTYPE html><html></html>",
        b"\xff\xd8\xff\xe0\x00\x10JFIF",
        b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s.",  # {"a": 1} in pickle protocol 4
        b"PK\x03\x04 and no more",
    ],
)
def test_file_of_another_format_is_not_called_a_pickle(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(UserError, match=UNREADABLE):
        read_weights(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch.jit is deprecated
def test_torchscript_file_is_refused_without_warnings(tmp_path, recwarn):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "w.pth")
    recwarn.clear()
    with pytest.raises(UserError, match=UNREADABLE):
        read_weights(tmp_path / "w.pth")
    assert not recwarn.list


@pytest.mark.parametrize("zipped", [True, False])
def test_every_damaged_file_is_a_user_error(tmp_path, zipped):
    file, generator = tmp_path / "w.pth", random.Random(0)
    torch.save({"a": torch.zeros(100)}, file, _use_new_zipfile_serialization=zipped)
    content, messages = file.read_bytes(), []
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(generator.choice((1, 3, 20))):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        file.write_bytes(damaged[: generator.choice((len(damaged), generator.randrange(len(damaged))))])
        try:
            read_weights(file)
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > 100
    expected = re.compile(f"{UNREADABLE}|repro loads nothing but weights|contains a ")
    assert [message for message in messages if not expected.search(message)] == []


def test_file_without_read_permission_is_a_user_error(tmp_path, monkeypatch):
    def refuse(self, mode):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "w.pth").write_bytes(b"x")
    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(UserError, match=r"cannot read \S+w.pth: permission denied; fix this and run again$"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("w.pth", b"no weights"),
        ("w.pth", b""),
        ("w.safetensors", b"no weights"),
        ("w.safetensors", b'\x08\x00\x00\x00\x00\x00\x00\x00{"a":1}'),
    ],
)
def test_file_that_is_no_weights_file_is_a_user_error(small_network, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} is damaged or not a weights file"):
        import_file(small_network, tmp_path / name)


def test_missing_file_and_file_without_a_state_dict_are_user_errors(small_network, tmp_path):
    with pytest.raises(UserError, match=r"weights file .*w.pth not found; give a .safetensors or .pth file, or"):
        import_file(small_network, tmp_path / "w.pth")
    torch.save([torch.zeros(2)], tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w.pth contains a list, expected a dict of names and weights"):
        import_file(small_network, tmp_path / "w.pth")
    torch.save({0: torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(
        UserError, match=r"w.pth contains a dict whose keys are not strings, expected a dict of names"
    ):
        import_file(small_network, tmp_path / "w.pth")


def test_network_of_a_run_of_repro_is_refused(small_network, tmp_path):
    train_in(tmp_path / "run", smoke_run())
    with pytest.raises(
        UserError, match=r"network.safetensors belongs to a run of repro, and is not published; its errors"
    ):
        import_file(small_network, tmp_path / "run" / "network.safetensors")


# --- fit -----------------------------------------------------------------------------------------------------


def test_mismatch_of_another_depth_is_named(small_network, tmp_path):
    torch.save(resnet_cifar(depth=14).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError) as caught:
        import_file(small_network, tmp_path / "w.pth")
    assert "do not fit resnet_cifar (depth 8) with our names" in str(caught.value)
    assert "unknown weights: 36, first 'map32.1.conv1.weight'" in str(caught.value)


def test_error_names_the_published_network_that_fits(small_network, torchvision_state, tmp_path):
    torch.save(torchvision_state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"they fit torchvision's resnet18"):
        import_file(small_network, tmp_path / "w.pth")


def test_file_with_the_names_of_torchvision_is_imported(experiments, torchvision_state, tmp_path):
    torch.save(torchvision_state, tmp_path / "w.pth")
    imported = import_file(find_network("resnet-18", experiments), tmp_path / "w.pth")
    expected = torchvision.models.resnet18(weights=None)
    expected.load_state_dict(torchvision_state)
    torch.testing.assert_close(output(imported.network), output(expected), rtol=1e-5, atol=1e-5)


def test_counterparts_may_differ_in_departure_args(experiments):
    (entry, *_) = library_counterparts(find_network("resnet-50", experiments))
    assert (entry.source, entry.model) == ("torchvision", "resnet50")
    assert entry.differs == "stride 2 in the 3x3 of a bottleneck, not in its first 1x1"
    assert [entry.model for entry in library_counterparts(find_network("resnet-18", experiments))] == [
        "resnet18",
        "resnet18",
    ]
    assert library_counterparts(find_network("plain-34", experiments)) == []
    assert library_counterparts(find_network("alexnet", experiments)) == []


# --- torchvision ---------------------------------------------------------------------------------------------


@pytest.fixture
def download(monkeypatch, torchvision_state):
    """Replace torchvision's download: `download()` gives `torchvision_state`, `download(error)` raises it."""

    def replace_download(error: Exception | None = None):
        def get_state_dict(self, **options):
            assert options["check_hash"] is options["weights_only"] is True
            if error:
                raise error
            return torchvision_state

        monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", get_state_dict)

    return replace_download


def test_torchvision_weights_have_the_publishers_protocol_and_error(experiments, download):
    download()
    imported = import_torchvision(find_network("resnet-18", experiments))
    assert imported.weights == "torchvision ResNet18_Weights.IMAGENET1K_V1"
    assert imported.stated_top1_error_pct == pytest.approx(100 - 69.758)
    assert imported.protocol == "1-crop-224-of-256"
    assert imported.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    "error",
    [urllib.error.URLError("no route"), RuntimeError('invalid hash value (expected "f37072fd", got "0000")')],
)
def test_failed_download_is_a_user_error_with_the_address(experiments, download, error):
    download(error)
    with pytest.raises(UserError, match=r"cannot download the weights at https://download.pytorch.org/.*: "):
        import_torchvision(find_network("resnet-18", experiments))


def test_network_that_torchvision_does_not_publish_is_a_user_error(experiments):
    with pytest.raises(UserError, match=r"torchvision publishes no weights for alexnet, only for its densenet121"):
        import_torchvision(find_network("alexnet", experiments))
