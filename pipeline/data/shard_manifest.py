"""The manifest of a sharded data set: classes, counts, sizes and checksums."""

import hashlib
import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.data.images import DataError
from pipeline.data.store import MissingFileError, Store
from pipeline.declare.validation import validation_message

MANIFEST_NAME = "manifest.json"

SPLITS = ("train", "test")

FORBIDDEN_MEMBERS = {  # kinds of tar members other than regular files; no archive or shard may hold them
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.DIRTYPE: "a folder",
}


class FrozenManifestModel(BaseModel):
    """Base of the manifest's parts: immutable, no unknown keys, no conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ShardInfo(FrozenManifestModel):
    """One tar file."""

    name: str = Field(pattern=r"^[a-z]+-\d{5,}\.tar$")  # a file in the manifest's folder, never a path
    bytes: int = Field(ge=0, lt=2**62)
    sha256: str
    samples: int = Field(gt=0)


class SplitManifest(FrozenManifestModel):
    """The training or the test part of a set."""

    samples: int = Field(gt=0)
    per_class: tuple[int, ...]  # samples of each class
    sha256: str  # of the samples' labels and their files' sha256, in order; see sample_digest
    index: str = Field(pattern=r"^[a-z]+\.index\.npy$")
    index_sha256: str
    shards: tuple[ShardInfo, ...]

    @property
    def bytes(self) -> int:
        """Size of all shards together."""
        return sum(shard.bytes for shard in self.shards)


class ResizeInfo(FrozenManifestModel):
    """How images were resized when the shards were made."""

    short_side: int = Field(gt=0)
    interpolation: Literal["bilinear"] = "bilinear"
    quality: int = Field(gt=0, le=100)  # of the JPEG written


class ShardManifest(FrozenManifestModel):
    """The manifest of a prepared set."""

    format: Literal[1]
    name: str
    source: str  # origin
    classes: tuple[str, ...] = Field(min_length=1)
    order: str  # of the samples within the shards
    resized: ResizeInfo | None  # None: the files are the source's bytes, unchanged
    splits: dict[Literal["train", "test"], SplitManifest]
    sha256: str  # content_hash: it does not depend on the size of the shards

    @field_validator("name")
    @classmethod
    def safe_file_name(cls, name: str) -> str:
        """Reject names that are unsafe as file names: figures are named after the set, which may be untrusted."""
        if not name or name[0] == "." or not name.isprintable() or {"/", "\\"} & {*name}:
            raise ValueError(f"{name!r} is not a valid name for a set; prepare the set again")
        return name

    def to_json(self) -> str:
        """Return the text of the manifest file."""
        return with_checksum(self.model_dump(mode="json"))


def with_checksum(values: dict[str, Any]) -> str:
    """Return a manifest's text with a checksum against manual edits and disk errors (not against forgery)."""
    unsigned = {key: value for key, value in values.items() if key != "seal"}
    return json.dumps(unsigned | {"seal": checksum_of(unsigned)}, indent=1) + "\n"


def checksum_of(values: Any) -> str:
    """Return the sha256 of plain JSON values; it does not depend on the order of keys or on white space."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def content_hash(classes: Sequence[str], resized: ResizeInfo | None, splits: Mapping[Any, SplitManifest]) -> str:
    """Return the identity of a set: the sha256 of classes, resizing, and the content of each split."""
    return checksum_of(
        {
            "classes": list(classes),
            "resized": resized.model_dump(mode="json") if resized else None,
            "splits": {name: [split.samples, split.sha256] for name, split in sorted(splits.items())},
        }
    )


def sample_digest(label: int, content: bytes) -> bytes:
    """Return the bytes that a sample contributes to its split's hash."""
    return label.to_bytes(8, "little", signed=True) + hashlib.sha256(content).digest()


def read_manifest(store: Store) -> ShardManifest:
    """Return the manifest of the set in a store; DataError says what is wrong with it."""
    file = f"{store}/{MANIFEST_NAME}"
    try:
        content = store.read(MANIFEST_NAME)
    except MissingFileError:
        raise MissingFileError(f"{file} not found; repro data prepare makes shards and writes it last") from None
    try:
        raw = json.loads(content)
        checksum = raw.pop("seal", None) if isinstance(raw, dict) else None
        manifest = ShardManifest.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        raise DataError(
            f"{file} is not a manifest of shards: {validation_message(error, ShardManifest, raw)}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON ({error}); restore it or prepare the set again") from None
    if checksum != checksum_of(raw):
        raise DataError(f"{file} was edited: its checksum ('seal') does not match its content; restore it")
    if not manifest.splits:
        raise DataError(f"{file} lists no images; prepare the set again")
    if manifest.sha256 != content_hash(manifest.classes, manifest.resized, manifest.splits):
        raise DataError(f"{file} was changed: its sha256 does not match its splits; restore it")
    for name, split in manifest.splits.items():
        counts = sum(split.per_class), sum(shard.samples for shard in split.shards)
        if {*counts, split.samples} != {split.samples} or len(split.per_class) != len(manifest.classes):
            raise DataError(f"{file}: the counts of {name!r} contradict each other; restore it")
    names = [shard.name for split in manifest.splits.values() for shard in split.shards]
    if len({*names}) != len(names):
        raise DataError(f"{file} lists a shard twice; restore it")
    return manifest
