"""Prepares a set again and again, killed with SIGKILL a step later each time; run as a program by test_prepare.py.

    python killing.py SOURCE OUT EVERY

Every file opened, renamed or removed below OUT is a step. Before every step (every seventh, where EVERY is 7) a
process of its own, which began anew, kills itself; what lies under the shards' names must then be whole, and the
next process must go on to the same bytes as one that nobody disturbed. Prints how often it killed.
"""

import hashlib
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import webdataset  # noqa: F401 - once, before the processes part

from pipeline.data.prepare.source_folders import source_from_folders
from pipeline.data.prepare.write_shards import prepare_shards
from pipeline.data.store import Store

FINAL = re.compile(r"manifest\.json|[a-z].*\.(tar|npy|note)")
STEPS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")


def sums(folder: Path) -> dict[str, str]:
    """The sha256 of every file, hidden ones too."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def child(source: Path, out: Path, last: int | None) -> int:
    """Prepare in a process of its own, killed before step `last`: how it ended, as os.waitpid says."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    step = 0

    def watch(event: str, args: tuple[object, ...]) -> None:
        nonlocal step
        if event in STEPS and str(args[0]).startswith(str(out)):
            if event == "open" and FINAL.fullmatch(Path(str(args[0])).name) and int(str(args[2])) & os.O_CREAT:
                os._exit(3)  # what has its own name came by renaming, whole
            if step == last:
                os.kill(os.getpid(), signal.SIGKILL)
            step += 1

    sys.addaudithook(watch)
    prepare_shards(source_from_folders(source), Store(str(out)), samples=4, workers=2)
    os._exit(0)


def main(source: Path, out: Path, every: int) -> None:
    """All that is said above."""
    whole = out.with_name("whole")
    assert child(source, whole, None) == 0
    expected = sums(whole)
    for step in range(0, 10_000, every):
        ended = child(source, out, step)
        if ended == 0:
            break
        assert ended == signal.SIGKILL
        for name, found in sums(out).items() if out.exists() else ():
            assert name.startswith(".") or expected[name] == found, f"step {step}: {name} is half made"
        assert child(source, out, None) == 0
        assert sums(out) == expected, f"step {step}: {sums(out)}"
        assert not (out / ".preparing").exists()
        shutil.rmtree(out)
    print(step // every)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
