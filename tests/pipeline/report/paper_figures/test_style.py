"""Test that text and series can be read in both themes. Contrast: WCAG 2.1, section 1.4.3."""

import matplotlib as mpl
import pytest
from matplotlib.colors import to_rgb

from pipeline.report.paper_figures.style import NEARLY_BLACK, SMALL_FONT, THEMES, figure_style, recolour

OKABE_ITO = {"#000000", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"}


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_and_white_is_21():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # just too little for text


@pytest.mark.parametrize("theme", THEMES.values(), ids=list(THEMES))
def test_text_has_a_contrast_of_at_least_4_5(theme):
    assert contrast(theme.text, theme.background) >= 4.5
    with figure_style(theme):
        for name in ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"):
            assert contrast(mpl.rcParams[name], mpl.rcParams["figure.facecolor"]) >= 4.5, name
        for name in ("xtick.labelsize", "ytick.labelsize", "legend.fontsize", "axes.labelsize"):
            assert mpl.rcParams[name] >= SMALL_FONT


@pytest.mark.parametrize("theme", THEMES.values(), ids=list(THEMES))
def test_series_are_the_colours_of_okabe_and_ito(theme):
    in_place_of_black = {NEARLY_BLACK, "#ffffff"}
    assert set(theme.series) <= OKABE_ITO | in_place_of_black
    assert len(set(theme.series)) == 7
    assert all(contrast(colour, theme.background) >= 2.2 for colour in theme.series)


def test_style_ends_with_the_context():
    before = mpl.rcParams["text.color"]
    with figure_style(THEMES["dark"]):
        assert mpl.rcParams["text.color"] != before
    assert mpl.rcParams["text.color"] == before


def test_an_svg_file_changes_its_colours_and_nothing_else():
    light, dark = THEMES["light"], THEMES["dark"]
    assert len(set(light.colours())) == len(light.colours()) == len(dark.colours())  # each has one counterpart
    svg = (
        '<path id="0072b2" style="stroke: #0072b2; fill: #56b4e9"/>'
        '<text style="fill: #1a1a1a">#e69f00</text><rect fill="#e69f00"/>'
    )
    changed = svg.replace("#56b4e9", "#f0e442").replace("#0072b2", "#56b4e9").replace("#1a1a1a", "#e8e8e8")
    changed = changed.replace('fill="#e69f00"', 'fill="#d55e00"')
    assert recolour(svg.encode(), light, dark) == changed.encode()
