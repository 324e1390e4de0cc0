"""Render many figures, in several processes where that is faster."""

import multiprocessing
import signal
from collections.abc import Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import cloudpickle

from pipeline.common.environment import available_cpus
from pipeline.common.errors import UserError
from pipeline.report.paper_figures.paper_figure import ImageKind, PaperFigure

Images = dict[ImageKind, bytes]

FEWEST_FIGURES = 10  # of a process: to start one takes as long as to render some

MOST_PROCESSES = 8


def with_images(figures: Sequence[PaperFigure], wanted: Collection[ImageKind]) -> list[PaperFigure]:
    """Return the figures, those with evidence with their images in the `wanted` formats and themes.

    Raises UserError if a process ends early.
    """
    drawn = [figure for figure in figures if not figure.missing]
    count = min(available_cpus(), len(drawn) // FEWEST_FIGURES, MOST_PROCESSES)
    if count < 2:
        images = [figure.render_all(wanted) for figure in drawn]
    else:
        shares = [drawn[number::count] for number in range(count)]
        rendered = render_in_processes(shares, wanted)
        images = [rendered[place % count][place // count] for place in range(len(drawn))]
    found = iter(images)
    return [figure if figure.missing else replace(figure, images=next(found)) for figure in figures]


def render_in_processes(
    shares: Sequence[Sequence[PaperFigure]], wanted: Collection[ImageKind]
) -> list[list[Images]]:
    """Return the images of each share of the figures, rendered in a process of its own.

    What a figure is drawn from includes closures, which cloudpickle can send. Processes are spawned, not forked:
    other threads of this one may hold locks. They end with it, and at Ctrl-C.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(shares), context, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        try:
            jobs = [pool.submit(render_share, cloudpickle.dumps(share), [*wanted]) for share in shares]
            return [job.result() for job in jobs]
        except BrokenProcessPool:
            raise UserError(
                "a process that draws figures was ended, perhaps for lack of memory; free some, or choose fewer"
                " experiments"
            ) from None
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def render_share(share: bytes, wanted: Collection[ImageKind]) -> list[Images]:
    """Return the images of figures that cloudpickle has serialised."""
    return [figure.render_all(wanted) for figure in cloudpickle.loads(share)]
