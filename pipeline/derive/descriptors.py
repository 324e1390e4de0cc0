"""Descriptors of images: features of a network, averaged over the views of a test protocol."""

from contextlib import closing
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from pipeline.common.files import write_atomically
from pipeline.data.prefetch import prefetch
from pipeline.data.samples import Samples
from pipeline.declare.protocol import Protocol
from pipeline.declare.transfer import single_scales
from pipeline.track.run_folder import explain_disk_errors
from pipeline.train.evaluate import (
    EnsembleMember,
    ViewStack,
    evaluation_mode,
    forward_scores,
    require_count,
    samples_per_pass,
    view_batches,
    view_stacks,
)
from pipeline.train.inputs import ReadOptions

BLOCK_IMAGES = 256  # images whose descriptors are kept in one file while others are computed


def image_descriptors(
    member: EnsembleMember,
    samples: Samples,
    view: Protocol,
    *,
    folder: Path,
    name: str,
    device: torch.device,
    options: ReadOptions,
) -> list[Tensor]:
    """Return float32 (N, D) descriptors of all samples for each scale of `view`, in order.

    A descriptor is the mean of the features over the views at a scale, mirrored ones included, where `view` has
    them. Those of finished blocks of images are kept in files `<name>-<scale>-<first image>` in `folder`, and are
    not computed again. Raises StopRequested between blocks, DataError for a broken image, and UserError if the
    network cannot read views of this size.
    """
    scales = []
    for number, scale in enumerate(single_scales(view)):
        blocks = []
        for first in range(0, len(samples), BLOCK_IMAGES):
            images = range(first, min(first + BLOCK_IMAGES, len(samples)))
            file = folder / f"{name}-{number}-{first:08d}.safetensors"
            kept = read_block(file, len(images))
            if kept is None:
                options.report(f"computing features by {view.name}: {images.stop:,} of {len(samples):,} images")
                kept = block_descriptors(member, samples, scale, images, device=device, options=options)
                with explain_disk_errors(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                    write_atomically(file, save({"descriptors": kept}))
            blocks.append(kept)
        scales.append(torch.cat(blocks))
    return scales


def read_block(file: Path, count: int) -> Tensor | None:
    """Return the descriptors in a file; None if it does not exist, is damaged, or has another number of images."""
    try:
        kept = load_file(file)["descriptors"]
    except (OSError, SafetensorError, KeyError):
        return None
    return kept if len(kept) == count else None


def block_descriptors(
    member: EnsembleMember,
    samples: Samples,
    view: Protocol,
    images: range,
    *,
    device: torch.device,
    options: ReadOptions,
) -> Tensor:
    """Return float32 (N, D) descriptors of the samples `images`, at the single scale of `view`."""
    size = samples_per_pass(view)
    jobs = [images[start : start + size] for start in range(0, len(images), size)]

    def read(job: range) -> list[ViewStack]:
        return view_stacks(samples, view, job)

    found: list[Tensor] = []
    work = prefetch(jobs, read, threads=options.readers, depth=2 * options.readers, stop=options.stop)
    with evaluation_mode(member.network), closing(work) as ready:
        for job, stacks in zip(jobs, ready, strict=True):
            order = [index for stack in stacks for index in stack.images]
            features = torch.cat([mean_features(member, stack, view.name, device) for stack in stacks])
            require_count(len(features), len(job))
            found.append(features[torch.tensor(order).argsort()])
    return torch.cat(found)


def mean_features(member: EnsembleMember, stack: ViewStack, name: str, device: torch.device) -> Tensor:
    """Return the features of each image of a stack, averaged over its views and their mirror images: (N, D)."""
    first = stack.groups[0]
    by_view = []
    for x in view_batches(member, stack, device):
        features = forward_scores(member.network, x, first.dense, name, bf16=False)
        by_view.append(features.double().unflatten(0, (1 + first.mirror, -1)).mean(0))
    views: Tensor = torch.cat(by_view)  # (views of all images, D)
    mean: Tensor = views.unflatten(0, (len(stack.groups), -1)).mean(1)
    return mean.float().cpu()


def join_scales(descriptors: list[Tensor], *, stack: bool) -> Tensor:
    """Return the descriptors of several scales as one: side by side, or their mean. [(N, D)] -> (N, D')."""
    return torch.cat(descriptors, 1) if stack else torch.stack(descriptors).mean(0)


def unit_length(descriptors: Tensor) -> Tensor:
    """Return (N, D) descriptors divided by their L2 norms; one of zeros stays as it is."""
    return torch.nn.functional.normalize(descriptors, dim=1)
