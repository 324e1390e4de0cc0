"""Write the bounding boxes of a prepared set beside its shards, after checking them against its images.

The published annotations of the training images have faults: corners outside of the image or in reverse order,
boxes outside of the image, and annotations of images that are not in the training set (see
process_bounding_boxes.py of TensorFlow's models). Corners are sorted and clipped to the image, as there; boxes
that are then empty, and annotations of unknown images, are left out and counted. In annotations of validation
images and of a stand-in these are errors, and each of their test images must have a box.
"""

import hashlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.boxes import BOX_DTYPE, BOXES_NAME, BoxManifest, BoxSplitManifest, box_file
from pipeline.data.prepare.annotations import AnnotatedBox, Annotation, BoxAnnotations
from pipeline.data.prepare.shard_plan import ShardPlan
from pipeline.data.prepare.workspace import Workspace, write_small_file


@dataclass(frozen=True)
class CheckedBoxes:
    """The boxes of a split, and the counts of faults of its annotations (see `BoxSplitManifest`)."""

    rows: NDArray[Any]  # of BOX_DTYPE, in the order of the samples
    faults: dict[str, int]


def check_boxes(plan: ShardPlan, annotations: BoxAnnotations) -> dict[str, CheckedBoxes]:
    """Return the boxes of each split of a set. Raises DataError for a faulty annotation."""
    return {name: check_split(plan, annotations, name) for name in plan.split_names()}


def write_boxes(boxes: dict[str, CheckedBoxes], source: str, workspace: Workspace, images: str) -> BoxManifest:
    """Write the boxes of the set whose manifest has the sha256 `images`; boxes.json is written last."""
    splits: dict[Any, BoxSplitManifest] = {}
    for name, checked in boxes.items():
        stream = io.BytesIO()
        np.save(stream, checked.rows, allow_pickle=False)
        content, file = stream.getvalue(), box_file(name)
        write_small_file(content, workspace.folder, workspace.out, file)
        splits[name] = BoxSplitManifest(
            boxes=len(checked.rows),
            images=len(np.unique(checked.rows["sample"])),
            file=file,
            sha256=hashlib.sha256(content).hexdigest(),
            **checked.faults,
        )
    manifest = BoxManifest(format=1, images=images, source=source, splits=splits)
    write_small_file(manifest.to_json().encode(), workspace.folder, workspace.out, BOXES_NAME)
    return manifest


def check_split(plan: ShardPlan, annotations: BoxAnnotations, split: str) -> CheckedBoxes:
    """Return the boxes of a split. Raises DataError for a faulty annotation."""
    found, classes = annotations.splits[split], plan.source.classes
    strict = annotations.strict or split == "test"
    rows: list[tuple[float, ...]] = []
    faults = {"clipped": 0, "left_out": 0, "unknown": 0}
    known = set()
    for number, image in enumerate(plan.images_in_order(split)):
        known.add(image.stem)
        annotation, before = found.get(image.stem), len(rows)
        for box in annotation.boxes if annotation else ():
            assert annotation
            corners, clipped = relative_corners(annotation, box)
            problem = box_problem(box, corners, classes[image.label], classes)
            if problem and strict:
                raise annotations.error(split, problem, image.stem)
            faults["left_out"] += bool(problem)
            if not problem:
                faults["clipped"] += clipped
                rows.append((number, *corners))
        if split == "test" and len(rows) == before:
            raise annotations.error(split, "describes no object" if annotation else "is missing", image.stem)
    if unknown := found.keys() - known:
        if strict:
            problem = f"describes an image that is not in the {split} part"
            raise annotations.error(split, problem, min(unknown))
        faults["unknown"] = len(unknown)
    if not rows:
        raise annotations.error(split, "has no boxes of these images")
    return CheckedBoxes(np.array(rows, BOX_DTYPE), faults)


def relative_corners(annotation: Annotation, box: AnnotatedBox) -> tuple[tuple[float, ...], bool]:
    """Return left, top, right and bottom as fractions of the image, and True if the image's border clips them."""
    x = sorted(value / annotation.width for value in (box.left, box.right))
    y = sorted(value / annotation.height for value in (box.top, box.bottom))
    corners = x[0], y[0], x[1], y[1]
    clipped = tuple(min(max(value, 0.0), 1.0) for value in corners)
    return clipped, clipped != corners


def box_problem(box: AnnotatedBox, corners: tuple[float, ...], wnid: str, classes: tuple[str, ...]) -> str:
    """Return why a box cannot be used for an image of class `wnid`; "" if it can."""
    pixels = f"{box.left}, {box.top}, {box.right}, {box.bottom}"
    if box.name != wnid and box.name in classes:
        return f"has a box of class {box.name}, but the image is of class {wnid}"
    if corners[0] >= corners[2] or corners[1] >= corners[3]:
        return f"has an empty box, or one outside of the image: {pixels}"
    return ""


def boxes_text(manifest: BoxManifest) -> str:
    """Return a line about the boxes of a set: counts, and the faults of the annotations."""
    parts = []
    for name, split in manifest.splits.items():
        faults = {
            "clipped to the image": split.clipped,
            "left out": split.left_out,
            "annotations of unknown images": split.unknown,
        }
        found = "".join(f", {count:,} {what}" for what, count in faults.items() if count)
        parts.append(f"{name}: {split.boxes:,} in {split.images:,} images{found}")
    return f"bounding boxes: {'; '.join(parts)}"
