"""Where a number comes from: commit, locked requirements, library versions, hardware."""

import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

from pipeline.common.paths import ROOT

CODE_PATHS = ("pipeline", "lightning_modules", "experiments", "pyproject.toml", "requirements.lock")

COMMIT_FILE = "COMMIT"  # beside the code of a launch

LIBRARIES = ("torch", "torchvision", "pytorch-lightning", "numpy")


@cache
def commit() -> str:
    """The checkout's commit, "-dirty" where what computes differs from it, "unknown" outside a checkout.

    A new file counts as a difference: a run of a network not yet committed cannot be found by the commit. A copy
    of the code that was made for a launch says in a file what it is a copy of.
    """
    if (ROOT / COMMIT_FILE).is_file():
        return (ROOT / COMMIT_FILE).read_text(encoding="utf-8").strip()
    if not (ROOT / "pyproject.toml").is_file():  # installed, perhaps into an environment inside another checkout
        return "unknown"
    try:
        head = git("rev-parse", "HEAD")
        return f"{head}-dirty" if git("status", "--porcelain", "--", *CODE_PATHS) else head
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def git(*words: str) -> str:
    """What git prints for `words` in the project's folder."""
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@cache
def lock_hash() -> str:
    """Hash of the locked requirements beside the code; of what is installed where there are none."""
    lock = ROOT / "requirements.lock"
    if lock.is_file():
        return hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    installed = sorted(f"{d.metadata['Name']}=={d.version}" for d in metadata.distributions())
    return "installed-" + hashlib.sha256("\n".join(installed).encode()).hexdigest()[:16]


@cache
def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that compute."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES}


@cache
def hardware_name() -> str:
    """The device that trains, for a person: the GPU's name, or the processor and its cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"
