"""Batches made on the device from the uint8 images: chosen, distorted, normalised, cropped, flipped.

Every draw belongs to one image of one *global* batch, and a rank takes its share of both: the images a
step trains on, and what is done to them, are the same on any number of ranks.
"""

import re
from collections.abc import Generator, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.recipe import Batch
from pipeline.data.images import DataError, LabelledImages
from pipeline.data.normalise import Normaliser, unknown_name, whitened
from pipeline.data.order import epoch_stream, seeded_generator
from pipeline.data.samples import rank_share

IN_MEMORY_AUGMENTATIONS = (
    "pad4-crop",
    "pad1-crop",
    "reflect4-crop",
    "flip",
    "distort",
)  # to suggest: any number is known

# The ranges of "distort". LeCun et al. 1998, section III-B names the kinds of distortion and not their
# sizes; these are ours, chosen so that a digit stays readable and inside a 32 x 32 field.
DISTORTED = 0.9  # probability: the paper adds 9 distorted copies to each original
TRANSLATION = 2.0  # pixels, horizontally and vertically
SCALING = 0.1  # size from 0.9 to 1.1
SQUEEZE = 0.1  # width times 0.9 to 1.1 and height divided by the same
SHEAR = 0.2  # horizontal pixels per vertical pixel


class BatchBuilder:
    """Turns indices into a float32 (N, C, H, W) batch in channels_last memory format.

    Order of work: pad the images to `pad_to` with background (0), distort, normalise, crop from the
    padded picture, flip. Where each is described: `normalise.py`, `_distort`, `_crop_and_flip`.
    Whitening is of images in their own size, so these are padded after it, with 0.
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
                f"'reflect{self.pad}-crop' mirrors {self.pad} pixels beyond the border, and the images are"
                f" {height} x {width}; use 'pad{self.pad}-crop', or a smaller number"
            )
        fitted = normalise.shift.shape if normalise.shift.dim() == 3 else (height, width, *normalise.shift.shape)
        if fitted != (height, width, channels):
            raise DataError(
                f"the normalisation was fitted on {_size(*fitted)} images and these are"
                f" {_size(height, width, channels)}; fit it on the training part of the same set"
            )
        border, self.late_border = _border(height, width, pad_to), _border(height, width, None)
        if normalise.whitening is not None:
            border, self.late_border = self.late_border, border
        self.device = torch.device(device)
        self.whitening = None if normalise.whitening is None else normalise.whitening.to(self.device)
        self.pixels = F.pad(images.pixels, border).to(self.device)  # uint8 (N, H, W, C)
        size = self.pixels.shape[1:]
        # Full size, although most are constant: broadcasting over C = 3 alone is several times slower.
        shift = F.pad(normalise.shift, border) if normalise.shift.dim() == 3 else normalise.shift
        self.scale = normalise.scale.expand(size).contiguous().to(self.device)
        self.shift = shift.expand(size).contiguous().to(self.device)
        self.outside = normalise.outside

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def augments(self) -> bool:
        return bool(self.pad or self.flip or self.distort)

    def draw(self, seed: int, step: int, count: int) -> Tensor:
        """float64 (count, 9), uniform in [0, 1): one row for each image of a global batch.

        Columns: crop row, crop column, flip, then six for `_distort`; all are drawn whatever is used, so that
        adding a flip moves no crop. Always drawn on the CPU, so that a GPU sees the same crops.
        """
        return torch.rand(count, 9, dtype=torch.float64, generator=seeded_generator(seed, "augment", step))

    def __call__(self, indices: Tensor, draws: Tensor | None = None) -> Tensor:
        """int64 (N,) and the images' rows of `draw` (none: no augmentation) -> float32 (N, C, H, W)."""
        x = self.pixels.index_select(0, indices.to(self.device)).float()
        if self.distort and draws is not None:
            x = _distort(x, draws[:, 3:])
        if self.whitening is not None:
            x = whitened(x, self.whitening)
        x = x.mul_(self.scale).sub_(self.shift)  # two roundings, never a fused one, so that devices agree
        if any(self.late_border):
            x = F.pad(x, self.late_border, value=self.outside)
        if (self.pad or self.flip) and draws is not None:
            outside = None if self.reflect else self.outside
            x = _crop_and_flip(x, draws[:, :3], pad=self.pad, outside=outside, flip=self.flip)
        return x.permute(0, 3, 1, 2)


