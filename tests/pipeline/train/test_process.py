"""The process that trains depends neither on a batch system nor on Lightning's own environment variables."""

import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from pipeline.common.errors import UserError
from pipeline.common.paths import ROOT
from pipeline.train import process
from pipeline.train.process import allow_tf32, explain_compile_errors, prepare_process
from pipeline.train.ranks import RankGroup
from tests.support.clean_environment import IGNORED
from tests.support.smoke_runs import journal_metrics, smoke_run, stop_after, train_in, weights


@pytest.fixture
def plain_run(finished_run):
    """Folder of a run trained without any of these variables."""
    return finished_run(0)


@pytest.fixture
def srun(tmp_path, monkeypatch):
    """A Slurm installation: an `srun` on PATH."""
    program = tmp_path / "bin" / "srun"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


@pytest.mark.usefixtures("srun")
def test_slurm_on_this_machine_prints_no_warning(tmp_path, capfd):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train_in(tmp_path / "run", smoke_run(), stop=stop_after(1))
    assert not [warning for warning in caught if "srun" in str(warning.message)]
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("srun")
@pytest.mark.parametrize("prefix", ["SLURM_", "OMPI_", "PL_", ""])
def test_variables_of_launchers_and_lightning_change_no_bit(plain_run, tmp_path, monkeypatch, prefix):
    for name, value in IGNORED.items():
        if name.startswith(prefix):
            monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hpc_ckpt_1.ckpt").write_text("not a checkpoint", encoding="utf-8")  # Slurm jobs resume from it
    train_in(tmp_path / "run", smoke_run())
    assert weights(tmp_path / "run") == weights(plain_run)
    assert journal_metrics(tmp_path / "run") == journal_metrics(plain_run)


def test_trainer_arguments_are_removed_from_the_environment(monkeypatch):
    monkeypatch.setenv("PL_TRAINER_MAX_STEPS", "1")
    monkeypatch.setenv("PL_OTHER", "1")
    prepare_process(1)
    assert "PL_TRAINER_MAX_STEPS" not in os.environ
    assert os.environ["PL_OTHER"] == "1"


@pytest.fixture
def flags():
    """Functions that return torch's two flags of TensorFloat-32, which the test may change."""
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    yield lambda: [place.allow_tf32 for place in places]
    for place, value in zip(places, before, strict=True):
        place.allow_tf32 = value


def test_tf32_is_forbidden_unless_declared(tmp_path, monkeypatch, flags):
    """torch allows it in convolutions by default."""
    torch.backends.cudnn.allow_tf32 = True
    train_in(tmp_path, smoke_run(), stop=stop_after(1))
    assert flags() == [False, False]
    monkeypatch.setattr(process, "has_tf32", lambda: True)
    run = smoke_run(changes={"train.precision": "tf32"})
    assert train_in(tmp_path / "tf32", run).precision == "tf32"
    assert flags() == [True, True]


def test_tf32_without_a_gpu_is_a_user_error(tmp_path, monkeypatch, flags):
    monkeypatch.setattr(process, "has_tf32", lambda: False)
    before = flags()
    with pytest.raises(UserError, match=r"^precision tf32 needs an NVIDIA GPU"):
        allow_tf32(True)
    assert flags() == before
    allow_tf32(False)


def test_tf32_on_one_rank_only_is_a_user_error(monkeypatch):
    monkeypatch.setattr(process, "has_tf32", lambda: True)
    monkeypatch.setattr(RankGroup, "any_rank", lambda self, *flags: (True,))
    with pytest.raises(UserError, match="tf32"):
        allow_tf32(True, RankGroup(0, 2))


TRAIN_COMPILED = """
import sys
from pathlib import Path
from pipeline.common.errors import UserError
from pipeline.common.paths import ROOT
from tests.support.smoke_runs import smoke_run, train_in
try:
    print(train_in(Path(sys.argv[1]), smoke_run(changes={"train.compile": True})).compiled)
except UserError as error:
    print(error)
"""


@pytest.mark.slow
def test_damaged_compiler_cache_is_a_user_error(tmp_path):
    """As a crash of the machine while it compiles leaves it."""
    cache = tmp_path / "cache"

    def train(folder):
        words = [sys.executable, "-c", TRAIN_COMPILED, tmp_path / folder]
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache)}
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=True, cwd=ROOT).stdout

    assert train("whole") == "True\n"
    for library in cache.rglob("*.so"):
        library.write_bytes(b"")
    said = train("damaged")
    assert said.startswith(f"torch cannot compile the network: {cache}/")
    assert "file too short; delete its compiler cache (the folder TORCHINDUCTOR_CACHE_DIR" in said


def test_only_errors_of_the_compiler_are_explained(monkeypatch):
    class CompilerError(RuntimeError):
        pass

    monkeypatch.setitem(sys.modules, "torch._dynamo.exc", SimpleNamespace(TorchDynamoException=CompilerError))
    with (
        pytest.raises(UserError, match=r"^torch cannot compile the network: no header; delete"),
        explain_compile_errors(),
    ):
        raise CompilerError("no header\nSet TORCHDYNAMO_VERBOSE=1")
    with pytest.raises(RuntimeError, match=r"^another$"), explain_compile_errors():
        raise RuntimeError("another")
