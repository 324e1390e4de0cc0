"""Test protocols by name: which parts of a picture a network is shown, and how its answers are joined. Pure words.

    1-crop-224-of-256                      the middle 224 x 224 of the picture resized to a short side of 256
    10-crop-227-of-square-256              four corners, the middle, and their mirror images, out of the central
                                           256 x 256 (Krizhevsky et al. 2012, section 4.1)
    10-crop-224-of-256                     the same out of the whole resized picture
    150-crop-224-of-256-384-512            at each scale a 5 x 5 grid and its mirror images: VGG's multi-crop
                                           (arXiv:1409.1556, section 3.2); 50-crop at one scale
    144-crop-224-of-256-288-320-352        at each scale three squares (left, middle, right; or top, middle,
                                           bottom); of each four corners, the middle, and the square resized to
                                           224; and their mirror images (GoogLeNet, arXiv:1409.4842, section 7)
    dense-of-256-384-512                   the network applied to the whole picture, class scores averaged over
                                           places, and its mirror image (VGG, section 3.2; ResNet, section 3.4 of
                                           arXiv:1512.03385, which does not say whether it mirrors)
    dense-of-384-and-50-crop-224-of-384    both, their answers averaged (VGG, section 4.3)

`-bicubic` at a part's end: resized by cubic interpolation; bilinear otherwise; both with anti-aliasing. Everything
is averaged after the soft-max, views first, then scales, then parts, then networks.
"""

import re
from dataclasses import dataclass
from typing import Literal

from pipeline.common.errors import UserError

ProtocolKind = Literal["centre", "ten", "grid", "googlenet", "dense"]

SCALE_PATTERN: dict[int, ProtocolKind] = {
    1: "centre",
    10: "ten",
    50: "grid",
    36: "googlenet",
}  # crops at each scale

PROTOCOL_EXAMPLES = "1-crop-224-of-256, 10-crop-224-of-256, 144-crop-224-of-256-288-320-352, dense-of-256-384-512"

PART_PATTERN = re.compile(
    r"(?:(?P<count>[1-9]\d{0,3})-crop-(?P<side>[1-9]\d{0,3})|dense)-of-(?P<square>square-)?"
    r"(?P<shorts>[1-9]\d{0,3}(?:-[1-9]\d{0,3})*)(?P<bicubic>-bicubic)?",
    re.ASCII,
)


@dataclass(frozen=True)
class ProtocolPart:
    """One way to look at a picture, at one or more scales."""

    kind: ProtocolKind
    side: int | None  # pixels of a crop; None: dense
    shorts: tuple[int, ...]  # short sides the picture is resized to
    square: bool  # crops out of the central square of the resized picture
    interpolation: Literal["bilinear", "bicubic"]

    @property
    def views(self) -> int:
        """How many images of a picture a network is shown."""
        return len(self.shorts) * next((n for n, kind in SCALE_PATTERN.items() if kind == self.kind), 2)


@dataclass(frozen=True)
class Protocol:
    """A whole protocol; its name says everything, and is part of a metric's name."""

    name: str
    parts: tuple[ProtocolPart, ...]

    @property
    def views(self) -> int:
        """How many images of a picture a network is shown."""
        return sum(part.views for part in self.parts)


def parse_protocol(name: str) -> Protocol:
    """The protocol called `name`; UserError says what such a name looks like."""
    parts = tuple(_parse_part(words, name) for words in name.split("-and-"))
    if len(set(parts)) < len(parts):
        raise UserError(f"test protocol {name!r} has a part twice; leave it out once")
    return Protocol(name, parts)


def _parse_part(words: str, name: str) -> ProtocolPart:
    found = PART_PATTERN.fullmatch(words)
    if not found:
        raise UserError(f"{name!r} is no test protocol; such names are {PROTOCOL_EXAMPLES}")
    shorts = tuple(int(short) for short in found["shorts"].split("-"))
    side = int(found["side"]) if found["side"] else None
    if side and side > min(shorts):
        raise UserError(f"test protocol {name!r}: a crop of {side} is larger than a short side of {min(shorts)}")
    if list(shorts) != sorted(set(shorts)):
        raise UserError(f"test protocol {name!r}: scales should rise, each of them once")
    kind: ProtocolKind = "dense"
    if side:
        count = int(found["count"])
        if count % len(shorts) or count // len(shorts) not in SCALE_PATTERN:
            known = ", ".join(str(n * len(shorts)) for n in sorted(SCALE_PATTERN))
            raise UserError(f"test protocol {name!r}: crops of these short sides are {known}, not {count}")
        kind = SCALE_PATTERN[count // len(shorts)]
    if found["square"] and kind in ("dense", "googlenet"):
        raise UserError(f"test protocol {name!r}: 'square' is for crops out of one square, not for this kind")
    return ProtocolPart(kind, side, shorts, bool(found["square"]), "bicubic" if found["bicubic"] else "bilinear")
