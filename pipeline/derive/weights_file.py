"""Read weights files: torch checkpoints and safetensors, told apart by their content and not by their names."""

import json
import pickle
import re
import struct
import tarfile
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from pipeline.common.errors import UserError

HEAD = 512  # bytes read to tell what a file is
MAX_HEADER = 100_000_000  # bytes of a safetensors header: the limit of the library

ZIP_MAGIC, PICKLE_MAGIC = b"PK\x03\x04", b"\x80"  # first bytes of torch's files
OLDEST_FORMAT = {"pickle", "storages", "tensors"}  # members of the tar files that torch wrote before 2017

OTHER_FORMATS = {  # first bytes -> what the file is and what to do
    b"version https://git-lfs": "is a pointer of Git LFS and not the weights; fetch them with: git lfs pull",
    b"/annex/objects/": "is a pointer of git-annex and not the weights; fetch them with: git annex get",
    b"\x1f\x8b": "is compressed with gzip; unpack it",
    b"\x89HDF": "is an HDF5 file, as Keras writes; convert it to a state_dict of PyTorch",
    b"\x93NUMPY": "is an array of NumPy; give a .safetensors file or torch checkpoint",
    b"<?xml": "is an answer of a server in XML and not the weights, most often an error; download them again",
    b"{": "is JSON and not the weights, most often the answer of a server; download them again",
}
WEB_PAGE = (b"<!doctype html", b"<html", b"<head", b"<!--")

# Class or function that torch refuses to unpickle, in its message: "global: GLOBAL os.system was ...".
REFUSED_PICKLE = re.compile(r"GLOBAL ([\w.]+) ")

# Errors of safetensors and torch for a damaged file or a file of another format.
READ_ERRORS = (
    SafetensorError,
    pickle.UnpicklingError,
    struct.error,
    AssertionError,
    RuntimeError,
    ValueError,
    OSError,
    EOFError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
)


@dataclass(frozen=True)
class SafetensorsHeader:
    """What the header of a safetensors file says of the file."""

    bytes: int  # size of the whole file; of the header alone if the file ends in it


def read_weights(file: Path) -> dict[str, Any]:
    """Return the content of a weights file. Runs no code from the file.

    Raises UserError for a file that is missing, cut, damaged, of another format, or that contains more than
    weights.
    """
    if file.is_dir():
        raise UserError(f"{file} is a folder; give the .safetensors or .pth file in it")
    if not file.is_file():
        raise UserError(f"weights file {file} not found; give a .safetensors or .pth file, or 'torchvision'")
    try:
        with file.open("rb") as opened:
            start = opened.read(HEAD)
        size = file.stat().st_size
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise UserError(f"cannot read {file}: {reason}; fix this and run again") from None
    header = safetensors_header(file, start)
    problem = "" if header else format_problem(file, start, size)
    if header and size < header.bytes:
        problem = f"is cut: it has {size:,} of at least {header.bytes:,} bytes; copy or download it again"
    if problem:
        raise UserError(f"{file} {problem}")
    return _load(file, start, is_safetensors=header is not None)


def _load(file: Path, start: bytes, *, is_safetensors: bool) -> dict[str, Any]:
    """Return the content of a file that is safetensors or whatever torch reads."""
    try:
        if is_safetensors:
            from safetensors.torch import load_file

            return load_file(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about files that it then refuses
            with file.open("rb") as opened:  # by its path, torch would judge a file by its suffix
                state = torch.load(opened, map_location="cpu", weights_only=True)
    except READ_ERRORS as error:  # torch's message advises to load the file anyway, so it is not repeated
        refused = REFUSED_PICKLE.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if refused and start.startswith((ZIP_MAGIC, PICKLE_MAGIC)):
            raise UserError(
                f"{file} contains {refused[1]}, and repro loads nothing but weights; save the state_dict alone"
            ) from None
        raise UserError(
            f"{file} is damaged or not a weights file; give a complete .safetensors file or torch checkpoint"
        ) from None
    if not isinstance(state, dict):
        raise UserError(f"{file} contains a {type(state).__name__}, expected a dict of names and weights")
    if not all(isinstance(name, str) for name in state):
        raise UserError(f"{file} contains a dict whose keys are not strings, expected a dict of names and weights")
    return state


def format_problem(file: Path, start: bytes, size: int) -> str:
    """Return what a file is that torch cannot read, and what to do; "" if it may be a torch checkpoint.

    `start`: its first bytes; `size`: its bytes.
    """
    if not size:
        return "is empty; copy or download it again"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.lower().startswith(WEB_PAGE):
        return "is a web page and not the weights, such as a page of a login or an error; download them again"
    for magic, what in OTHER_FORMATS.items():
        if text.startswith(magic):
            return what
    if start[257:262] == b"ustar":
        return _tar_problem(file)
    return _zip_problem(file) if start.startswith(ZIP_MAGIC) else ""


def _tar_problem(file: Path) -> str:
    """Return what a tar file is: torch's oldest format, or an archive of other files."""
    try:
        with tarfile.open(file, "r:") as archive:
            members = set(archive.getnames())
    except (tarfile.TarError, OSError, EOFError):
        return "is a tar archive that is cut or damaged; download it again"
    if members >= OLDEST_FORMAT:
        return (
            "is in torch's oldest format, a tar archive, which may run code when it is read; if you trust it, read"
            " it with torch.load(..., weights_only=False) and save the state_dict again with torch.save"
        )
    return "is a tar archive; unpack it and give the weights file in it"


def _zip_problem(file: Path) -> str:
    """Return what a zip archive is, unless torch.save has written it."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, struct.error):  # the list is at the end
        return "is cut or damaged: the end of the zip archive is missing; copy or download it again"
    names = {member.partition("/")[2] for member in members}
    if "constants.pkl" in names:
        return (
            "is a TorchScript program and not a state_dict; if you trust it, save its weights with"
            " torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
        )
    if members and all(member.endswith(".npy") for member in members):
        return "is an archive of NumPy arrays; convert it to a state_dict of PyTorch"
    if "data.pkl" not in names:
        return "is a zip archive without torch's weights; unpack it and give the weights file in it"
    return _checksum_problem(file)


def _checksum_problem(file: Path) -> str:
    """Return that a member of torch's zip archive is not what was written, which torch does not check."""
    try:
        with zipfile.ZipFile(file) as archive:
            # Without checksums, an option of torch.save, all of them are 0.
            damaged = archive.testzip() if any(member.CRC for member in archive.infolist()) else None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, struct.error):
        damaged = "a member"
    return f"is damaged: the checksum of {damaged} in it is wrong; copy or download it again" if damaged else ""


def safetensors_header(file: Path, start: bytes) -> SafetensorsHeader | None:
    """Return the header of a safetensors file; None for another format.

    A file begins with the length of its header, 8 bytes little-endian, and the header, which is JSON.
    """
    length = int.from_bytes(start[:8], "little")
    if start[8:9] != b"{" or not 2 <= length <= MAX_HEADER:
        return None
    with file.open("rb") as opened:
        text = opened.read(8 + length)[8:]
    if len(text) < length:
        return SafetensorsHeader(8 + length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        return None
    entries = [entry for entry in header.values() if isinstance(entry, dict)] if isinstance(header, dict) else []
    offsets = [entry["data_offsets"] for entry in entries if isinstance(entry.get("data_offsets"), list)]
    ends = [pair[1] for pair in offsets if len(pair) == 2 and isinstance(pair[1], int)]
    return SafetensorsHeader(8 + length + max(ends, default=0))
