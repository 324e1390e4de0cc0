"""Batches of cropped images on the device: colour augmentation, normalisation and flips.

Each row of random draws belongs to one image of one *global* batch, as in batches.py. An image's result does not
depend on the other images of its micro-batch, since all sums over an image's pixels are of integers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.names import nearest
from pipeline.data.images import DataError
from pipeline.data.normalise import Normaliser, normalise_crops
from pipeline.data.order import seeded_generator
from pipeline.declare.data_settings import Jitter

SHARDED_AUGMENTATIONS = ("flip", "pca-colour", "photometric")
# Columns of `CropBatchBuilder.draw`; the first six are for the crop.
FLIP_COLUMN, PCA_COLUMNS, PHOTOMETRIC_COLUMNS = 6, slice(7, 10), slice(10, 16)

PCA_DEVIATION = 0.1  # Krizhevsky et al. 2012, section 4.1
MIN_FACTOR, MAX_FACTOR = 0.5, 1.5  # Howard 2013, section 2.2
GREY_WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue: Pillow's "L"
ADJUST_BRIGHTNESS, ADJUST_CONTRAST, ADJUST_SATURATION = 0, 1, 2
ADJUSTMENT_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


@dataclass(frozen=True, eq=False)
class ColourPCA:
    """Principal components of the training images' colours, for pixels / 255."""

    values: Tensor  # float64 (3,): eigenvalues of the covariance, in descending order
    vectors: Tensor  # float64 (3, 3): the components as columns, each with its largest number positive


# ImageNet's, as published with fb.resnet.torch (datasets/imagenet.lua); rows are red, green and blue.
IMAGENET_COLOURS = ColourPCA(
    torch.tensor([0.2175, 0.0188, 0.0045], dtype=torch.float64),
    torch.tensor(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], dtype=torch.float64
    ),
)


def pca_colour(pixels: Tensor, pca: ColourPCA, draws: Tensor, *, deviation: float = PCA_DEVIATION) -> Tensor:
    """Shift the colours of float pixels 0..255, (N, h, w, 3) -> (N, h, w, 3): Krizhevsky et al. 2012, section 4.1.

    Each image gets one shift: the sum of the principal components, each times its eigenvalue and a normal draw
    with standard deviation `deviation`, 0.1 in the paper. `draws` are uniform, (N, 3), and new for each use of an
    image.

    The paper does not name the unit. We take pixels / 255: ImageNet's first eigenvalue is then 0.22 and a shift
    about 3 of 255 per channel. With pixels 0..255 the eigenvalue is 14,000, and a shift of 800 would destroy the
    image. (The author's later code, cuda-convnet2, multiplies by standard deviations instead, on pixels 0..255;
    those shifts are 2 to 15 times as large, depending on the component.) Pixels are not clipped to 0..255, since
    the paper does not mention it.
    """
    normal = torch.special.ndtri(draws.cpu().double().clamp(min=2.0**-54))  # on the CPU, so that all devices agree
    weights = deviation * normal * pca.values.cpu()
    vectors = pca.vectors.cpu()
    shift: Tensor = (
        weights[:, :1] * vectors[:, 0] + weights[:, 1:2] * vectors[:, 1] + weights[:, 2:] * vectors[:, 2]
    )
    return pixels + (255 * shift).float().to(pixels.device)[:, None, None, :]


def photometric(pixels: Tensor, draws: Tensor) -> Tensor:
    """Adjust brightness, contrast and saturation of float pixels 0..255, (N, h, w, 3) -> (N, h, w, 3).

    Howard 2013, arXiv:1312.5402, section 2.2; GoogLeNet (arXiv:1409.4842, section 6) uses it too. The Python
    Imaging Library changes contrast, brightness and colour in random order, by a factor "between 0.5 and 1.5",
    where 1 changes nothing. Pillow's ImageEnhance blends the image with black (brightness), with the mean of its
    grey version (contrast) or with the grey version (colour), and clips to 0..255. Unlike Pillow, this function
    does not round.

    Howard then adds Krizhevsky's "lighting noise": declare `pca-colour` as well.

    `draws` are uniform, (N, 6). Columns: order, brightness, contrast, colour, and two that are not used.
    """
    factors = MIN_FACTOR + (MAX_FACTOR - MIN_FACTOR) * draws[:, 1:4]
    return _adjust(pixels, draws[:, 0], factors, clip=True)


def colour_jitter(pixels: Tensor, jitter: Jitter, draws: Tensor) -> Tensor:
    """Adjust brightness, contrast and saturation of float pixels 0..255, (N, h, w, 3) -> (N, h, w, 3).

    This is ColorJitter of fb.resnet.torch (datasets/transforms.lua): the blends of `photometric`, in random order,
    by factors uniform in 1 - strength to 1 + strength. Pixels are not clipped to 0..255 there.

    `draws` are uniform, (N, 6), with the columns of `photometric`.
    """
    strengths = torch.tensor([jitter.brightness, jitter.contrast, jitter.saturation], dtype=torch.float64)
    return _adjust(pixels, draws[:, 0], 1 + strengths * (2 * draws[:, 1:4] - 1), clip=False)


