"""Names of test protocols: which views of a test image are evaluated, and how the outputs are averaged.

    1-crop-224-of-256                      central 224 x 224 of the image resized to a short side of 256
    10-crop-227-of-square-256              four corners and centre of the central 256 x 256, and their mirror
                                           images (Krizhevsky et al. 2012, section 4.1)
    10-crop-224-of-256                     four corners and centre of the whole resized image, and their mirror
                                           images
    12-crop-299-of-342                     of the central square of the resized image the four corners, the centre,
                                           and the square resized to 299, and their mirror images (Inception-v3)
    150-crop-224-of-256-384-512            at each short side a 5 x 5 grid and its mirror images: VGG's multi-crop
                                           (arXiv:1409.1556, section 3.2); 50-crop with one short side
    144-crop-224-of-256-288-320-352        at each short side three squares (left, centre, right; or top, centre,
                                           bottom); of each the four corners, the centre, and the square resized
                                           to 224; and their mirror images (GoogLeNet, arXiv:1409.4842, section 7)
    dense-of-256-384-512                   the network applied to the whole image and its mirror image, class
                                           scores averaged over positions (VGG, section 3.2; ResNet, section 3.4
                                           of arXiv:1512.03385, which does not mention mirror images)
    dense-of-384-and-50-crop-224-of-384    both parts, their outputs averaged (VGG, section 4.3)

A part that ends in `-bicubic` resizes by bicubic interpolation, others by bilinear; both with anti-aliasing.
Softmax outputs are averaged: over views, then short sides, then parts, then networks.
"""

import re
from dataclasses import dataclass
from typing import Literal

from pipeline.common.errors import UserError
from pipeline.common.words import plural

ProtocolKind = Literal["centre", "ten", "twelve", "grid", "googlenet", "dense"]

KIND_BY_CROPS: dict[int, ProtocolKind] = {  # number of crops at each short side -> kind
    1: "centre",
    10: "ten",
    12: "twelve",
    50: "grid",
    36: "googlenet",
}

PROTOCOL_EXAMPLES = "1-crop-224-of-256, 10-crop-224-of-256, 144-crop-224-of-256-288-320-352, dense-of-256-384-512"

PART_PATTERN = re.compile(
    r"(?:(?P<count>[1-9]\d{0,3})-crop-(?P<side>[1-9]\d{0,3})|dense)-of-(?P<square>square-)?"
    r"(?P<shorts>[1-9]\d{0,3}(?:-[1-9]\d{0,3})*)(?P<bicubic>-bicubic)?",
    re.ASCII,
)


@dataclass(frozen=True)
class ProtocolPart:
    """One kind of views, at one or more short sides."""

    kind: ProtocolKind
    side: int | None  # of a crop, in pixels; None: dense
    shorts: tuple[int, ...]  # short sides of the resized image, in pixels
    square: bool  # crops are taken from the central square of the resized image
    interpolation: Literal["bilinear", "bicubic"]

    @property
    def views(self) -> int:
        """Return the number of views of each image."""
        return len(self.shorts) * next((n for n, kind in KIND_BY_CROPS.items() if kind == self.kind), 2)


@dataclass(frozen=True)
class Protocol:
    """A test protocol. Its name is part of the names of its metrics."""

    name: str
    parts: tuple[ProtocolPart, ...]

    @property
    def views(self) -> int:
        """Return the number of views of each image."""
        return sum(part.views for part in self.parts)


def parse_protocol(name: str) -> Protocol:
    """Return the protocol with this name. Raises UserError if the name is invalid."""
    parts = tuple(_parse_part(part, name) for part in name.split("-and-"))
    if len(set(parts)) < len(parts):
        raise UserError(f"test protocol {name!r} has a part twice; remove one")
    return Protocol(name, parts)


def _parse_part(text: str, name: str) -> ProtocolPart:
    found = PART_PATTERN.fullmatch(text)
    if not found:
        raise UserError(f"unknown test protocol {name!r}; examples: {PROTOCOL_EXAMPLES}")
    shorts = tuple(int(short) for short in found["shorts"].split("-"))
    side = int(found["side"]) if found["side"] else None
    if side and side > min(shorts):
        raise UserError(f"test protocol {name!r}: a crop of {side} is larger than a short side of {min(shorts)}")
    if list(shorts) != sorted(set(shorts)):
        raise UserError(f"test protocol {name!r}: short sides must be increasing")
    kind: ProtocolKind = "dense"
    if side:
        count = int(found["count"])
        if count % len(shorts) or count // len(shorts) not in KIND_BY_CROPS:
            known = ", ".join(str(n * len(shorts)) for n in sorted(KIND_BY_CROPS))
            sides = plural(len(shorts), "short side")
            raise UserError(f"test protocol {name!r}: the crops for {sides} must be one of {known}, not {count}")
        kind = KIND_BY_CROPS[count // len(shorts)]
    if found["square"] and kind in ("dense", "twelve", "googlenet"):
        raise UserError(f"test protocol {name!r}: 'square' is not supported for this kind of views")
    return ProtocolPart(kind, side, shorts, bool(found["square"]), "bicubic" if found["bicubic"] else "bilinear")
