"""ILSVRC-2012 ("ImageNet") as downloaded: three archives, read in place and never unpacked.

    ILSVRC2012_img_train.tar      a tar file of 1000 tar files: n01440764.tar, in it n01440764_10026.JPEG, ...
    ILSVRC2012_img_val.tar        ILSVRC2012_val_00000001.JPEG to _00050000.JPEG, which serve as the test part
    ILSVRC2012_devkit_t12.tar.gz  the classes of the validation pictures, by numbers that meta.mat explains

Each must have the published md5. A stand-in (see standin.py) says in STAND-IN.json what its own archives must be,
and is never called ImageNet.
"""

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import tarfile
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.data.images import DataError
from pipeline.data.originals import LARGEST_PICTURE, PARTS, Original, Originals, visible
from pipeline.data.shards import STRANGE
from pipeline.mistakes import sentence

TRAIN = "ILSVRC2012_img_train.tar"
VAL = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
META = "ILSVRC2012_devkit_t12/data/meta.mat"
TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
MARK = "STAND-IN.json"
CHECKED = "archives.json"  # in the cache: the sums that were found
WNIDS = Path(__file__).with_name("imagenet_classes.txt")  # the thousand classes in order

LARGEST_DEVKIT = 1 << 28  # bytes, unpacked
CHUNK = 1 << 23  # bytes read at once when summing
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")  # a file's name and nothing more: no folder, no way up
VAL_PICTURE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
STEM = 23  # letters of a picture's name at most: ILSVRC2012_val_00000001
PICTURE = np.dtype([("label", "<i4"), ("stem", f"S{STEM}"), ("offset", "<u8"), ("size", "<u4")])

Progress = Callable[[int, int], None]  # bytes done, bytes in all
Span = tuple[str, int, int]  # a member's name, where its content begins in the outermost file, its bytes


class Sum(BaseModel):
    """What an archive must be."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    md5: str = Field(pattern=r"^[0-9a-f]{32}$")
    bytes: int | None = None  # None: not known


class StandIn(BaseModel):
    """STAND-IN.json: that these archives are not ImageNet's, how they were made, and what they must be."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    format: Literal[1]
    what: str
    classes: int = Field(ge=1, le=1000)
    train: int  # pictures a class
    test: int
    side: int  # pixels
    seed: int
    numbers: tuple[int, ...]  # the devkit's number of each class; meta.mat says the same
    files: dict[str, Sum]  # empty for class folders

    def to_json(self) -> str:
        """As it stands in the file."""
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"


# md5 as in torchvision.datasets.imagenet.ARCHIVE_META; bytes as image-net.org sends them
PUBLISHED = {
    TRAIN: Sum(md5="1d675b47d978889d74fa0da5fadfb00e", bytes=147_897_477_120),
    VAL: Sum(md5="29b22e2961454d5413ddabcf34fc5622", bytes=6_744_924_160),
    DEVKIT: Sum(md5="fa75699e90414af021442c21a62c3abf"),
}


@dataclass(frozen=True)
class Archives:
    """A folder with some of the three, and what they must be."""

    folder: Path
    stand_in: StandIn | None

    @property
    def sums(self) -> dict[str, Sum]:
        """What each archive must be."""
        return self.stand_in.files if self.stand_in else PUBLISHED

    @property
    def remedy(self) -> str:
        """What to do about a damaged one."""
        return "make the stand-in again" if self.stand_in else "download it again from https://image-net.org"

    def path(self, name: str) -> Path:
        """Where an archive lies."""
        return self.folder / name

    def has(self, name: str) -> bool:
        """Whether it is there."""
        return self.path(name).is_file()

    def wrong(self, where: str, what: str) -> DataError:
        """The sentence for a damaged archive."""
        return DataError(f"{self.folder}: {where} {what}; {self.remedy}")


@dataclass
class Meter:
    """Bytes summed and listed so far."""

    progress: Progress
    total: int
    done: int = 0

    def add(self, count: int) -> None:
        """So many more are done."""
        self.done += count
        self.progress(self.done, self.total)


