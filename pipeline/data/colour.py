"""Photographs as batches on the device: colours changed, normalised, mirrored; cropped they are already.

Every draw belongs to one image of one *global* batch, as in batches.py, and an image's numbers do not depend on
which others are in its share: all sums over an image's pixels are of whole numbers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.data.images import DataError
from pipeline.data.normalise import Normaliser, normalise_crops, unknown_name
from pipeline.data.order import seeded_generator

SHARDED_AUGMENTATIONS = ("flip", "pca-colour", "photometric")
FLIP, PCA, PHOTOMETRIC = 6, slice(7, 10), slice(10, 16)  # columns of `PhotoMaker.draw`; the first six: the crop

PCA_DEVIATION = 0.1  # Krizhevsky et al. 2012, section 4.1
MIN_FACTOR, MAX_FACTOR = 0.5, 1.5  # Howard 2013, section 2.2
GREY = (0.299, 0.587, 0.114)  # of red, green and blue: Pillow's "L"
BRIGHTNESS_DRAW, CONTRAST_DRAW, SATURATION_DRAW = 0, 1, 2
ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


@dataclass(frozen=True, eq=False)
class ColourPCA:
    """Principal components of the training pictures' colours, of pixels / 255."""

    values: Tensor  # float64 (3,): eigenvalues of the covariance, falling
    vectors: Tensor  # float64 (3, 3): the components as columns, each with its largest number positive


def pca_colour(pixels: Tensor, pca: ColourPCA, draws: Tensor) -> Tensor:
    """Float (N, h, w, 3) pixels 0..255 and uniform (N, 3) -> the same shape: Krizhevsky et al. 2012, section 4.1.

    To every pixel of an image is added the sum of the principal components, each times its eigenvalue and one
    normal number of deviation 0.1, drawn anew whenever the image is used.

    The paper does not name the unit. It is taken as pixels / 255: ImageNet's first eigenvalue is then 0.22 and a
    shift some 3 of 255 a channel; of pixels 0..255 it is 14,000 and a shift of 800 would leave no picture.
    (The author's later code, cuda-convnet2, multiplies by standard deviations instead, on pixels 0..255: shifts
    twice to fifteen times as large, component by component.)
    Pixels are not cut off at 0 and 255, since the paper does not say so.
    """
    normal = torch.special.ndtri(draws.cpu().double().clamp(min=2.0**-54))  # on the CPU, so that all devices agree
    weights = PCA_DEVIATION * normal * pca.values.cpu()
    vectors = pca.vectors.cpu()
    shift = weights[:, :1] * vectors[:, 0] + weights[:, 1:2] * vectors[:, 1] + weights[:, 2:] * vectors[:, 2]
    return pixels + (255 * shift).float().to(pixels.device)[:, None, None, :]


def photometric(pixels: Tensor, draws: Tensor) -> Tensor:
    """Float (N, h, w, 3) pixels 0..255 and uniform (N, 6) -> the same shape: Howard 2013, section 2.2.

    arXiv:1312.5402; GoogLeNet (arXiv:1409.4842, section 6) used these too. Contrast, brightness and colour are
    changed by the Python Imaging Library, in random order, by an amount "between 0.5 and 1.5", where 1 changes
    nothing. Pillow's ImageEnhance mixes the picture with black (brightness), with the mean of its grey version
    (contrast), or with that version itself (colour), and cuts off at 0 and 255. Nothing is rounded here.

    Last, Howard adds Krizhevsky's "lighting noise": that is `pca_colour`, declared beside this.

    Columns of draws: order, brightness, contrast, colour, and two that are not used.
    """
    device = pixels.device
    order = torch.tensor(ORDERS)[(draws[:, 0] * len(ORDERS)).long()]  # (N, 3)
    factors = MIN_FACTOR + (MAX_FACTOR - MIN_FACTOR) * draws[:, 1:4]
    x = pixels.clone()
    for place in range(3):
        change = order[:, place]
        factor = factors.gather(1, change[:, None]).float().to(device)[:, :, None, None]  # (N, 1, 1, 1)
        change = change.to(device)[:, None, None]
        grey = x[..., 0] * GREY[0] + x[..., 1] * GREY[1] + x[..., 2] * GREY[2]  # (N, h, w)
        other = torch.where(change == CONTRAST_DRAW, _mean(grey), grey).masked_fill_(
            change == BRIGHTNESS_DRAW, 0.0
        )
        x.mul_(factor).add_(other.unsqueeze(-1).mul_(1 - factor)).clamp_(0, 255)
    return x


def _mean(grey: Tensor) -> Tensor:
    """(N, h, w) -> (N, 1, 1): in units of 1/256, so that the sum is of whole numbers and the same in any order."""
    total = (grey * 256).round_().sum((1, 2), keepdim=True, dtype=torch.float64)
    return (total / (256 * grey.shape[1] * grey.shape[2])).float()


def random_flip(x: Tensor, draws: Tensor) -> Tensor:
    """(N, C, h, w) and uniform (N,) -> `x` itself, mirrored left to right where the draw is below a half."""
    mirrored = (draws < 0.5).nonzero().flatten().to(x.device)
    return x.index_copy_(0, mirrored, x.index_select(0, mirrored).flip(3))


class CropBatchBuilder:
    """Turns cropped pictures into a float32 (N, 3, h, w) batch in channels_last memory format.

    Order of work: photometric, pca-colour, normalise, flip.
    """

    def __init__(
        self,
        *,
        normalise: Normaliser,
        augment: tuple[str, ...] = (),
        pca: ColourPCA | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        for entry in augment:
            if entry not in SHARDED_AUGMENTATIONS:
                raise DataError(unknown_name("augmentation", entry, SHARDED_AUGMENTATIONS))
        if "pca-colour" in augment and pca is None:
            raise DataError("'pca-colour' needs the principal components of the training part's colours; fit them")
        self.device = torch.device(device)
        self.normalise = normalise.on(self.device)
        self.pca = pca if "pca-colour" in augment else None
        self.photometric, self.flip = "photometric" in augment, "flip" in augment

    def draw(self, seed: int, step: int, count: int) -> Tensor:
        """float64 (count, 16), uniform in [0, 1): one row for each image of a global batch.

        Columns: six for the crop, flip, three for `pca_colour`, six for `photometric`; all are drawn whatever is
        used, so that adding a flip moves no crop. Always drawn on the CPU.
        """
        return torch.rand(count, 16, dtype=torch.float64, generator=seeded_generator(seed, "augment", step))

    def __call__(
        self,
        pixels: Tensor,
        corners: Tensor | None = None,
        frame: int | None = None,
        draws: Tensor | None = None,
    ) -> Tensor:
        """uint8 (N, h, w, 3) -> float32 (N, 3, h, w).

        `corners` and `frame` say where the crops lie, for `normalised`; `draws` are the images' rows of `draw`.
        Without draws the pixels are only normalised.
        """
        x = pixels.to(self.device)
        if draws is not None and (self.photometric or self.pca):
            x = _planes(x)
            if self.photometric:
                x = photometric(x, draws[:, PHOTOMETRIC])
            if self.pca:
                x = pca_colour(x, self.pca, draws[:, PCA])
        x = normalise_crops(self.normalise, x, corners, frame)
        return random_flip(x, draws[:, FLIP]) if self.flip and draws is not None else x


def _planes(pixels: Tensor) -> Tensor:
    """uint8 (N, h, w, 3) -> float32 of that shape, each colour in one piece of memory: faster by a half."""
    return pixels.permute(0, 3, 1, 2).contiguous().float().permute(0, 2, 3, 1)
