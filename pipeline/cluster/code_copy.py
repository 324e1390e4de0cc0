"""Copy the code that a launch trains with."""

import hashlib
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from pipeline.common.errors import explain_write_errors
from pipeline.common.paths import ROOT, home
from pipeline.common.provenance import COMMIT_FILE, commit

PACKAGES = ("pipeline", "lightning_modules", "experiments")

CODE_SUFFIXES = (".py", ".yaml", ".j2", ".js", ".css", ".txt", ".typed")  # of the files copied from the packages

PROJECT_FILES = ("pyproject.toml", "requirements.lock")


def copy_code(root: Path = ROOT) -> Path:
    """Copy the code below `root` to REPRO_HOME/code/<hash of the content> and return that folder.

    A launch trains with its copy, so later changes to the checkout do not affect waiting runs. The copy appears
    whole or not at all, and is made once for each content.
    """
    files = {str(path.relative_to(root)): path.read_bytes() for path in sorted(code_files(root))}
    files[COMMIT_FILE] = f"{commit()}\n".encode()
    content = hashlib.sha256()
    for name, data in files.items():
        content.update(f"{name}\0{len(data)}\0".encode() + data)
    folder = home() / "code" / content.hexdigest()[:16]
    if folder.is_dir():
        return folder
    with explain_write_errors(home()):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            for name, data in files.items():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                (temporary / name).write_bytes(data)
            with suppress(OSError):  # some file systems, such as CIFS, have no permissions
                temporary.chmod(0o755)  # mkdtemp creates a folder that only its owner can read
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.is_dir():  # otherwise another command finished the same copy first
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def code_files(root: Path) -> list[Path]:
    """Return the files of the packages and the project files below `root`."""
    inside = [
        path
        for package in PACKAGES
        for path in (root / package).rglob("*")
        if path.suffix in CODE_SUFFIXES and path.is_file() and "__pycache__" not in path.parts
    ]
    return inside + [root / name for name in PROJECT_FILES if (root / name).is_file()]
