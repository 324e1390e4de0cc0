"""The manifest of a sharded data set: classes, counts, sizes and checksums."""

import hashlib
import json
import tarfile
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.data.images import DataError
from pipeline.data.store import MissingFileError, Store
from pipeline.declare.validation import validation_message

MANIFEST_NAME = "manifest.json"

SPLITS = ("train", "test")

FORBIDDEN_MEMBERS = {  # what a tar file may hold beside regular files, and no archive or shard of ours does
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.DIRTYPE: "a folder",
}


class FrozenManifestModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ShardInfo(FrozenManifestModel):
    """One tar file."""

    name: str = Field(pattern=r"^[a-z]+-\d{5,}\.tar$")  # below the manifest's own folder, never beyond
    bytes: int = Field(ge=0, lt=2**62)
    sha256: str
    samples: int = Field(gt=0)


class SplitManifest(FrozenManifestModel):
    """The training or the test part."""

    samples: int = Field(gt=0)
    per_class: tuple[int, ...]  # samples of each class
    sha256: str  # of the content: each sample's label and its picture's sha256, in order
    index: str = Field(pattern=r"^[a-z]+\.index\.npy$")
    index_sha256: str
    shards: tuple[ShardInfo, ...]

    @property
    def bytes(self) -> int:
        """All shards together."""
        return sum(shard.bytes for shard in self.shards)


class ResizeInfo(FrozenManifestModel):
    """How pictures were changed when the shards were made."""

    short_side: int = Field(gt=0)
    interpolation: Literal["bilinear"] = "bilinear"
    quality: int = Field(gt=0, le=100)  # of the JPEG written


class ShardManifest(FrozenManifestModel):
    """What a prepared set is."""

    format: Literal[1]
    name: str
    source: str  # where it came from
    classes: tuple[str, ...] = Field(min_length=1)
    order: str  # of the samples within the shards
    resized: ResizeInfo | None  # None: the pictures are the source's own bytes
    splits: dict[Literal["train", "test"], SplitManifest]
    sha256: str  # content_hash: the same pictures, whatever the shards' size

    @field_validator("name")
    @classmethod
    def plain(cls, name: str) -> str:
        """Figures are called by it, and sets may come from strangers."""
        if not name or name[0] == "." or not name.isprintable() or {"/", "\\"} & {*name}:
            raise ValueError(f"{name!r} is no name for a set; prepare the set anew")
        return name

    def to_json(self) -> str:
        """As it stands in the file."""
        return with_checksum(self.model_dump(mode="json"))


def with_checksum(values: dict[str, Any]) -> str:
    """A manifest's text, with a hash of all of it: no forger's obstacle, but a hand's, and a broken disk's."""
    bare = {key: value for key, value in values.items() if key != "seal"}
    return json.dumps(bare | {"seal": checksum_of(bare)}, indent=1) + "\n"


def checksum_of(values: Any) -> str:
    """The sha256 of plain values, independent of layout."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def content_hash(classes: Sequence[str], resized: ResizeInfo | None, splits: dict[Any, SplitManifest]) -> str:
    """The identity of a set: classes, what was done to the pictures, and the content of each split."""
    said = {
        "classes": list(classes),
        "resized": resized.model_dump(mode="json") if resized else None,
        "splits": {name: [split.samples, split.sha256] for name, split in sorted(splits.items())},
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def sample_digest(label: int, content: bytes) -> bytes:
    """What a sample adds to its split's hash."""
    return label.to_bytes(8, "little", signed=True) + hashlib.sha256(content).digest()


def read_manifest(where: Store) -> ShardManifest:
    """The manifest of the set at `where`; DataError says what is wrong with it."""
    file = f"{where}/{MANIFEST_NAME}"
    try:
        content = where.read(MANIFEST_NAME)
    except MissingFileError:
        raise MissingFileError(
            f"there is no {file}; shards are made by repro data prepare, which writes it last"
        ) from None
    try:
        raw = json.loads(content)
        seal = raw.pop("seal", None) if isinstance(raw, dict) else None
        manifest = ShardManifest.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        raise DataError(
            f"{file} is no manifest of shards: {validation_message(error, ShardManifest, raw)}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is no JSON ({error}); restore it, or prepare the set anew") from None
    if seal != checksum_of(raw):
        raise DataError(f"{file} was changed by hand: its seal is not that of what it says; restore it")
    if not manifest.splits:
        raise DataError(f"{file} lists no pictures; prepare the set anew")
    if manifest.sha256 != content_hash(manifest.classes, manifest.resized, dict(manifest.splits)):
        raise DataError(f"{file} was changed: its sha256 is not that of what it lists; restore it")
    for name, split in manifest.splits.items():
        counts = sum(split.per_class), sum(shard.samples for shard in split.shards)
        if {*counts, split.samples} != {split.samples} or len(split.per_class) != len(manifest.classes):
            raise DataError(f"{file}: the counts of {name!r} do not fit each other; restore it")
    names = [shard.name for split in manifest.splits.values() for shard in split.shards]
    if len({*names}) != len(names):
        raise DataError(f"{file} lists a shard twice; restore it")
    return manifest
