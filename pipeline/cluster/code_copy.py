"""Copy the code that a launch trains with."""

import hashlib
import shutil
import tempfile
from pathlib import Path

from pipeline.common.errors import explain_write_errors
from pipeline.common.paths import ROOT, home
from pipeline.common.provenance import COMMIT_FILE, commit

PACKAGES = ("pipeline", "lightning_modules", "experiments")

CODE_SUFFIXES = (".py", ".yaml", ".j2", ".txt")  # of the files that the packages consist of

PROJECT_FILES = ("pyproject.toml", "requirements.lock")


def copy_code(root: Path = ROOT) -> Path:
    """A copy of the code below home()/code, named by its content; made once, and whole or not at all.

    What is launched is trained by this copy, whatever becomes of the checkout while it waits.
    """
    files = {str(path.relative_to(root)): path.read_bytes() for path in sorted(code_files(root))}
    files[COMMIT_FILE] = f"{commit()}\n".encode()
    content = hashlib.sha256()
    for name, data in files.items():
        content.update(f"{name}\0{len(data)}\0".encode() + data)
    place = home() / "code" / content.hexdigest()[:16]
    if place.is_dir():
        return place
    with explain_write_errors(home()):
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}-"))
        try:
            for name, data in files.items():
                (beside / name).parent.mkdir(parents=True, exist_ok=True)
                (beside / name).write_bytes(data)
            beside.chmod(0o755)  # a temporary folder is its owner's alone
            try:
                beside.rename(place)
            except OSError:
                if not place.is_dir():  # else: another command was quicker
                    raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return place


def code_files(root: Path) -> list[Path]:
    """All files that the packages consist of, and the project's own beside them."""
    inside = [
        path
        for package in PACKAGES
        for path in (root / package).rglob("*")
        if path.suffix in CODE_SUFFIXES and path.is_file() and "__pycache__" not in path.parts
    ]
    return inside + [root / name for name in PROJECT_FILES if (root / name).is_file()]
