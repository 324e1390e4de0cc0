"""Bounding boxes of the objects in a set in shards, and their coordinates in crops and views of an image.

A set with boxes has, beside its shards,

    boxes.json        counts and checksums, and the sha256 of the images that the boxes belong to
    train.boxes.npy   one row per box, sorted by sample; test.boxes.npy likewise

Corners are fractions of an image's width and height: left, top, right, bottom. So they do not depend on the size
of the image, which the annotators of ImageNet saw in another one.
"""

import hashlib
import io
import json
import tokenize
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from torch import Tensor

from pipeline.data.crops import CropBox
from pipeline.data.images import DataError
from pipeline.data.samples import Samples, SampleSubset
from pipeline.data.shard_manifest import FrozenManifestModel, ShardManifest, checksum_of, with_checksum
from pipeline.data.shards import ShardSet, ShardSplit
from pipeline.data.store import MissingFileError, Store
from pipeline.declare.validation import validation_message

BOXES_NAME = "boxes.json"

BOX_DTYPE = np.dtype([("sample", "<u4"), ("left", "<f8"), ("top", "<f8"), ("right", "<f8"), ("bottom", "<f8")])

Corners = NDArray[np.float64]  # (n, 4): left, top, right, bottom


def box_file(split: str) -> str:
    """Return the name of the file with the boxes of a split."""
    return f"{split}.boxes.npy"


class BoxSplitManifest(FrozenManifestModel):
    """The boxes of one split."""

    boxes: int = Field(gt=0)
    images: int = Field(gt=0)  # images with at least one box
    file: str = Field(pattern=r"^[a-z]+\.boxes\.npy$")
    sha256: str  # of the file
    clipped: int = 0  # boxes that crossed the border of their image
    left_out: int = 0  # annotated boxes outside the image, empty or of another class
    unknown: int = 0  # annotations of images that are not in the set


class BoxManifest(FrozenManifestModel):
    """The content of boxes.json."""

    format: Literal[1]
    images: str  # sha256 of the set's manifest
    source: str  # origin
    splits: dict[Literal["train", "test"], BoxSplitManifest]

    @property
    def sha256(self) -> str:
        """Identity of the images together with their boxes."""
        splits = {name: [split.boxes, split.sha256] for name, split in sorted(self.splits.items())}
        return checksum_of({"images": self.images, "boxes": splits})

    def to_json(self) -> str:
        """Return the text of boxes.json."""
        return with_checksum(self.model_dump(mode="json"))


class BoxedSplit(ShardSplit):
    """The samples of a split that have boxes, renumbered from 0."""

    def __init__(self, split: ShardSplit, rows: NDArray[Any]) -> None:
        """`rows`: of BOX_DTYPE, sorted by sample."""
        self.numbers, first = np.unique(rows["sample"], return_index=True)  # within the whole split
        super().__init__(split.store, split.name, split.split, split.index[self.numbers], split.cache)
        corners = np.stack([rows[name] for name in BOX_DTYPE.names[1:]], axis=1)  # type: ignore[index]
        self.boxes: list[Corners] = np.split(corners, first[1:])

    def where(self, index: int) -> str:
        """Shard and number of a sample, for a message."""
        return super().where(index).replace(f"sample {index} of", f"sample {self.numbers[index]} of")


class BoxedShards(ShardSet):
    """A set in shards with the boxes of its images; it holds only the images that have boxes."""

    def __init__(self, plain: ShardSet, boxes: BoxManifest, rows: dict[str, NDArray[Any]]) -> None:
        splits = {name: BoxedSplit(split, rows[name]) for name, split in plain.splits.items()}
        counts: dict[Any, Any] = {}
        for name, split in plain.manifest.splits.items():
            per_class = np.bincount(splits[name].labels.numpy(), minlength=len(plain.classes)).tolist()
            counts[name] = split.model_copy(update={"samples": len(splits[name]), "per_class": tuple(per_class)})
            splits[name].split = counts[name]
        manifest = plain.manifest.model_copy(update={"splits": counts, "sha256": boxes.sha256})
        super().__init__(plain.store, manifest, dict(splits))
        self.plain = plain  # the set with all images, without boxes


def with_boxes(shards: ShardSet) -> BoxedShards:
    """Return a set with the boxes of its images. Raises DataError if they are missing or of other images."""
    store, manifest = shards.store, read_box_manifest(shards.store, shards.manifest)
    return BoxedShards(
        shards,
        manifest,
        {name: read_rows(store, manifest, name, len(split)) for name, split in shards.splits.items()},
    )


