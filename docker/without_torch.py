"""Split a lock file for the CPU image.

`python without_torch.py requirements.lock` prints it without torch's CUDA build. With `--torch`, it prints torch
and torchvision in the same versions, to install from PyTorch's index of CPU builds. With `--triton`, it prints the
lock without Triton, the only part of the CUDA build that is not needed where there is no GPU.
"""

import re
import sys
from pathlib import Path

CUDA = re.compile(r"(torch|torchvision|triton|(nvidia|cuda)-[a-z0-9-]+)==")  # only torch needs the others


def entries(lock: str) -> list[str]:
    """Return the entry of each package: the line with its name, and the indented lines after it."""
    return re.split(r"^(?=\S)", lock, flags=re.MULTILINE)[1:]


def without_torch(lock: str) -> str:
    """Return the lock without torch, torchvision and the packages that only their CUDA build needs."""
    return "".join(entry for entry in entries(lock) if not CUDA.match(entry))


def without_triton(lock: str) -> str:
    """Return the lock without Triton. torch is not linked against it and imports it only to compile for a GPU."""
    return "".join(entry for entry in entries(lock) if not entry.startswith("triton=="))


def torch(lock: str) -> str:
    """Return a line for torch and torchvision each, pinned, without the hashes: those are of other files."""
    names = [entry.split()[0] for entry in entries(lock) if re.match(r"torch(vision)?==", entry)]
    return "".join(f"{name}\n" for name in names)


if __name__ == "__main__":
    text = Path(sys.argv[-1]).read_text(encoding="utf-8")
    part = {"--torch": torch, "--triton": without_triton}.get(sys.argv[1], without_torch)
    sys.stdout.write(part(text))
