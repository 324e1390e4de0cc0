"""Prepare a set repeatedly, killed with SIGKILL at a later point each time. Run by test_write_shards.py.

    python kill_and_resume.py SOURCE OUT EVERY

Every file opened, renamed or removed below OUT is an event. A child process kills itself before event 0, EVERY,
2 * EVERY, and so on. Every file under its final name must then be complete, and the next process must resume to
the same bytes as an uninterrupted one. Prints the number of kills.
"""

import os
import re
import shutil
import signal
import sys
from pathlib import Path

import webdataset  # noqa: F401 - imported once, before the processes fork

from pipeline.data.prepare.source_folders import source_from_folders
from pipeline.data.prepare.write_shards import prepare_shards
from pipeline.data.store import Store
from tests.support.preparing import file_sums

FINAL_NAME = re.compile(r"manifest\.json|[a-z].*\.(tar|npy|note)")
AUDIT_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")


def run_child(source: Path, out: Path, last: int | None) -> int:
    """Prepare in a child process that is killed before event `last`, and return its status from os.waitpid."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    count = 0

    def watch(event: str, args: tuple[object, ...]) -> None:
        nonlocal count
        if event in AUDIT_EVENTS and str(args[0]).startswith(str(out)):
            if (
                event == "open"
                and FINAL_NAME.fullmatch(Path(str(args[0])).name)
                and int(str(args[2])) & os.O_CREAT
            ):
                os._exit(3)  # a file must get its final name by renaming
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    sys.addaudithook(watch)
    prepare_shards(source_from_folders(source), Store(str(out)), samples=4, workers=2)
    os._exit(0)


def main(source: Path, out: Path, every: int) -> None:
    """Kill and resume until a child ends by itself."""
    whole = out.with_name("whole")
    assert run_child(source, whole, None) == 0
    expected = file_sums(whole)
    for event in range(0, 10_000, every):
        status = run_child(source, out, event)
        if status == 0:
            break
        assert status == signal.SIGKILL
        for name, found in file_sums(out).items() if out.exists() else ():
            assert name.startswith(".") or expected[name] == found, f"event {event}: {name} is incomplete"
        assert run_child(source, out, None) == 0
        assert file_sums(out) == expected, f"event {event}: {file_sums(out)}"
        assert not (out / ".preparing").exists()
        shutil.rmtree(out)
    print(event // every)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
