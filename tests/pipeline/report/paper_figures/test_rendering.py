"""Test that figures rendered in several processes have the bytes, and the errors, of those of one process."""

import multiprocessing
import os

import pytest

from pipeline.common.errors import UserError
from pipeline.report.paper_figures import rendering
from pipeline.report.paper_figures.paper_figure import FigureTitle
from pipeline.report.paper_figures.rendering import with_images
from pipeline.report.paper_figures.style import new_figure

WANTED = (("svg", "light"), ("svg", "dark"), ("pdf", "light"))
ENDED = (
    "a process that draws figures was ended, perhaps for lack of memory; free some, or choose fewer experiments"
)


def titled(number):
    return FigureTitle(f"figure-{number}", "resnet", f"Title {number}", f"Figure {number}")


def line(number, before=lambda: None):
    def draw(theme):
        before()
        figure = new_figure(2, 1.5)
        figure.subplots().plot([0, 1], [0, number], color=theme.series[0])
        return figure

    return titled(number).drawn("A caption", draw)


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setattr(rendering, "available_cpus", lambda: 2)
    monkeypatch.setattr(rendering, "FEWEST_FIGURES", 2)


@pytest.fixture
def no_process(monkeypatch):
    monkeypatch.setattr(rendering, "render_in_processes", lambda *_: pytest.fail("a process was started"))


def test_processes_give_the_bytes_of_one_in_their_order(two_processes):
    figures = [line(1), titled(2).missing("No runs."), line(3), line(4), line(5)]
    rendered = with_images(figures, WANTED)
    assert rendered == figures
    assert rendered[1].images == {}
    for before, after in zip(figures, rendered, strict=True):
        if not before.missing:
            assert after.images == before.render_all(WANTED)
            assert after.render_all(WANTED[:1]) == {WANTED[0]: after.images[WANTED[0]]}
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("no_process")
def test_few_figures_are_rendered_in_this_process():
    figure = line(1)
    assert with_images([figure], WANTED)[0].images == figure.render_all(WANTED)
    assert with_images([titled(2).missing("No runs.")], WANTED)[0].images == {}


def test_images_are_not_drawn_again():
    drawings = []
    [rendered] = with_images([line(1, lambda: drawings.append(1))], WANTED)
    rendered.render_all(WANTED)
    assert len(drawings) == 1
    rendered.render("png")
    assert len(drawings) == 2


def test_process_that_is_killed_is_an_error(two_processes):
    figures = [line(number, lambda: os.kill(os.getpid(), 9)) for number in range(4)]
    with pytest.raises(UserError, match=f"^{ENDED}$"):
        with_images(figures, WANTED)


def test_error_of_a_figure_ends_all_processes(two_processes):
    def fail():
        raise UserError("weights.safetensors cannot be read")

    with pytest.raises(UserError, match=r"^weights.safetensors cannot be read$"):
        with_images([line(number, fail) for number in range(4)], WANTED)
    assert multiprocessing.active_children() == []
