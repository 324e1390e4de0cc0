"""Names of test protocols, and the views that papers describe."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.common.errors import UserError
from pipeline.declare.protocol import PROTOCOL_EXAMPLES, ProtocolPart, parse_protocol


def part(kind, side, shorts, square=False, interpolation="bilinear"):
    return ProtocolPart(kind, side, shorts, square, interpolation)


@pytest.mark.parametrize(
    ("name", "parts", "views"),
    [
        ("1-crop-224-of-256", [part("centre", 224, (256,))], 1),
        # Krizhevsky et al. 2012, section 4.1: five patches and their reflections, of the central 256 x 256
        ("10-crop-227-of-square-256", [part("ten", 227, (256,), square=True)], 10),
        ("10-crop-224-of-256", [part("ten", 224, (256,))], 10),
        ("12-crop-299-of-342", [part("twelve", 299, (342,))], 6 * 2),  # a twelfth of GoogLeNet's 144
        # VGG, arXiv:1409.1556, section 3.2: "50 crops per scale (5 x 5 regular grid with 2 flips)", of 3 150
        ("50-crop-224-of-256", [part("grid", 224, (256,))], 50),
        ("150-crop-224-of-256-384-512", [part("grid", 224, (256, 384, 512))], 150),
        # GoogLeNet, arXiv:1409.4842, section 7: "4 x 3 x 6 x 2 = 144 crops per image"
        ("144-crop-224-of-256-288-320-352", [part("googlenet", 224, (256, 288, 320, 352))], 4 * 3 * 6 * 2),
        # ResNet, arXiv:1512.03385, section 3.4, with mirror images
        ("dense-of-224-256-384-480-640", [part("dense", None, (224, 256, 384, 480, 640))], 10),
        ("dense-of-384-and-50-crop-224-of-384", [part("dense", None, (384,)), part("grid", 224, (384,))], 52),
        ("1-crop-299-of-320-bicubic", [part("centre", 299, (320,), interpolation="bicubic")], 1),
        ("30-crop-224-of-256-384-512", [part("ten", 224, (256, 384, 512))], 30),
        ("1-crop-224-of-224", [part("centre", 224, (224,))], 1),
    ],
)
def test_a_name_determines_the_protocol(name, parts, views):
    found = parse_protocol(name)
    assert (found.name, list(found.parts), found.views) == (name, parts, views)


def test_the_examples_in_messages_are_valid():
    assert [parse_protocol(name).views for name in PROTOCOL_EXAMPLES.split(", ")] == [1, 10, 144, 6]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("center-crop", r"unknown test protocol 'center-crop'; examples: 1-crop-224-of-256, "),
        ("", "unknown test protocol ''"),
        ("10-crop-224", "unknown test protocol"),
        ("10-crop-224-of-256-lanczos", "unknown test protocol"),
        ("10-crop-224-of-256-and-", "unknown test protocol"),
        ("010-crop-224-of-256", "unknown test protocol"),  # a protocol has one name only
        ("10-crop-224-of-256\n", "unknown test protocol"),
        ("10-crop-224-of-25٦", "unknown test protocol"),  # an Arabic six
        ("dense-224-of-256", "unknown test protocol"),
        ("10-crop-257-of-256", "a crop of 257 is larger than a short side of 256"),
        ("20-crop-300-of-256-384", "a crop of 300 is larger than a short side of 256"),
        ("20-crop-224-of-384-256", "short sides must be increasing"),
        ("20-crop-224-of-256-256", "short sides must be increasing"),
        ("11-crop-224-of-256", "the crops for 1 short side must be one of 1, 10, 12, 36, 50, not 11"),
        ("144-crop-224-of-256-288-320", "the crops for 3 short sides must be one of 3, 30, 36, 108, 150, not 144"),
        ("dense-of-square-256", "'square' is not supported for this kind of views"),
        ("12-crop-224-of-square-256", "'square' is not supported for this kind of views"),
        ("36-crop-224-of-square-256", "'square' is not supported for this kind of views"),
        ("dense-of-256-and-dense-of-256", "has a part twice"),
    ],
)
def test_an_invalid_name_is_an_error_of_one_line(name, words):
    with pytest.raises(UserError, match=words) as caught:
        parse_protocol(name)
    assert "\n" not in str(caught.value)


KINDS = st.sampled_from(["centre", "ten", "twelve", "grid", "googlenet", "dense"])
SHORTS = st.lists(st.integers(32, 999), min_size=1, max_size=6, unique=True).map(lambda some: tuple(sorted(some)))


@given(KINDS, st.integers(1, 32), SHORTS, st.booleans(), st.sampled_from(["bilinear", "bicubic"]))
def test_every_part_has_one_name(kind, side, shorts, square, interpolation):
    square = square and kind not in ("twelve", "googlenet", "dense")
    each = {"centre": 1, "ten": 10, "twelve": 12, "grid": 50, "googlenet": 36, "dense": 2}[kind]
    words = "dense" if kind == "dense" else f"{each * len(shorts)}-crop-{side}"
    name = (
        f"{words}-of-{'square-' * square}{'-'.join(map(str, shorts))}{'-bicubic' * (interpolation == 'bicubic')}"
    )
    found = parse_protocol(name)
    assert found.parts == (part(kind, None if kind == "dense" else side, shorts, square, interpolation),)
    assert found.views == each * len(shorts)
