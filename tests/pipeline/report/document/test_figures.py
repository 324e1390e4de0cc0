"""Test figures on pages: inlined or as files, light and dark, and the reason where there is none."""

import base64

from pipeline.report.document.figures import embed_figures, figure_files, print_figures
from pipeline.report.paper_figures.paper_figure import FigureTitle
from tests.support.reports import HOSTILE, empty_figure

ABSENT = FigureTitle("resnet-figure-6", "resnet", "Curves", "Figure 6").missing("no finished runs")


def svg(address):
    kind, _, data = address.partition(",")
    assert kind == "data:image/svg+xml;base64"
    return base64.b64decode(data)


def test_an_embedded_figure_has_both_themes():
    (shown,) = embed_figures([empty_figure()])
    light, dark = svg(shown.light), svg(shown.dark)
    assert b"<svg" in light
    assert b"<svg" in dark
    assert light != dark


def test_a_printed_figure_is_light():
    (shown,) = print_figures([empty_figure()])
    assert svg(shown.light) == svg(embed_figures([empty_figure()])[0].light)
    assert shown.dark == ""


def test_a_missing_figure_has_its_reason_and_no_image():
    for shown in (embed_figures([ABSENT])[0], print_figures([ABSENT])[0], figure_files(ABSENT)[0]):
        assert (shown.missing, shown.light, shown.dark) == ("no finished runs", "", "")
    assert figure_files(ABSENT)[1] == {}


def test_a_site_has_files_in_three_formats():
    shown, files = figure_files(empty_figure())
    assert set(files) == {f"figures/toy-figure{end}" for end in (".png", ".svg", ".pdf", "-dark.svg")}
    assert (shown.light, shown.dark) == ("figures/toy-figure.svg", "figures/toy-figure-dark.svg")
    assert [name for name, _ in shown.files] == ["PNG", "SVG", "PDF"]
    assert files["figures/toy-figure.png"].startswith(b"\x89PNG")
    assert files["figures/toy-figure.pdf"].startswith(b"%PDF")


def test_the_name_of_a_file_stays_in_its_folder():
    for name in ("../../x", HOSTILE):
        assert all(file.count("/") == 1 and ".." not in file for file in figure_files(empty_figure(name))[1])