@dataclass(frozen=True)
class Devkit:
    """What the devkit says."""

    classes: tuple[str, ...]  # wnids, in the order of labels
    truth: tuple[int, ...]  # of validation picture i + 1: its label


class Listed(Sequence[Original]):
    """Pictures that lie in one archive; 1.3 million of them take 50 MB."""

    def __init__(self, file: Path, pictures: Sequence[np.ndarray]) -> None:
        """`pictures`: rows of PICTURE, in pieces."""
        self.file, self.rows = str(file), np.concatenate(pictures)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # Sequence's two signatures say more than they help
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        label, stem, offset, size = self.rows[index].item()
        return Original(label, stem.decode("ascii"), self.file, offset, size)


def holds_archives(folder: Path) -> bool:
    """Whether a folder is one for `from_ilsvrc`: pictures are in archives called as ImageNet's are, or nowhere.

    torchvision leaves the devkit beside the train/ and val/ that it unpacks.
    """
    names = {entry.name for entry in visible(folder)}
    return bool(names & {TRAIN, VAL}) or (DEVKIT in names and not names & PARTS.keys())


def from_ilsvrc(folder: Path, *, cache: Path, progress: Progress | None = None) -> Originals:
    """The pictures of the archives in `folder`: both splits, or only that whose archive is there.

    Sorted by class and by name, as they would be read from class folders. `cache`: a folder where sums that were
    found are remembered, so that 138 GB are not summed twice. `progress` counts each archive's bytes twice: when
    they are summed and when their pictures are listed.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; give the one that holds {TRAIN}")
    try:
        archives = Archives(folder, _stand_in(folder))
        return _from_ilsvrc(archives, cache, progress or (lambda done, total: None))
    except OSError as error:
        raise DataError(
            f"{error.filename or folder} cannot be read ({error.strerror or error}); mend that and start again"
        ) from None


def _from_ilsvrc(archives: Archives, cache: Path, progress: Progress) -> Originals:
    folder = archives.folder
    present = [name for name in (DEVKIT, VAL, TRAIN) if archives.has(name)]
    if TRAIN not in present and VAL not in present:
        raise DataError(
            f"{folder} holds neither {TRAIN} nor {VAL}; download them from https://image-net.org,"
            " or make a stand-in with: repro data stand-in imagenet"
        )
    if VAL in present and DEVKIT not in present:
        raise DataError(
            f"{folder} holds {VAL} but not {DEVKIT}, which says what its pictures show; download that too,"
            f" or move {VAL} away"
        )
    for name in present:
        _check_size(archives, name)
    meter = Meter(progress, 2 * sum(archives.path(name).stat().st_size for name in present))
    for name in present:
        _check_sum(archives, name, cache, meter)
    devkit = _devkit(archives, meter) if DEVKIT in present else None
    splits: dict[str, Sequence[Original]] = {}
    classes = devkit.classes if devkit else ()
    if TRAIN in present:
        classes, splits["train"] = _train(archives, devkit, meter)
    if devkit and VAL in present:
        splits["test"] = _val(archives, devkit, meter)
    return Originals(
        name="imagenet-standin" if archives.stand_in else "imagenet",
        source=_source(archives, splits),
        classes=classes,
        splits=splits,
    )


def thousand() -> list[str]:
    """The wnids of the thousand classes, in the order of their labels: sorted, as torchvision has them."""
    return WNIDS.read_text(encoding="ascii").split()


def _source(archives: Archives, splits: dict[str, Sequence[Original]]) -> str:
    parts = []
    if "train" in splits:
        parts.append(TRAIN)
    if "test" in splits:
        parts.append(
            f"{VAL} with the classes of {DEVKIT} (the {len(splits['test']):,} validation images are the test part)"
        )
    made = archives.stand_in
    begins = f"a stand-in for ILSVRC-2012, generated with seed {made.seed}" if made else "ILSVRC-2012"
    return f"{begins}: {' and '.join(parts)}"


# --- whether they are what they should be ----------------------------------------------------------------------


def _stand_in(folder: Path) -> StandIn | None:
    """What STAND-IN.json says, if there is one."""
    file = folder / MARK
    if not file.exists():
        return None
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        found = StandIn.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        raise DataError(f"{file}: {sentence(error, StandIn, raw)}; make the stand-in again") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}); make the stand-in again") from None
    if len(found.numbers) != found.classes:
        raise DataError(
            f"{file} numbers {len(found.numbers)} classes where it says that there are {found.classes};"
            " make the stand-in again"
        )
    return found


def _check_size(archives: Archives, name: str) -> None:
    """Raise DataError unless an archive is known and has the size that it should."""
    expected = archives.sums.get(name)
    if expected is None:
        raise DataError(
            f"{archives.folder}: {MARK} does not know {name}; keep other archives in a folder of their own"
        )
    size = archives.path(name).stat().st_size
    if expected.bytes not in (None, size):
        raise archives.wrong(name, f"has {size:,} bytes where it should have {expected.bytes:,}")


def _check_sum(archives: Archives, name: str, cache: Path, meter: Meter) -> None:
    """Raise DataError unless an archive has the md5 that it should."""
    found, expected = _md5(archives.path(name), cache, meter), archives.sums[name].md5
    if found != expected:
        raise archives.wrong(name, f"is damaged or another file: its md5 is {found} where it should be {expected}")


def _md5(file: Path, cache: Path, meter: Meter) -> str:
    """The md5 of a file: remembered, if path, size and times are those that it was found for."""
    stat = file.stat()
    stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    key, notes = str(file.resolve()), cache / CHECKED
    known = _notes(notes).get(key)
    if isinstance(known, list) and known[:-1] == stamp and isinstance(known[-1], str):
        meter.add(stat.st_size)
        return known[-1]
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            digest.update(chunk)
            meter.add(len(chunk))
    temporary = notes.with_name(f".{notes.name}.{uuid.uuid4().hex}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        temporary.write_text(
            json.dumps(_notes(notes) | {key: [*stamp, digest.hexdigest()]}, indent=1), encoding="utf-8"
        )
        temporary.replace(notes)
    except OSError:  # a read-only or full disk: only the next call's speed is lost
        with contextlib.suppress(OSError):
            temporary.unlink()
    return digest.hexdigest()


def _notes(file: Path) -> dict[str, object]:
    """The sums remembered; none where they cannot be read."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# --- the devkit ------------------------------------------------------------------------------------------------


