"""The manifest and the indexes of a prepared set, written last; the check of a set that is already finished."""

import hashlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.common.files import file_sha256
from pipeline.data.images import DataError
from pipeline.data.prepare.png import image_format
from pipeline.data.prepare.shard_plan import ShardJob, ShardPlan, manifest_settings, require_same_settings
from pipeline.data.prepare.shard_record import read_record
from pipeline.data.prepare.source_images import InMemorySourceImage, SourceImage
from pipeline.data.prepare.workspace import TEMPORARY_SUFFIX, Workspace, explain_os_errors, write_small_file
from pipeline.data.shard_manifest import (
    MANIFEST_NAME,
    ShardInfo,
    ShardManifest,
    SplitManifest,
    content_hash,
    sample_digest,
)
from pipeline.data.shards import INDEX_DTYPE, open_shards
from pipeline.data.store import MissingFileError, Store

ORDER = 'a fixed permutation of the source\'s order: torch.randperm(n, generator=generator(0, "shards"))'


def write_manifest(plan: ShardPlan, workspace: Workspace, check_owner: Callable[[], None]) -> ShardManifest:
    """Write the indexes and then the manifest, from the records of all shards."""
    check_owner()
    splits: dict[Any, SplitManifest] = {name: write_index(plan, name, workspace) for name in plan.split_names()}
    check_owner()
    manifest = ShardManifest(
        format=1,
        name=plan.source.name,
        source=plan.source.source,
        classes=plan.source.classes,
        order=ORDER,
        resized=plan.resize_info,
        splits=splits,
        sha256=content_hash(plan.source.classes, plan.resize_info, splits),
    )
    write_small_file(manifest.to_json().encode(), workspace.folder, workspace.out, MANIFEST_NAME)
    return manifest


def write_index(plan: ShardPlan, split: str, workspace: Workspace) -> SplitManifest:
    """Write the index of a split, and return the split's part of the manifest."""
    folder = workspace.folder
    count = len(plan.source.splits[split])
    shards: list[ShardInfo] = []
    per_class = np.zeros(len(plan.source.classes), np.int64)
    content = hashlib.sha256()
    index = f"{split}.index.npy"
    file = folder / f"{index}{TEMPORARY_SUFFIX}"
    try:
        with explain_os_errors(folder):
            with file.open("wb") as stream:
                header = {
                    "descr": np.lib.format.dtype_to_descr(INDEX_DTYPE),
                    "fortran_order": False,
                    "shape": (count,),
                }
                np.lib.format.write_array_header_1_0(stream, header)
                for number in range(plan.shard_count(split)):
                    record = read_record(folder / ShardJob(split, number, 0, ()).record)
                    if record is None:
                        raise OSError(f"the record of shard {number} of {split} is damaged")
                    shards.append(record.shard)
                    per_class += np.bincount(record.rows["label"], minlength=len(per_class))
                    content.update(record.digests)
                    stream.write(record.rows.tobytes())
                stream.flush()
                os.fsync(stream.fileno())
            index_sha256 = file_sha256(file)
        workspace.out.put(file, index)
    finally:
        file.unlink(missing_ok=True)
    return SplitManifest(
        samples=count,
        per_class=tuple(per_class.tolist()),
        sha256=content.hexdigest(),
        index=index,
        index_sha256=index_sha256,
        shards=tuple(shards),
    )


def finished_manifest(plan: ShardPlan, out: Store) -> ShardManifest | None:
    """Return the manifest at `out`, None if there is none; DataError if it is of another plan or other images.

    Compares classes, counts, labels, and the sizes and times of files, without reading the images of a folder or
    an archive.
    """
    if not out.exists(MANIFEST_NAME):
        return None
    existing = open_shards(out)
    require_same_settings(manifest_settings(existing.manifest), plan.settings(), out, "a finished set", "this set")
    written = out.modified(MANIFEST_NAME) * 1e9
    for name in plan.split_names():
        labels, sizes = (np.array(existing.splits[name].index[key]) for key in ("label", "bytes"))
        content = hashlib.sha256()
        for label, size, image in zip(labels, sizes, plan.images_in_order(name), strict=True):
            length, modified = image.signature()
            same = image.label == label and (plan.short_side is not None or length == size or is_converted(image))
            if isinstance(image, InMemorySourceImage):
                content.update(sample_digest(image.label, image.read()))
            elif modified > written:
                same = False
            if not same:
                raise source_changed(out, image.where)
        in_memory = isinstance(plan.source.splits[name][0], InMemorySourceImage) and plan.short_side is None
        if in_memory and content.hexdigest() != existing.splits[name].split.sha256:
            raise source_changed(out, f"the {name} split of {plan.source.name}")
        for shard in existing.splits[name].split.shards:
            if size_of(out, shard.name) != shard.bytes:
                raise DataError(
                    f"{out} contains a finished set, but {shard.name} is damaged; remove {MANIFEST_NAME} and the"
                    " shards, and run again"
                )
    return existing.manifest


def is_converted(image: SourceImage) -> bool:
    """Return True for an image that is stored as a PNG of its pixels, which has another size than its file."""
    return image_format(image.read()) is None


def size_of(out: Store, name: str) -> int | None:
    """Return the size of a file in bytes, None if it does not exist."""
    try:
        return out.size(name)
    except MissingFileError:
        return None


def source_changed(out: Store, what: str) -> DataError:
    """Return the error for a set that was finished from other images."""
    return DataError(
        f"{out} contains a finished set, but {what} has changed since; use another folder or remove this set"
    )
