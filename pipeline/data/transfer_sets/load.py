"""Sets for transfers by name: `load_transfer_set("voc2007", Path("data"))`."""

from collections.abc import Callable
from pathlib import Path

from pipeline.data.transfer_sets.caltech import read_caltech101, read_caltech256
from pipeline.data.transfer_sets.images import TransferSet
from pipeline.data.transfer_sets.published import SetArchives, open_archives
from pipeline.data.transfer_sets.voc import read_voc
from pipeline.declare.transfer import published_name

READERS: dict[str, Callable[[SetArchives, Path], TransferSet]] = {
    "caltech101": read_caltech101,
    "caltech256": read_caltech256,
    "voc2007": read_voc,
    "voc2012": read_voc,
}


def load_transfer_set(name: str, root: Path) -> TransferSet:
    """Return a set of declare.transfer.TRANSFER_SETS, or its stand-in, from `root/name`.

    Downloads missing archives. Raises DataError for a set that cannot be downloaded, is damaged, or differs from
    the published one.
    """
    return READERS[published_name(name)](open_archives(name, root), root / ".cache")