def _crop_and_flip(x: Tensor, draws: Tensor, *, pad: int, outside: float | None, flip: bool) -> Tensor:
    """(N, H, W, C) -> the same shape: a random window of the padded image, mirrored half of the time.

    He et al. 2015, section 4.2: pad 4 on each side, crop "from the padded image or its horizontal flip". Without
    `outside` the missing pixels are the image's own, reflected (Zagoruyko and Komodakis 2016, section 3).
    One gather over all pixels of the batch, the flip folded into its column numbers.
    """
    n, height, width, channels = x.shape
    offsets = (draws[:, :2] * (2 * pad + 1)).long()  # (N, 2), from 0 to 2 * pad
    columns = torch.arange(width).expand(n, width)
    if flip:
        columns = torch.where(draws[:, 2:3] < 0.5, columns.flip(1), columns)
    columns = (columns + offsets[:, 1:]).to(x.device)
    rows = (torch.arange(height) + offsets[:, :1]).to(x.device)
    if outside is None:
        rows, columns = _reflected(rows - pad, height), _reflected(columns - pad, width)
        pad = 0
    if pad:
        x = F.pad(x, (0, 0, pad, pad, pad, pad), value=outside)
    first_row = torch.arange(n, device=x.device)[:, None] * (height + 2 * pad)
    pixel = (first_row + rows)[:, :, None] * (width + 2 * pad) + columns[:, None, :]  # (N, H, W)
    return x.view(-1, channels).index_select(0, pixel.view(-1)).view(n, height, width, channels)


def _reflected(places: Tensor, count: int) -> Tensor:
    """Places beyond 0 to `count` - 1 as those that they mirror; the border itself is not repeated."""
    return (count - 1) - ((count - 1) - places.abs()).abs()


def _distort(x: Tensor, draws: Tensor) -> Tensor:
    """(N, H, W, C) pixels -> the same shape: "distort", LeCun et al. 1998, section III-B.

    A random combination of translation, scaling, squeezing (narrower and higher, or the reverse) and
    horizontal shear; beyond the border lies background (0). Drawn anew at every step, where the paper
    makes 540,000 distorted images once.
    """
    _, height, width, _ = x.shape
    chosen = (draws[:, 0] < DISTORTED).to(x.device)
    swing = 2 * draws[:, 1:] - 1  # (N, 5), from -1 to 1
    size, squeeze = 1 + SCALING * swing[:, 2], 1 + SQUEEZE * swing[:, 3]
    factors = [
        TRANSLATION * swing[:, 0],
        TRANSLATION * swing[:, 1],
        size * squeeze,
        size / squeeze,
        SHEAR * swing[:, 4],
    ]
    # (N, 1, 1) each. The grid is spelled out, since affine_grid's matrix product may run in reduced precision.
    right, down, wide, high, shear = (value.float().to(x.device)[:, None, None] for value in factors)
    row = (torch.arange(height, device=x.device) - (height - 1) / 2)[:, None]  # pixels from the centre
    column = (torch.arange(width, device=x.device) - (width - 1) / 2)[None, :]
    source_row = (row - down) / high
    source_column = (column - right) / wide + shear * source_row
    grid = torch.stack([source_column * (2 / width), (source_row * (2 / height)).expand_as(source_column)], -1)
    moved = F.grid_sample(x.permute(0, 3, 1, 2), grid, "bilinear", "zeros", align_corners=False)
    return torch.where(chosen[:, None, None, None], moved.permute(0, 2, 3, 1), x)


