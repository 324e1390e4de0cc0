"""Test that figures are the same bytes twice, in 3 formats and 2 themes, or say what is missing."""

import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.common.errors import UserError
from pipeline.report.paper_figures.labels import outside_legend
from pipeline.report.paper_figures.paper_figure import FIGURE_FORMATS, FigureTitle, PaperFigure
from pipeline.report.paper_figures.style import new_figure

TITLE = FigureTitle("a-figure", "resnet", "A title", "Figure 1")
HARMFUL = "<script>alert('$x$')</script> & co"


def plotted(theme):
    figure = Figure(figsize=(2, 1.5))
    ax = figure.subplots()
    ax.plot([0, 1], [0, 2], color=theme.series[0])  # has a clip path, whose name in an SVG is a hash
    ax.set_title(HARMFUL)
    return figure


FIGURE = TITLE.drawn("A caption", plotted)
BEGIN = {"png": b"\x89PNG\r\n", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.mark.parametrize("format", FIGURE_FORMATS)
def test_bytes_are_the_same_twice_and_differ_by_theme(format):
    light = FIGURE.render(format)
    assert light.startswith(BEGIN[format])
    assert light == FIGURE.render(format, "light")
    assert light != FIGURE.render(format, "dark")


@pytest.mark.parametrize("format", FIGURE_FORMATS)
def test_files_have_no_dates(format):
    content = FIGURE.render(format)
    for word in (b"CreationDate", b"<dc:date>", b"tIME", b"Matplotlib v"):
        assert word not in content


def test_text_of_an_svg_is_text_and_escaped():
    svg = FIGURE.render("svg").decode()
    assert "<text" in svg
    assert "&lt;script&gt;alert('$x$')&lt;/script&gt; &amp; co" in svg
    assert "<script" not in svg


def test_text_of_a_pdf_has_its_font():
    assert b"/FontFile2" in FIGURE.render("pdf")


def test_missing_figure_says_why():
    missing = TITLE.missing("No finished runs; start them with: repro run resnet/cifar10_depth --scale laptop.")
    with pytest.raises(UserError) as caught:
        missing.render("png")
    assert str(caught.value) == (
        "figure a-figure cannot be drawn. No finished runs; start them with: repro run resnet/cifar10_depth"
        " --scale laptop."
    )


@pytest.mark.parametrize("fields", [{}, {"missing": "No runs.", "draw": plotted}])
def test_figure_is_either_drawn_or_missing(fields):
    with pytest.raises(ValueError, match="give either 'draw' or 'missing'"):
        PaperFigure("a", "", "", "", "", **fields)


def test_file_has_the_format_of_its_suffix(tmp_path):
    for format in FIGURE_FORMATS:
        path = FIGURE.write(tmp_path / "new" / f"a.{format}")
        assert path.read_bytes() == FIGURE.render(format)
    with pytest.raises(UserError, match=r"a\.jpg: the format of a figure must be one of \.png, \.svg, \.pdf$"):
        FIGURE.write(tmp_path / "a.jpg")


def laid_out(theme):
    figure = new_figure(3.0, 2.0)
    ax = figure.subplots()
    ax.plot([0, 1], [0, 2000], color=theme.series[0])
    ax.set_ylabel("a label that needs room")
    figure.suptitle("a title")
    outside_legend(figure, [Line2D([], [], label="ours")])
    drawn.append(figure)
    return figure


drawn = []


def test_a_figure_is_drawn_once_for_each_theme_and_the_files_are_the_same():
    drawn.clear()
    wanted = [*((format, "light") for format in FIGURE_FORMATS), ("svg", "dark"), ("png", "dark")]
    figure = TITLE.drawn("A caption", laid_out)
    found = figure.render_all(wanted)
    assert len(drawn) == 2
    assert list(found) == wanted
    for (format, theme), content in found.items():
        assert content.startswith(BEGIN[format])
        assert content == figure.render(format, theme)


def test_the_layout_leaves_room_for_labels_and_legend():
    drawn.clear()
    TITLE.drawn("A caption", laid_out).render("png")
    (figure,) = drawn
    (ax,), (legend,) = figure.axes, figure.legends
    inside = figure.bbox
    for box in (ax.get_tightbbox(), legend.get_window_extent()):
        assert inside.x0 <= box.x0 < box.x1 <= inside.x1 + 1
        assert inside.y0 <= box.y0 < box.y1 <= inside.y1 + 1
    assert not ax.get_tightbbox().overlaps(legend.get_window_extent())