def _adjust(pixels: Tensor, order_draws: Tensor, factors: Tensor, *, clip: bool) -> Tensor:
    """Blend images with black, their mean grey and their grey version by `factors`, (N, 3), in drawn order."""
    device = pixels.device
    order = torch.tensor(ADJUSTMENT_ORDERS)[(order_draws * len(ADJUSTMENT_ORDERS)).long()]  # (N, 3)
    x = pixels.clone()
    red, green, blue = GREY_WEIGHTS
    for position in range(3):
        adjustment = order[:, position]
        factor = factors.gather(1, adjustment[:, None]).float().to(device)[:, :, None, None]  # (N, 1, 1, 1)
        adjustment = adjustment.to(device)[:, None, None]
        grey = x[..., 0] * red + x[..., 1] * green + x[..., 2] * blue  # (N, h, w)
        other = torch.where(adjustment == ADJUST_CONTRAST, _mean(grey), grey).masked_fill_(
            adjustment == ADJUST_BRIGHTNESS, 0.0
        )
        x.mul_(factor).add_(other.unsqueeze(-1).mul_(1 - factor))
        if clip:
            x.clamp_(0, 255)
    return x


def _mean(grey: Tensor) -> Tensor:
    """Return each image's mean, (N, h, w) -> (N, 1, 1). In units of 1/256 the sum is of integers, in any order."""
    total = (grey * 256).round_().sum((1, 2), keepdim=True, dtype=torch.float64)
    return (total / (256 * grey.shape[1] * grey.shape[2])).float()


def random_flip(x: Tensor, draws: Tensor) -> Tensor:
    """Flip images of `x`, (N, C, h, w), left to right in place where the draw of (N,) is below 1/2; return `x`."""
    flipped = (draws < 0.5).nonzero().flatten().to(x.device)
    return x.index_copy_(0, flipped, x.index_select(0, flipped).flip(3))


class CropBatchBuilder:
    """Builds float32 (N, 3, h, w) batches in channels_last memory format from cropped images.

    Order of operations: photometric or jitter, pca-colour or lighting, normalise, flip. Raises DataError for an
    unknown augmentation, or for "pca-colour" without `pca`.
    """

    def __init__(
        self,
        *,
        normalise: Normaliser,
        augment: tuple[str, ...] = (),
        jitter: Jitter | None = None,
        pca: ColourPCA | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        for entry in augment:
            if entry not in SHARDED_AUGMENTATIONS:
                raise DataError(f"unknown augmentation {entry!r}{nearest(entry, SHARDED_AUGMENTATIONS)}")
        if "pca-colour" in augment and pca is None:
            raise DataError("'pca-colour' needs the principal components of the training part's colours; pass pca")
        self.device = torch.device(device)
        self.normalise = normalise.to(self.device)
        self.pca, self.pca_deviation = pca if "pca-colour" in augment else None, PCA_DEVIATION
        if jitter and jitter.lighting:
            self.pca, self.pca_deviation = IMAGENET_COLOURS, jitter.lighting
        self.photometric, self.flip, self.jitter = "photometric" in augment, "flip" in augment, jitter

    def draw(self, seed: int, step: int, count: int) -> Tensor:
        """Return random draws, uniform in [0, 1), float64 (count, 16): one row per image of a global batch.

        Columns: six for the crop, flip, three for `pca_colour`, six for `photometric` or `colour_jitter`. All
        columns are always drawn, so that adding a flip changes no crop. They are drawn on the CPU, so that every
        device gets the same crops.
        """
        return torch.rand(count, 16, dtype=torch.float64, generator=seeded_generator(seed, "augment", step))

    def __call__(
        self,
        pixels: Tensor,
        corners: Tensor | None = None,
        frame: int | None = None,
        draws: Tensor | None = None,
    ) -> Tensor:
        """Return the batch of uint8 pixels (N, h, w, 3) as float32 (N, 3, h, w).

        `corners` and `frame` locate the crops; see `normalise_crops`. `draws` are the images' rows of `draw`;
        without them the pixels are only normalised.
        """
        x = pixels.to(self.device)
        if draws is not None and (self.photometric or self.jitter or self.pca):
            x = _planes(x)
            if self.photometric:
                x = photometric(x, draws[:, PHOTOMETRIC_COLUMNS])
            elif self.jitter:
                x = colour_jitter(x, self.jitter, draws[:, PHOTOMETRIC_COLUMNS])
            if self.pca:
                x = pca_colour(x, self.pca, draws[:, PCA_COLUMNS], deviation=self.pca_deviation)
        x = normalise_crops(self.normalise, x, corners, frame)
        return random_flip(x, draws[:, FLIP_COLUMN]) if self.flip and draws is not None else x


def _planes(pixels: Tensor) -> Tensor:
    """Return float32 pixels, each colour contiguous in memory; colour operations are then 1.5 times as fast."""
    return pixels.permute(0, 3, 1, 2).contiguous().float().permute(0, 2, 3, 1)