def _devkit(archives: Archives, meter: Meter) -> Devkit:
    """The classes and the validation pictures' labels. The devkit's own numbers (ILSVRC2012_ID, 1 to 1000) follow
    another order than labels do, so each goes through its wnid."""
    files = _devkit_files(archives)
    wnids = _wnids(archives, files[META])
    classes = tuple(wnid for wnid in thousand() if wnid in wnids.values())
    label = {number: classes.index(wnid) for number, wnid in wnids.items()}
    try:
        lines = files[TRUTH].decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise archives.wrong(f"{DEVKIT}, {_short(TRUTH)}", "is no list of numbers") from None
    truth = []
    for place, line in enumerate(lines, start=1):
        number = int(line) if re.fullmatch(r"\s*\d{1,9}\s*", line) else None
        if number not in label:
            raise archives.wrong(
                f"{DEVKIT}, {_short(TRUTH)}, line {place}:",
                f"{line[:40]!r} is not the number of one of the {len(classes)} classes",
            )
        truth.append(label[number])
    meter.add(archives.path(DEVKIT).stat().st_size)
    return Devkit(classes, tuple(truth))


def _devkit_files(archives: Archives) -> dict[str, bytes]:
    """The two files that are needed; the others are not touched."""
    found: dict[str, bytes] = {}
    try:
        with gzip.open(archives.path(DEVKIT)) as zipped:
            content = zipped.read(LARGEST_DEVKIT + 1)
        if len(content) > LARGEST_DEVKIT:
            raise archives.wrong(DEVKIT, f"unpacks to more than {LARGEST_DEVKIT:,} bytes")
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for member in archive:
                if member.name not in (META, TRUTH):
                    continue
                where = f"{DEVKIT}, {_short(member.name)}"
                _check_kind(archives, where, member)
                if member.name in found:
                    raise archives.wrong(where, "is there twice")
                opened = archive.extractfile(member)
                found[member.name] = opened.read() if opened else b""
    except DataError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
        raise archives.wrong(DEVKIT, f"cannot be read ({_said(error)})") from None
    for name in (META, TRUTH):
        if name not in found:
            raise archives.wrong(DEVKIT, f"lacks {_short(name)}")
    return found


