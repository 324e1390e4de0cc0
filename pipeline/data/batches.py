"""Training and evaluation batches of images in memory, built on the device.

Each row of random draws belongs to one image of one *global* batch, and a rank takes its share of both. The images
of an optimizer step and their augmentation are therefore the same on any number of ranks.
"""

import re
from collections.abc import Generator, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.names import nearest
from lightning_modules.recipe import Batch
from pipeline.data.images import DataError, LabelledImages
from pipeline.data.normalise import Normaliser, locally_normalised, whitened
from pipeline.data.order import epoch_stream, seeded_generator

IN_MEMORY_AUGMENTATIONS = (
    "pad4-crop",
    "pad1-crop",
    "reflect4-crop",
    "flip",
    "distort",
)  # suggestions for unknown names; any number of pixels is accepted

# Ranges of "distort". LeCun et al. 1998, section III-B names the kinds of distortion but not their sizes.
# These are ours, chosen so that a digit stays readable and inside a 32 x 32 field.
DISTORT_PROBABILITY = 0.9  # the paper adds 9 distorted copies to each original
MAX_TRANSLATION = 2.0  # pixels, horizontally and vertically
MAX_SCALING = 0.1  # size from 0.9 to 1.1
MAX_SQUEEZE = 0.1  # width times 0.9 to 1.1, and height divided by the same factor
MAX_SHEAR = 0.2  # horizontal pixels per vertical pixel