class InMemoryFeed:
    """The training batches of updates `start_step` to `stop_step - 1`, for one rank of `world`.

    `batch_size` is global; it is cut into G = w * `parts` groups, of which group g has the places g, g + G, ...
    Rank r of w takes the groups r, r + w, ..., each as a batch of its own. With `block` > 1 that many consecutive
    batches come as one (for training on one pattern at a time).
    """

    def __init__(
        self,
        maker: BatchBuilder,
        labels: Tensor,
        *,
        seed: int,
        batch_size: int,
        start_step: int,
        stop_step: int,
        block: int = 1,
        rank: int = 0,
        world: int = 1,
        parts: int = 1,
    ) -> None:
        assert block == 1 or parts == 1
        _check_labels(maker, labels)
        self.mine = rank_slices(batch_size, rank, world, parts)
        self.maker, self.labels = maker, labels.to(maker.device)
        self.seed, self.batch_size, self.block = seed, batch_size, block
        self.start_step, self.stop_step = start_step, stop_step

    def __len__(self) -> int:
        """Batches as yielded: blocks count once, and every part of a batch."""
        return -(-(self.stop_step - self.start_step) // self.block) * len(self.mine)

    def __iter__(self) -> Generator[Batch, None, None]:
        for first in range(self.start_step, self.stop_step, self.block):
            steps = range(first, min(first + self.block, self.stop_step))
            order = epoch_stream(
                self.seed, first * self.batch_size, steps.stop * self.batch_size, len(self.labels)
            )
            # A block's length is a multiple of the world size, so one stride serves all its batches.
            drawn = [self.maker.draw(self.seed, step, self.batch_size) for step in steps if self.maker.augments]
            for mine in self.mine:
                indices = order[mine].to(self.maker.device)
                draws = torch.cat([draw[mine] for draw in drawn]) if drawn else None
                yield Batch(first, self.maker(indices, draws), self.labels[indices])


def rank_slices(batch_size: int, rank: int, world: int, parts: int) -> list[slice]:
    """The places of a global batch that rank `rank` of `world` takes, in so many parts, one after the other.

    The batch is cut into `world` * `parts` groups, which are the same whoever takes them.
    """
    return [rank_share(batch_size, group, world * parts) for group in range(rank, world * parts, world)]


def evaluation_batches(
    maker: BatchBuilder, labels: Tensor, *, batch_size: int, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """Evaluation: each image exactly once over all ranks, unaugmented; the last batch may be smaller.

    A rank without a share of the last batch does not see it, so ranks may differ by one batch: sum up
    after the loop, not in it.
    """
    _check_labels(maker, labels)
    labels = labels.to(maker.device)
    everything = torch.arange(len(labels), device=maker.device)
    for number, start in enumerate(range(0, len(labels), batch_size)):
        indices = everything[start : start + batch_size][rank::world]
        if len(indices):
            yield Batch(number, maker(indices), labels[indices])


def _check_labels(maker: BatchBuilder, labels: Tensor) -> None:
    if len(labels) != len(maker) or not len(labels):
        raise DataError(
            f"{len(maker)} images with {len(labels)} labels cannot be fed;"
            " pass the labels of the same images, at least one"
        )


def _parse(augment: tuple[str, ...]) -> tuple[int, bool, bool, bool]:
    """("pad4-crop", "flip") -> (4, False, True, False): padding (0: no crop), by reflection, flip, distort."""
    crops = [entry for entry in augment if re.fullmatch(r"(pad|reflect)[1-9]\d*-crop", entry)]
    for entry in augment:
        if entry not in (*crops, "flip", "distort"):
            raise DataError(unknown_name("augmentation", entry, IN_MEMORY_AUGMENTATIONS))
        if augment.count(entry) > 1 or len(crops) > 1:
            raise DataError(
                f"augmentation may name each kind once, and {', '.join(augment)} repeats one; remove it"
            )
    pad = int("".join(filter(str.isdigit, crops[0]))) if crops else 0
    return pad, bool(crops) and crops[0].startswith("reflect"), "flip" in augment, "distort" in augment


def _border(height: int, width: int, pad_to: int | None) -> tuple[int, ...]:
    """The background that centres (H, W, C) in a square of pad_to, as F.pad wants it (last axis first)."""
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