def _wnids(archives: Archives, content: bytes) -> dict[int, str]:
    """The devkit's number of each class -> its wnid: of the synsets in meta.mat those without children.

    loadmat crashes, and takes the process along, on some damaged files; so it only ever reads the published one.
    Of a stand-in, STAND-IN.json is believed.
    """
    if archives.stand_in:
        leaves = list(zip(archives.stand_in.numbers, thousand()[: archives.stand_in.classes], strict=True))
        where = MARK
    else:
        leaves, where = _leaves(archives, content), f"{DEVKIT}, {_short(META)}"
    known = set(thousand())
    for number, wnid in leaves:
        if wnid not in known:
            raise archives.wrong(where, f"numbers {wnid[:40]!r} as {number}, which is none of the thousand")
    numbers, wnids = {number for number, _ in leaves}, {wnid for _, wnid in leaves}
    if not len(numbers) == len(wnids) == len(leaves) > 0:
        raise archives.wrong(where, f"does not give each of {len(leaves)} classes a number of its own")
    return dict(leaves)


def _leaves(archives: Archives, content: bytes) -> list[tuple[int, str]]:
    """Number and wnid of the synsets without children in meta.mat."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        loaded = loadmat(io.BytesIO(content), squeeze_me=True, variable_names=["synsets"])
        synsets = np.atleast_1d(loaded["synsets"])
        return [(int(row["ILSVRC2012_ID"]), str(row["WNID"])) for row in synsets if int(row["num_children"]) == 0]
    except (MatReadError, OSError, ValueError, TypeError, KeyError, IndexError, NotImplementedError) as error:
        raise archives.wrong(f"{DEVKIT}, {_short(META)}", f"is no list of synsets ({_said(error)})") from None


def _short(name: str) -> str:
    """ILSVRC2012_devkit_t12/data/meta.mat -> data/meta.mat"""
    return name.partition("/")[2]


def _said(error: BaseException) -> str:
    """An error of a library on one line, or its kind where it says nothing."""
    return " ".join(str(error).split())[:120] or type(error).__name__


# --- the pictures ----------------------------------------------------------------------------------------------


def _train(archives: Archives, devkit: Devkit | None, meter: Meter) -> tuple[tuple[str, ...], Listed]:
    """The classes, and every training picture, in the order of classes and names."""
    path = archives.path(TRAIN)
    size, pictures = path.stat().st_size, []
    known = set(devkit.classes if devkit else thousand())
    with path.open("rb") as opened:
        tars: dict[str, tuple[int, int]] = {}
        for name, offset, length in _members(archives, opened.fileno(), 0, size, TRAIN):
            wnid = name.removesuffix(".tar")
            if wnid == name or wnid not in known:
                raise archives.wrong(f"{TRAIN}, {name}", f"is not the tar file of one of the {len(known)} classes")
            if wnid in tars:
                raise archives.wrong(f"{TRAIN}, {name}", "is there twice")
            tars[wnid] = offset, length
        if not tars:
            raise archives.wrong(TRAIN, "holds no classes")
        classes = devkit.classes if devkit else tuple(sorted(tars))
        for label, wnid in enumerate(classes):
            if wnid not in tars:
                raise archives.wrong(TRAIN, f"has no pictures of class {wnid}, which {DEVKIT} knows")
            offset, length = tars[wnid]
            where = f"{TRAIN}, {wnid}.tar"
            inside = _pictures(archives, opened.fileno(), offset, offset + length, where, f"{wnid}_")
            pictures.append(_rows(inside, [label] * len(inside)))
            meter.add(length)
    meter.add(size - sum(length for _, length in tars.values()))
    return classes, Listed(path, pictures)


def _val(archives: Archives, devkit: Devkit, meter: Meter) -> Listed:
    """Every validation picture, in the order of classes and names."""
    path = archives.path(VAL)
    size = path.stat().st_size
    with path.open("rb") as opened:
        found = _pictures(archives, opened.fileno(), 0, size, VAL, "ILSVRC2012_val_")
    if len(found) != len(devkit.truth):
        raise archives.wrong(
            VAL, f"holds {len(found):,} pictures, but {DEVKIT} says of {len(devkit.truth):,} what they show"
        )
    for number, (name, _, _) in enumerate(found, start=1):
        numbered = VAL_PICTURE.fullmatch(name)
        if not numbered or int(numbered[1]) != number:  # they are sorted, so one that is missing is noticed here
            raise archives.wrong(f"{VAL}, {name}", f"is where ILSVRC2012_val_{number:08}.JPEG should be")
    meter.add(size)
    rows = _rows(found, devkit.truth)
    return Listed(path, [rows[np.argsort(rows["label"], kind="stable")]])  # within a class by name


def _rows(pictures: Sequence[Span], labels: Sequence[int]) -> np.ndarray:
    """Pictures and their labels as rows of PICTURE."""
    stems = [(label, name[:-5], begin, size) for label, (name, begin, size) in zip(labels, pictures, strict=True)]
    return np.array(stems, PICTURE)


def _pictures(archives: Archives, file: int, begin: int, end: int, where: str, prefix: str) -> list[Span]:
    """The pictures of one tar file, sorted by name; each is called as `prefix` says."""
    found: dict[str, Span] = {}
    for name, offset, size in _members(archives, file, begin, end, where):
        if not name.startswith(prefix) or not name.endswith(".JPEG") or len(name) == len(prefix) + 5:
            raise archives.wrong(f"{where}, {name}", f"should be called {prefix}... .JPEG")
        if size > LARGEST_PICTURE:
            raise archives.wrong(f"{where}, {name}", f"has {size:,} bytes, far more than a picture")
        if len(name) > STEM + 5:
            raise archives.wrong(f"{where}, {name}", "has a name that is too long")
        if name in found:
            raise archives.wrong(f"{where}, {name}", "is there twice")
        found[name] = name, offset, size
    if not found:
        raise archives.wrong(where, "holds no pictures")
    return [found[name] for name in sorted(found)]


def _members(archives: Archives, file: int, begin: int, end: int, where: str) -> Iterator[Span]:
    """The members of the tar file that lies in bytes `begin` to `end` of an open file: regular files with plain
    names, none empty, all within; DataError for anything else."""
    at = begin
    while True:
        block = os.pread(file, tarfile.BLOCKSIZE, at) if at + tarfile.BLOCKSIZE <= end else b""
        if block == bytes(tarfile.BLOCKSIZE):
            return
        try:
            head = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            what = f"is damaged at byte {at - begin:,} ({_said(error)})" if block else "is cut off"
            raise archives.wrong(where, what) from None
        name = f"{where}, {head.name!r}"
        _check_kind(archives, name, head)
        if not PLAIN.fullmatch(head.name):
            raise archives.wrong(name, "has a name that could lead elsewhere")
        at += tarfile.BLOCKSIZE
        if head.size <= 0:
            raise archives.wrong(name, "is empty")
        if at + head.size > end:
            raise archives.wrong(name, "is cut off")
        yield head.name, at, head.size
        at += -(-head.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _check_kind(archives: Archives, where: str, member: tarfile.TarInfo) -> None:
    """Raise DataError unless a member is a regular file."""
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise archives.wrong(where, f"is {STRANGE.get(member.type, 'of an unknown kind')} where a file should be")