class BatchBuilder:
    """Builds float32 (N, C, H, W) batches in channels_last memory format from indices of images.

    Order of operations: pad the images to `pad_to` with background (0), distort (`_distort`), normalise
    (normalise.py), crop from the padded image and flip (`_crop_and_flip`). Whitening and local contrast
    normalisation need the original size, so images are padded after them, with 0.

    Raises DataError for an unknown augmentation, a `pad_to` below the images' size, or a normalisation that was
    fitted on another size.
    """

    def __init__(
        self,
        images: LabelledImages,
        *,
        normalise: Normaliser,
        augment: tuple[str, ...] = (),
        pad_to: int | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.pad, self.reflect, self.flip, self.distort = _parse(augment)
        _, height, width, channels = images.pixels.shape
        if self.reflect and self.pad >= (pad_to or min(height, width)):
            raise DataError(
                f"'reflect{self.pad}-crop' mirrors {self.pad} pixels at the border, but the images are"
                f" {height} x {width}; use 'pad{self.pad}-crop' or a smaller number"
            )
        fitted = normalise.shift.shape if normalise.shift.dim() == 3 else (height, width, *normalise.shift.shape)
        if fitted != (height, width, channels):
            raise DataError(
                f"the normalisation was fitted on {_size(*fitted)} images, but these are"
                f" {_size(height, width, channels)}; fit it on the training part of the same set"
            )
        border, self.late_border = _border(height, width, pad_to), _border(height, width, None)
        if normalise.needs_whole_images:
            border, self.late_border = self.late_border, border
        self.device = torch.device(device)
        self.local_contrast = normalise.local_contrast
        self.whitening = None if normalise.whitening is None else normalise.whitening.to(self.device)
        # uint8 (N, H, W, C); not copied if nothing is padded
        self.pixels = (F.pad(images.pixels, border) if any(border) else images.pixels).to(self.device)
        size = self.pixels.shape[1:]
        # Expanded to full size, since broadcasting over C = 3 alone is several times slower.
        shift = F.pad(normalise.shift, border) if normalise.shift.dim() == 3 else normalise.shift
        self.scale = normalise.scale.expand(size).contiguous().to(self.device)
        self.shift = shift.expand(size).contiguous().to(self.device)
        self.pad_value = normalise.pad_value

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def augments(self) -> bool:
        """True if any augmentation is declared."""
        return bool(self.pad or self.flip or self.distort)

    def draw(self, seed: int, step: int, count: int) -> Tensor:
        """Return random draws, uniform in [0, 1), float64 (count, 9): one row per image of a global batch.

        Columns: crop row, crop column, flip, then six for `_distort`. All columns are always drawn, so that adding
        a flip changes no crop. They are drawn on the CPU, so that every device gets the same crops.
        """
        return torch.rand(count, 9, dtype=torch.float64, generator=seeded_generator(seed, "augment", step))

    def __call__(self, indices: Tensor, draws: Tensor | None = None) -> Tensor:
        """Return the batch of images `indices`, int64 (N,), as float32 (N, C, H, W).

        `draws` are the rows of `draw` of these images; without them nothing is augmented.
        """
        x = self.pixels.index_select(0, indices.to(self.device)).float()
        if self.distort and draws is not None:
            x = _distort(x, draws[:, 3:])
        if self.whitening is not None:
            x = whitened(x, self.whitening)
        if self.local_contrast:
            x = locally_normalised(x)
        x = x.mul_(self.scale).sub_(
            self.shift
        )  # two roundings, never a fused multiply-add, so that all devices agree
        if any(self.late_border):
            x = F.pad(x, self.late_border, value=self.pad_value)
        if (self.pad or self.flip) and draws is not None:
            pad_value = None if self.reflect else self.pad_value
            x = _crop_and_flip(x, draws[:, :3], pad=self.pad, pad_value=pad_value, flip=self.flip)
        return x.permute(0, 3, 1, 2)


def _crop_and_flip(x: Tensor, draws: Tensor, *, pad: int, pad_value: float | None, flip: bool) -> Tensor:
    """Return a random crop of each padded image, flipped with probability 1/2; (N, H, W, C) -> (N, H, W, C).

    He et al. 2015, section 4.2: pad 4 on each side, crop "from the padded image or its horizontal flip". With
    `pad_value` None the border is the image's own reflection (Zagoruyko and Komodakis 2016, section 3).
    This is one gather over all pixels of the batch; the flip is part of its column indices.
    """
    n, height, width, channels = x.shape
    offsets = (draws[:, :2] * (2 * pad + 1)).long()  # (N, 2), from 0 to 2 * pad
    columns = torch.arange(width).expand(n, width)
    if flip:
        columns = torch.where(draws[:, 2:3] < 0.5, columns.flip(1), columns)
    columns = (columns + offsets[:, 1:]).to(x.device)
    rows = (torch.arange(height) + offsets[:, :1]).to(x.device)
    if pad_value is None:
        rows, columns = _reflected(rows - pad, height), _reflected(columns - pad, width)
        pad = 0
    if pad:
        x = F.pad(x, (0, 0, pad, pad, pad, pad), value=pad_value)
    first_row = torch.arange(n, device=x.device)[:, None] * (height + 2 * pad)
    pixel = (first_row + rows)[:, :, None] * (width + 2 * pad) + columns[:, None, :]  # (N, H, W)
    return x.view(-1, channels).index_select(0, pixel.view(-1)).view(n, height, width, channels)


def _reflected(indices: Tensor, count: int) -> Tensor:
    """Map indices outside 0 to `count` - 1 to those they mirror; the border pixel is not repeated."""
    return (count - 1) - ((count - 1) - indices.abs()).abs()


def _distort(x: Tensor, draws: Tensor) -> Tensor:
    """Apply "distort" to pixels, (N, H, W, C) -> (N, H, W, C): LeCun et al. 1998, section III-B.

    It combines random translation, scaling, squeezing (narrower and higher, or the reverse) and horizontal shear;
    the background is 0. The draws are new at every step, whereas the paper makes 540,000 distorted images once.
    """
    _, height, width, _ = x.shape
    is_distorted = (draws[:, 0] < DISTORT_PROBABILITY).to(x.device)
    amount = 2 * draws[:, 1:] - 1  # (N, 5), from -1 to 1
    size, squeeze = 1 + MAX_SCALING * amount[:, 2], 1 + MAX_SQUEEZE * amount[:, 3]
    factors = [
        MAX_TRANSLATION * amount[:, 0],
        MAX_TRANSLATION * amount[:, 1],
        size * squeeze,
        size / squeeze,
        MAX_SHEAR * amount[:, 4],
    ]
    # (N, 1, 1) each. affine_grid is not used, since its matrix product may run in reduced precision.
    right, down, wide, high, shear = (value.float().to(x.device)[:, None, None] for value in factors)
    row = (torch.arange(height, device=x.device) - (height - 1) / 2)[:, None]  # pixels from the centre
    column = (torch.arange(width, device=x.device) - (width - 1) / 2)[None, :]
    source_row = (row - down) / high
    source_column = (column - right) / wide + shear * source_row
    grid = torch.stack([source_column * (2 / width), (source_row * (2 / height)).expand_as(source_column)], -1)
    moved = F.grid_sample(x.permute(0, 3, 1, 2), grid, "bilinear", "zeros", align_corners=False)
    return torch.where(is_distorted[:, None, None, None], moved.permute(0, 2, 3, 1), x)


class InMemoryFeed:
    """Training batches of steps `start_step` to `stop_step` - 1 for one rank of `world`, from images in memory.

    `batch_size` is global. Each global batch is split into `world` * `accumulation_steps` micro-batches, and the
    feed yields those of `rank`, one after the other (see `rank_slices`). With `block` > 1, `block` consecutive
    batches are joined into one (for training on one pattern at a time); this excludes accumulation.
    """

    def __init__(
        self,
        builder: BatchBuilder,
        labels: Tensor,
        *,
        seed: int,
        batch_size: int,
        start_step: int,
        stop_step: int,
        block: int = 1,
        rank: int = 0,
        world: int = 1,
        accumulation_steps: int = 1,
    ) -> None:
        assert block == 1 or accumulation_steps == 1
        _check_labels(builder, labels)
        self.slices = rank_slices(batch_size, rank, world, accumulation_steps)
        self.builder, self.labels = builder, labels.to(builder.device)
        self.seed, self.batch_size, self.block = seed, batch_size, block
        self.start_step, self.stop_step = start_step, stop_step

    def __len__(self) -> int:
        """Number of batches that the feed yields: one per block, or one per micro-batch."""
        return -(-(self.stop_step - self.start_step) // self.block) * len(self.slices)

    def __iter__(self) -> Generator[Batch, None, None]:
        for first in range(self.start_step, self.stop_step, self.block):
            steps = range(first, min(first + self.block, self.stop_step))
            order = epoch_stream(
                self.seed, first * self.batch_size, steps.stop * self.batch_size, len(self.labels)
            )
            # A block's length is a multiple of the world size, so one stride is right for all its batches.
            builder = self.builder
            by_step = [builder.draw(self.seed, step, self.batch_size) for step in steps if builder.augments]
            for part in self.slices:
                indices = order[part].to(builder.device)
                draws = torch.cat([rows[part] for rows in by_step]) if by_step else None
                yield Batch(first, builder(indices, draws), self.labels[indices])


def rank_slices(batch_size: int, rank: int, world: int, accumulation_steps: int) -> list[slice]:
    """Return the slices of a global batch that are the micro-batches of rank `rank` of `world`.

    The global batch is split into G = `world` * `accumulation_steps` micro-batches; micro-batch g has the
    positions g, g + G, ..., and rank r has the micro-batches r, r + world, ... So the micro-batches depend on G
    only, not on the rank that runs them. Raises DataError if they would not be of equal size.
    """
    count = world * accumulation_steps
    if batch_size % count:
        raise DataError(
            f"a global batch of {batch_size} images cannot be split into {count} equal micro-batches;"
            f" use a batch size that is a multiple of {count}"
        )
    return [slice(number, None, count) for number in range(rank, count, world)]


def evaluation_batches(
    builder: BatchBuilder, labels: Tensor, *, batch_size: int, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Yield evaluation batches: each image once over all ranks, not augmented; the last batch may be smaller.

    A rank without images in the last batch skips it, so the ranks' numbers of batches may differ by one: reduce
    over ranks after the loop, not in it.
    """
    _check_labels(builder, labels)
    labels = labels.to(builder.device)
    all_indices = torch.arange(len(labels), device=builder.device)
    for number, start in enumerate(range(0, len(labels), batch_size)):
        indices = all_indices[start : start + batch_size][rank::world]
        if len(indices):
            yield Batch(number, builder(indices), labels[indices])


def _check_labels(builder: BatchBuilder, labels: Tensor) -> None:
    if len(labels) != len(builder) or not len(labels):
        raise DataError(
            f"{len(labels)} labels do not match {len(builder)} images; their numbers must be equal and >= 1"
        )


def _parse(augment: tuple[str, ...]) -> tuple[int, bool, bool, bool]:
    """Parse ("pad4-crop", "flip") to (4, False, True, False): padding (0: no crop), reflect, flip, distort."""
    crops = [entry for entry in augment if re.fullmatch(r"(pad|reflect)[1-9]\d*-crop", entry)]
    for entry in augment:
        if entry not in (*crops, "flip", "distort"):
            raise DataError(f"unknown augmentation {entry!r}{nearest(entry, IN_MEMORY_AUGMENTATIONS)}")
        if augment.count(entry) > 1 or len(crops) > 1:
            raise DataError(f"augmentation {', '.join(augment)} names one kind twice; remove one of them")
    pad = int("".join(filter(str.isdigit, crops[0]))) if crops else 0
    return pad, bool(crops) and crops[0].startswith("reflect"), "flip" in augment, "distort" in augment


def _border(height: int, width: int, pad_to: int | None) -> tuple[int, ...]:
    """Return the F.pad arguments (last axis first) that centre (H, W, C) in a square with side `pad_to`."""
    if pad_to is None:
        return (0, 0, 0, 0, 0, 0)
    if pad_to < max(height, width):
        raise DataError(
            f"pad_to {pad_to} is smaller than the {height} x {width} images; use {max(height, width)} or more"
        )
    above, left = (pad_to - height) // 2, (pad_to - width) // 2
    return (0, 0, left, pad_to - width - left, above, pad_to - height - above)


def _size(height: int, width: int, channels: int) -> str:
    return f"{height} x {width} x {channels}"
