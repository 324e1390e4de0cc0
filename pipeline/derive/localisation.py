"""Localisation: a box for each of the five most probable classes of an image (VGG, arXiv:1409.1556, appendix A.1).

The networks that predict boxes are applied densely to the image and its mirror image, at their short sides. For
each class, the boxes of all of them are united, merged, and rated by the class scores at their positions, which
the classification networks give for the same windows (see merge_boxes.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.common.errors import UserError
from pipeline.common.words import plural
from pipeline.data.boxes import BoxedShards, Corners
from pipeline.data.normalise import normalise_crops
from pipeline.data.prefetch import prefetch
from pipeline.declare.localisation import LocalisationSpec
from pipeline.declare.protocol import Protocol, parse_protocol
from pipeline.derive.context import DerivedContext, DerivedResult
from pipeline.derive.merge_boxes import Scores, best_merged_box
from pipeline.train.box_data import TrueBoxes, corners_in_image, is_localised
from pipeline.train.evaluate import (
    EnsembleMember,
    ViewStack,
    evaluation_mode,
    log_average,
    samples_per_pass,
    view_stacks,
)
from pipeline.train.inputs import Metrics

BLOCK = 1000  # images whose errors are cached together, so that an interrupted run resumes with the next

TOP = 5  # classes of an image that get a box


@dataclass
class Candidates:
    """Boxes of one class in one image, before they are merged."""

    corners: list[Corners] = field(default_factory=list)  # (n, 4) each, fractions of the image
    scores: list[Scores] = field(default_factory=list)  # (n,) each: class scores at the boxes' positions


@dataclass(frozen=True, eq=False)
class Localiser:
    """The members of a localisation, and how they are applied."""

    spec: LocalisationSpec
    boxes: Sequence[tuple[EnsembleMember, Sequence[int]]]  # networks that predict boxes, with their short sides
    classifiers: Sequence[EnsembleMember]
    device: torch.device
    bf16: bool

    @property
    def labels(self) -> Protocol:
        """The protocol by which the classes are predicted."""
        return parse_protocol(self.spec.labels)

    @property
    def views(self) -> Protocol:
        """A protocol whose views are those that boxes are predicted from."""
        shorts = sorted({short for _, sides in self.boxes for short in sides})
        return parse_protocol(f"dense-of-{'-'.join(map(str, shorts))}")

    @property
    def members(self) -> list[nn.Module]:
        """All networks."""
        return [member.network for member in (*(member for member, _ in self.boxes), *self.classifiers)]

    def top_classes(self, stacks: list[ViewStack]) -> Tensor:
        """Return the most probable classes of each image, int64 (images, 5 or all)."""
        logs = [
            log_average(member, stacks, self.spec.labels, bf16=self.bf16, device=self.device)
            for member in self.classifiers
        ]
        average = torch.stack(logs).logsumexp(0)
        return average.topk(min(TOP, average.shape[1])).indices.cpu()

    def add_candidates(self, stack: ViewStack, candidates: Sequence[dict[int, Candidates]]) -> None:
        """Add the boxes that one stack of views gives to those of its images, class -> boxes."""
        for image, group in zip(stack.images, stack.groups, strict=True):
            pixels = group.pixels.to(self.device)
            size = (pixels.shape[1], pixels.shape[2])
            rating = sum(self.dense(member, "score_map", pixels).softmax(1) for member in self.classifiers)
            assert isinstance(rating, Tensor)
            for member, shorts in self.boxes:
                if min(size) not in shorts:
                    continue
                found = self.dense(member, "box_map", pixels)  # (2, boxes, 4, rows, columns)
                if found.shape[-2:] != rating.shape[-2:]:
                    raise UserError("networks that predict boxes and those that rate them have other positions")
                for label, kept in candidates[image].items():
                    boxes = found[:, 0 if found.shape[1] == 1 else label]
                    kept.corners.append(map_corners(boxes.double().cpu(), size, member.network))
                    scores = rating[:, label] / len(self.classifiers)
                    kept.scores.append(scores.double().flatten().cpu().numpy())

    def dense(self, member: EnsembleMember, method: str, pixels: Tensor) -> Tensor:
        """Return what a network's dense method gives for a view (1, h, w, 3) and its mirror image, as float32.

        Raises UserError if it is not finite: boxes would be merged with ones that mean nothing.
        """
        x = normalise_crops(member.normalise.with_mean_colour(), pixels)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            found: Tensor = getattr(member.network, method)(torch.cat([x, x.flip(3)]))
        if not bool(found.isfinite().all()):
            what = "boxes" if method == "box_map" else "class scores"
            raise UserError(f"a network gives {what} that are not finite; train it again, or leave it out")
        return found.float()


def map_corners(boxes: Tensor, size: tuple[int, int], network: nn.Module) -> Corners:
    """Return corners as fractions of the image, clipped to it: (2, 4, rows, columns) -> (2 rows columns, 4).

    `boxes` holds centre, width and height for each window of the image, resized to `size` (height, width), and for
    each window of its mirror image, whose boxes are mirrored back.
    """
    side, stride = int(network.window), int(network.stride)  # type: ignore[arg-type]
    rows, columns = boxes.shape[-2:]
    offset = stride * np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 2)
    flat = boxes.flatten(2).transpose(1, 2).numpy()  # (2, rows columns, 4)
    half = flat[..., 2:].clip(min=0) / 2
    corners = np.concatenate([flat[..., :2] - half, flat[..., :2] + half], -1)
    plain, mirrored = (corners_in_image(part, size, offset, side) for part in corners)
    mirrored[:, [0, 2]] = 1 - mirrored[:, [2, 0]]
    return np.concatenate([plain, mirrored])


def localise_block(localiser: Localiser, context: DerivedContext, block: range) -> Metrics:
    """Return the number of images in `block`, and of those whose box is wrong: `given`, `top1`, `top5`."""
    assert isinstance(context.images, BoxedShards)
    samples, counts = context.images.test, {"images": 0.0, "given": 0.0, "top1": 0.0, "top5": 0.0}
    true, labels, views, options = TrueBoxes(samples), localiser.labels, localiser.views, context.options
    step = min(samples_per_pass(labels), samples_per_pass(views))
    jobs = [block[start : start + step] for start in range(0, len(block), step)]
    with ExitStack() as exit_stack:
        for network in localiser.members:
            exit_stack.enter_context(evaluation_mode(network))
        work = prefetch(
            jobs,
            lambda job: (view_stacks(samples, labels, job), view_stacks(samples, views, job)),
            threads=options.readers,
            depth=2 * options.readers,
            stop=options.stop,
        )
        for job, (label_stacks, box_stacks) in zip(jobs, exit_stack.enter_context(closing(work)), strict=True):
            top = localiser.top_classes(label_stacks).tolist()
            given = samples.labels[list(job)].tolist()
            candidates = [
                {label: Candidates() for label in (*classes, own)} for classes, own in zip(top, given, strict=True)
            ]
            for stack in box_stacks:
                localiser.add_candidates(stack, candidates)
            for index, classes, own, found in zip(job, top, given, candidates, strict=True):
                right = is_right(found[own], true.corners(index), localiser.spec.merge_overlap)
                counts["images"] += 1
                counts["given"] += not right
                counts["top1"] += not (right and classes[0] == own)
                counts["top5"] += not (right and own in classes)
    return counts


def is_right(candidates: Candidates, true: Corners, merge_overlap: float) -> bool:
    """Return True if the best of the merged boxes overlaps with one of the true ones by more than 0.5."""
    corners, scores = np.concatenate(candidates.corners), np.concatenate(candidates.scores)
    return bool(is_localised(best_merged_box(corners, scores, merge_overlap)[None], true).item())


def run_localisation(context: DerivedContext) -> DerivedResult:
    """Return the localisation errors on the test images: with the class given, and of the best one and five."""
    spec = context.derived.spec
    assert isinstance(spec, LocalisationSpec)
    members = [
        EnsembleMember(network, data.normaliser)
        for network, data in zip(context.networks, context.datasets, strict=True)
    ]
    by_variant = dict(zip(context.derived.member_names, members, strict=True))
    boxes = [(by_variant[name], shorts) for name, shorts in spec.boxes.items()]
    classifiers = [by_variant[name] for name in spec.classes]
    localiser = Localiser(spec, boxes, classifiers, context.device, context.bf16)
    count = len(context.images.test)
    total = {"images": 0.0, "given": 0.0, "top1": 0.0, "top5": 0.0}
    for block in blocks(count):
        name = f"images {block.start} to {block.stop - 1}"
        context.options.report(f"localising {name} of {count:,}")
        found = context.cached_values(name, partial(localise_block, localiser, context, block))
        total = {key: value + found[key] for key, value in total.items()}
    if total["images"] != count:
        raise RuntimeError(f"{total['images']:g} images were evaluated, but the set has {count}: no result")
    metrics = {
        "test/localisation_error_pct": 100 * total["given"] / count,
        "test/top1_localisation_error_pct": 100 * total["top1"] / count,
        "test/top5_localisation_error_pct": 100 * total["top5"] / count,
        "test/images": float(count),
    }
    views = sum(map(len, spec.boxes.values()))
    return DerivedResult(
        metrics, f"boxes of {plural(views, 'short side')}, {plural(len(classifiers), 'classifier')}"
    )


def blocks(count: int) -> Iterator[range]:
    """Yield ranges of at most BLOCK images."""
    return (range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK))
