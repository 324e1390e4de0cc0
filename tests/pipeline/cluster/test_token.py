"""The token file: created once, readable by its owner only."""

import errno
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.cluster import token
from pipeline.common import locks
from pipeline.common.errors import UserError
from pipeline.common.paths import ROOT
from tests.support.clusters import cluster_files


def test_a_token_is_created_once_with_256_bits(cluster_home):
    path = token.ensure_token_file()
    text = path.read_text()
    assert path == cluster_files(cluster_home) / "token"
    assert len(bytes.fromhex(text)) == 32
    assert token.ensure_token_file().read_text() == text
    assert {file.name for file in path.parent.iterdir()} == {"token", ".token.lock"}  # no temporary file


def test_a_token_file_has_mode_0600_before_anything_is_written(cluster_home, monkeypatch):
    seen = []
    open_file = os.fdopen

    def record_mode(descriptor, *args):
        seen.append((oct(os.fstat(descriptor).st_mode & 0o777), os.fstat(descriptor).st_size))
        return open_file(descriptor, *args)

    monkeypatch.setattr(os, "fdopen", record_mode)
    before = os.umask(0)  # permits everything
    try:
        path = token.ensure_token_file()
    finally:
        os.umask(before)
    assert seen == [("0o600", 0)]
    assert oct(path.stat().st_mode & 0o777) == "0o600"


def test_concurrent_processes_get_the_same_token(cluster_home):
    with ThreadPoolExecutor(16) as pool:
        tokens = {path.read_text() for path in pool.map(lambda _: token.ensure_token_file(), range(64))}
    assert len(tokens) == 1
    assert len(next(iter(tokens))) == 64


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o666, 0o660])
def test_a_token_file_that_others_can_read_is_refused_without_printing_the_token(cluster_home, mode):
    path = token.ensure_token_file()
    path.chmod(mode)
    with pytest.raises(UserError, match="other users of this machine can read the cluster token") as refused:
        token.ensure_token_file()
    assert str(path) in str(refused.value)
    assert "chmod 600" in str(refused.value)
    assert path.read_text() not in str(refused.value)
    path.chmod(0o600)
    assert token.ensure_token_file() == path


def test_an_empty_token_file_is_refused(cluster_home):
    token.ensure_token_file().write_text("\n")
    with pytest.raises(UserError, match="token is empty; delete the file"):
        token.ensure_token_file()


def test_the_path_in_ray_auth_token_path_is_used(cluster_home, monkeypatch):
    path = cluster_home / "elsewhere"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    with pytest.raises(UserError, match=r"cannot read the cluster token .*elsewhere: no such file"):
        token.check_token_file(token.token_path())
    assert token.ensure_token_file() == path
    assert not (token.cluster_folder() / "token").exists()


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, "node-1.cluster"),
        ({"SLURM_JOB_ID": "7"}, "slurm-7"),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "0"}, "slurm-7"),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"}, "slurm-7-2"),
        ({"SLURM_JOB_ID": "7", "REPRO_CLUSTER": "mine"}, "mine"),
    ],
)
def test_the_name_of_a_cluster(cluster_home, monkeypatch, variables, name):
    monkeypatch.setattr(token.socket, "gethostname", lambda: "node-1.cluster")
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert token.cluster_name() == name
    assert token.cluster_folder() == cluster_home / "cluster" / name


@pytest.mark.parametrize("name", ["..", "a/b", "", " ", "-x"])
def test_a_name_that_is_no_folder_is_refused(cluster_home, monkeypatch, name):
    monkeypatch.setenv("REPRO_CLUSTER", name)
    if not name:  # as if it were not set
        assert token.cluster_name()
        return
    with pytest.raises(UserError, match=r"REPRO_CLUSTER is .*: must be the name of a folder"):
        token.cluster_name()


def test_a_token_is_created_without_hard_links_and_without_flock(cluster_home, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "devices_with_flock", {})
    path = token.ensure_token_file()
    assert len(path.read_text()) == 64
    assert [file.name for file in path.parent.iterdir()] == ["token"]


def test_a_file_system_without_permissions_gets_no_token(cluster_home, monkeypatch):
    """As on CIFS, where each file has the mode of the mount."""
    open_file = os.open

    def with_mode_of_the_mount(path, flags, mode=0o777, **options):
        descriptor = open_file(path, flags, mode, **options)
        if flags & os.O_CREAT:
            os.fchmod(descriptor, 0o755)
        return descriptor

    monkeypatch.setattr(os, "open", with_mode_of_the_mount)
    with pytest.raises(UserError) as refused:
        token.ensure_token_file()
    assert f"the file system of {token.cluster_folder()} has no permissions" in str(refused.value)
    assert "set RAY_AUTH_TOKEN_PATH" in str(refused.value)
    assert [file.name for file in token.cluster_folder().iterdir() if "lock" not in file.name] == []


@pytest.mark.parametrize("restarts", [None, "", "0", "1", "12"])
def test_the_slurm_script_names_the_cluster_as_its_commands_do(monkeypatch, restarts):
    variables = {"SLURM_JOB_ID": "7"} | ({} if restarts is None else {"SLURM_RESTART_COUNT": restarts})
    script = (ROOT / "docker" / "slurm" / "repro.sbatch").read_text(encoding="utf-8")
    lines = [
        line for line in script.splitlines() if re.match(r"restarts=|(export |.*\|\| )REPRO_CLUSTER\+?=", line)
    ]
    argv = ["bash", "-c", "\n".join(["set -euo pipefail", *lines, 'echo "$REPRO_CLUSTER"'])]
    named = subprocess.run(argv, env=variables, capture_output=True, text=True, check=True).stdout.strip()
    monkeypatch.delenv("REPRO_CLUSTER", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert named == token.cluster_name()