def read_box_manifest(store: Store, images: ShardManifest) -> BoxManifest:
    """Return the content of boxes.json. Raises DataError unless it describes the boxes of `images`."""
    file = f"{store}/{BOXES_NAME}"
    try:
        content = store.read(BOXES_NAME)
    except MissingFileError:
        raise MissingFileError(
            f"{images.name} has no bounding boxes ({file} not found); put the archives of boxes beside those of"
            " the images, and run repro data prepare again"
        ) from None
    try:
        raw = json.loads(content)
        checksum = raw.pop("seal", None) if isinstance(raw, dict) else None
        manifest = BoxManifest.model_validate_json(json.dumps(raw))
    except ValidationError as error:
        raise DataError(
            f"{file}: {validation_message(error, BoxManifest, raw)}; prepare the boxes again"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON ({error}); prepare the boxes again") from None
    if checksum != checksum_of(raw):
        raise DataError(f"{file} was edited: its checksum ('seal') does not match its content; restore it")
    if manifest.images != images.sha256:
        raise DataError(f"{file} describes the boxes of other images than these; prepare the boxes again")
    if missing := images.splits.keys() - manifest.splits.keys():
        raise DataError(f"{file} has no boxes of the {min(missing)} part; prepare the boxes again")
    return manifest


def read_rows(store: Store, manifest: BoxManifest, name: str, samples: int) -> NDArray[Any]:
    """Return the rows of a split's boxes, of BOX_DTYPE. Raises DataError for a missing or damaged file."""
    split = manifest.splits[name]  # type: ignore[index]
    file = f"{store}/{split.file}"
    try:
        content = store.read(split.file)
    except MissingFileError:
        raise DataError(f"{file} not found; prepare the boxes again") from None
    if hashlib.sha256(content).hexdigest() != split.sha256:
        raise DataError(
            f"{file} is damaged: its sha256 differs from that in {BOXES_NAME}; prepare the boxes again"
        )
    try:
        rows: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError, tokenize.TokenError) as error:
        raise DataError(f"{file} is not a list of boxes ({error}); prepare the boxes again") from None
    if problem := rows_problem(rows, split, samples):
        raise DataError(f"{file} {problem}; prepare the boxes again")
    return rows


def rows_problem(rows: NDArray[Any], split: BoxSplitManifest, samples: int) -> str:
    """Return what is wrong with rows of boxes of a split of so many samples; "" if nothing is."""
    if rows.dtype != BOX_DTYPE or rows.shape != (split.boxes,):
        return f"is not a list of {split.boxes:,} boxes"
    numbers = rows["sample"].astype(np.int64)
    if bool((np.diff(numbers) < 0).any()) or int(numbers[-1]) >= samples:
        return f"has boxes of images that are not among the {samples:,} of this part, or not in their order"
    if len(np.unique(numbers)) != split.images:
        return f"has boxes of {len(np.unique(numbers)):,} images, not {split.images:,}"
    inside = (rows["left"] >= 0) & (rows["left"] < rows["right"]) & (rows["right"] <= 1)
    inside &= (rows["top"] >= 0) & (rows["top"] < rows["bottom"]) & (rows["bottom"] <= 1)
    return "" if inside.all() else f"has an empty box, or one outside of its image, in row {int(inside.argmin())}"


def boxed_samples(samples: Samples) -> tuple[BoxedSplit, Tensor]:
    """Return the split that samples are from, and their numbers in it, int64 (N,)."""
    if isinstance(samples, SampleSubset):
        split, numbers = boxed_samples(samples.samples)
        return split, numbers[samples.indices]
    assert isinstance(samples, BoxedSplit)  # `load_training_data` reads boxes only from these
    return samples, torch.arange(len(samples))


def corners_in_crop(corners: Corners, crop: CropBox, size: tuple[int, int], side: int, *, flip: bool) -> Corners:
    """Return corners as fractions of the side of a crop of an image of `size` (height, width): (n, 4) -> (n, 4).

    Boxes are not clipped: parts outside of the crop have fractions below 0 and above 1. `flip`: the crop is
    mirrored left to right.
    """
    (top, left, part_height, part_width), (rows, columns) = crop.box, crop.size
    x = (corners[:, 0::2] * size[1] - left) * (columns / part_width) - crop.crop[1]
    y = (corners[:, 1::2] * size[0] - top) * (rows / part_height) - crop.crop[0]
    x, y = x / side, y / side
    if flip:
        x = 1 - x[:, ::-1]
    return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)


def target_box(corners: Corners) -> Corners:
    """Return one of the boxes in crop coordinates as centre x, centre y, width, height: (n, 4) -> (4,).

    It is the box with the largest area inside the crop; of equal ones, the first.
    """
    inside = corners.clip(0, 1)
    areas = (inside[:, 2] - inside[:, 0]) * (inside[:, 3] - inside[:, 1])
    left, top, right, bottom = corners[int(areas.argmax())]
    return np.array([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top])
