"""Provenance of a result: commit, locked requirements, library versions, hardware."""

import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

from pipeline.common.environment import env_integer
from pipeline.common.files import file_hash
from pipeline.common.paths import ROOT

CODE_PATHS = ("pipeline", "lightning_modules", "experiments", "pyproject.toml", "requirements.lock")

COMMIT_FILE = "COMMIT"  # in a code copy made for a launch: the commit it is a copy of

SHARING_VARIABLE = "REPRO_RUNS_PER_DEVICE"  # number of runs that share the device of this process, 1 if not set

LIBRARIES = ("torch", "torchvision", "pytorch-lightning", "numpy")


@cache
def commit() -> str:
    """Return the commit of the checkout, with "-dirty" if CODE_PATHS differ from it; "unknown" outside a checkout.

    Untracked files count as a difference: the commit does not contain the network of such a file. A code copy made
    for a launch has no .git folder; its COMMIT_FILE holds the commit.
    """
    if (ROOT / COMMIT_FILE).is_file():
        return (ROOT / COMMIT_FILE).read_text(encoding="utf-8").strip()
    if not (ROOT / "pyproject.toml").is_file():  # an installed package, possibly inside another project's checkout
        return "unknown"
    try:
        head = git("rev-parse", "HEAD")
        return f"{head}-dirty" if git("status", "--porcelain", "--", *CODE_PATHS) else head
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def git(*arguments: str) -> str:
    """Return the output of a git command in the project's folder. Raises CalledProcessError if it fails."""
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@cache
def lock_hash() -> str:
    """Return the hash of requirements.lock, or "installed-" and the hash of the installed distributions."""
    lock = ROOT / "requirements.lock"
    if lock.is_file():
        return file_hash(lock)
    installed = sorted(f"{d.metadata['Name']}=={d.version}" for d in metadata.distributions())
    return "installed-" + hashlib.sha256("\n".join(installed).encode()).hexdigest()[:16]


@cache
def library_versions() -> dict[str, str]:
    """Return the versions of Python and of LIBRARIES."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES}


def runs_per_device() -> int:
    """Return the number of runs that share the device of this process, from SHARING_VARIABLE."""
    return env_integer(SHARING_VARIABLE, 1, minimum=1)


def sharing_text(runs: int) -> str:
    """Return the end of the name of a device that runs share: ', shared by 4 runs'; '' for a single run."""
    return f", shared by {runs} runs" if runs > 1 else ""


@cache
def hardware_name() -> str:
    """Return the name of the training device: the GPU, or the CPU model and its number of cores.

    The name of a device that runs share says so: times on it compare with none on a device of their own.
    """
    return device_name() + sharing_text(runs_per_device())


def device_name() -> str:
    """Return the name of the GPU, or the CPU model and its number of cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"
