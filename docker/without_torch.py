"""Split a lock file for the CPU image: `python without_torch.py requirements.lock` prints it without torch's CUDA
build, `--torch` prints what is installed instead, from PyTorch's own index of CPU builds: the same versions.
"""

import re
import sys
from pathlib import Path

CUDA = re.compile(r"(torch|torchvision|triton|(nvidia|cuda)-[a-z0-9-]+)==")  # torch alone needs the others


def entries(lock: str) -> list[str]:
    """Each package with its hashes and comments: a line that begins with its name, the indented ones after it."""
    return re.split(r"^(?=\S)", lock, flags=re.MULTILINE)[1:]


def without_torch(lock: str) -> str:
    """The lock without torch, torchvision and what only their CUDA build needs."""
    return "".join(entry for entry in entries(lock) if not CUDA.match(entry))


def torch(lock: str) -> str:
    """torch and torchvision as pinned, a line each; without hashes, since those are of other files."""
    names = [entry.split()[0] for entry in entries(lock) if re.match(r"torch(vision)?==", entry)]
    return "".join(f"{name}\n" for name in names)


if __name__ == "__main__":
    text = Path(sys.argv[-1]).read_text(encoding="utf-8")
    sys.stdout.write(torch(text) if "--torch" in sys.argv else without_torch(text))
