"""Atomic writes and file hashes."""

import errno
import hashlib
import os
import stat

import pytest

from pipeline.common import files
from pipeline.common.files import file_hash, file_sha256, file_system_time, write_atomically


def test_write_atomically_replaces_the_content(tmp_path):
    write_atomically(tmp_path / "a", "näh")
    assert (tmp_path / "a").read_bytes() == "näh".encode()
    write_atomically(tmp_path / "a", b"\x00\xff")
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failed_write_keeps_the_old_content_and_leaves_no_temporary_file(tmp_path, monkeypatch):
    write_atomically(tmp_path / "a", "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "a", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_an_interrupted_write_keeps_the_old_content_too(tmp_path, monkeypatch):
    write_atomically(tmp_path / "a", "old")

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_written_file_is_readable_for_everybody(tmp_path):
    write_atomically(tmp_path / "a", "x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none" / "a", "x")


@pytest.mark.parametrize("content", [b"", b"abc", bytes(3_000_000)])
def test_a_file_hash_is_the_beginning_of_its_sha256(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert file_sha256(tmp_path / "a") == expected
    assert file_hash(tmp_path / "a") == expected[:16]


def test_a_file_is_written_where_the_file_system_has_no_permissions(tmp_path, monkeypatch):
    """As on CIFS and exFAT."""

    def refuse(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(files.os, "fchmod", refuse)
    write_atomically(tmp_path / "a", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]


def test_the_time_of_a_file_system_is_that_of_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(files.time, "time", lambda: 1.0)  # this machine's clock is wrong
    before = file_system_time(tmp_path)
    (tmp_path / "a").touch()
    assert 0 <= (tmp_path / "a").stat().st_mtime - before < 60
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert file_system_time(tmp_path / "missing") == 1.0
