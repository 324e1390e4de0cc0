"""Weights files: what is read, what a file is said to be by its first bytes, and that no code runs."""

import argparse
import io
import random
import re
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from pipeline.common.errors import UserError
from pipeline.derive.weights_file import read_weights

STATE = {"conv.weight": torch.arange(600.0).reshape(6, 100), "fc.bias": torch.ones(3)}


def refused(file, text):
    """Expect a one-line UserError that begins with the path."""
    with pytest.raises(UserError) as caught:
        read_weights(file)
    assert str(caught.value).startswith(f"{file} {text}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["w.safetensors", "w.SAFETENSORS", "w.pth", "w.bin", "w"])
@pytest.mark.parametrize("form", ["safetensors", "zip", "pickle"])
def test_the_content_decides_and_not_the_name(tmp_path, name, form):
    file = tmp_path / name
    if form == "safetensors":
        save_file(STATE, file)
    else:
        torch.save(STATE, file, _use_new_zipfile_serialization=form == "zip")
    found = read_weights(file)
    assert set(found) == set(STATE)
    assert all(torch.equal(found[key], STATE[key]) for key in STATE)


class Bomb:
    """Unpickling it prints "boom"."""

    def __reduce__(self):
        return (print, ("boom",))


def test_file_that_would_run_code_is_refused(tmp_path, capfd):
    torch.save({"state_dict": STATE, "bomb": Bomb()}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "contains print, and repro loads nothing but weights; save the state_dict alone")
    assert "boom" not in capfd.readouterr().out


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
    refused(tmp_path / "w.pth", f"contains {class_name}, and repro loads nothing but weights; save the state_dict")


UNREADABLE = "is damaged or not a weights file; give a complete .safetensors file or torch checkpoint"


@pytest.mark.parametrize(
    "content",
    [
        b"no weights",
        b"import torch\nprint(1)\n",
        b"cimport numpy\nas np\n",  # a pickle opcode: imports the global "import numpy.as np"
        b"\xff\xd8\xff\xe0\x00\x10JFIF",
        b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s.",  # {"a": 1} in pickle protocol 4
        b'\x08\x00\x00\x00\x00\x00\x00\x00{"a":1} ',
    ],
)
def test_file_of_an_unknown_format_is_not_called_a_pickle(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    refused(tmp_path / "w.pth", UNREADABLE)


def tar_of(*names):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return stream.getvalue()


def zip_of(*names):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return stream.getvalue()


def npz():
    stream = io.BytesIO()
    np.savez(stream, a=np.zeros(3))
    return stream.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4956208\n"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is empty; copy or download it again"),
        (LFS, "is a pointer of Git LFS and not the weights; fetch them with: git lfs pull"),
        (b"/annex/objects/SHA256E-s4--ab.pth\n", "is a pointer of git-annex and not the weights"),
        (b"\n<!DOCTYPE html>\n<html><title>Sign in</title></html>", "is a web page and not the weights"),
        (b"\xef\xbb\xbf<HTML>", "is a web page and not the weights"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is an answer of a server in XML"),
        (b'{"error": "Repository not found"}', "is JSON and not the weights"),
        (b"\x1f\x8b\x08\0", "is compressed with gzip; unpack it"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, as Keras writes"),
        (tar_of("sys_info", "pickle", "tensors", "storages"), "is in torch's oldest format, a tar archive"),
        (tar_of("model/w.pth"), "is a tar archive; unpack it"),
        (zip_of("w.pth"), "is a zip archive without torch's weights; unpack it"),
        (npz(), "is an archive of NumPy arrays"),
        (b"PK\x03\x04 and no more", "is cut or damaged: the end of the zip archive is missing"),
    ],
)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_what_a_file_is_is_said_from_its_first_bytes(tmp_path, name, content, text):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, text)


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_a_cut_file_is_called_cut(tmp_path, share):
    torch.save(STATE, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(content[: int(share * len(content))])
    refused(tmp_path / "w.pth", "is cut or damaged: the end of the zip archive is missing")
    content = save(STATE)  # 2,412 bytes of values
    (tmp_path / "w.safetensors").write_bytes(content[: int(share * len(content))])
    refused(
        tmp_path / "w.safetensors", f"is cut: it has {int(share * len(content)):,} of at least {len(content):,}"
    )


def test_a_safetensors_file_that_ends_in_its_header_is_cut(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(save(STATE)[:40])
    refused(tmp_path / "w.safetensors", "is cut: it has 40 of at least ")


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch.jit is deprecated
def test_torchscript_file_is_refused_without_warnings(tmp_path, recwarn):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "w.pth")
    recwarn.clear()
    refused(tmp_path / "w.pth", "is a TorchScript program and not a state_dict; if you trust it, save its weights")
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
    expected = re.compile(
        f"{UNREADABLE}|repro loads nothing but weights|contains a |is cut or damaged|is empty"
        "|without torch's weights|is damaged: the checksum of"
    )
    assert [message for message in messages if not expected.search(message)] == []


def test_file_without_read_permission_is_a_user_error(tmp_path, monkeypatch):
    def refuse(self, mode):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "w.pth").write_bytes(b"x")
    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(UserError, match=r"cannot read \S+w.pth: permission denied; fix this and run again$"):
        read_weights(tmp_path / "w.pth")


def test_missing_file_folder_and_file_without_a_dict_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"weights file .*w.pth not found; give a .safetensors or .pth file, or"):
        read_weights(tmp_path / "w.pth")
    refused(tmp_path, "is a folder; give the .safetensors or .pth file in it")
    torch.save([torch.zeros(2)], tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "contains a list, expected a dict of names and weights")
    torch.save({0: torch.zeros(2)}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth", "contains a dict whose keys are not strings, expected a dict of names and weights")


def test_a_changed_byte_of_a_torch_file_is_found_by_its_checksum(tmp_path):
    file = tmp_path / "w.pth"
    torch.save(STATE, file)
    content = bytearray(file.read_bytes())
    place = content.index(STATE["conv.weight"].numpy().tobytes())
    content[place + 1000] ^= 1
    file.write_bytes(content)
    refused(file, "is damaged: the checksum of w/data/0 in it is wrong; copy or download it again")


def test_a_torch_file_without_checksums_is_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert set(read_weights(tmp_path / "w.pth")) == set(STATE)
