"""The chart of top-5 errors: the paper's as a hollow diamond, ours as a disc, joined by a line."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.report.figures import save_figure
from pipeline.report.paper_figures.style import THEMES

MAX_BARS = 40  # networks that fit a page

Bar = tuple[str, float, float]  # network, the paper's error and ours, in percent


def top5_chart(bars: Sequence[Bar], path: Path) -> Path:
    """Write `top5_figure` to the PNG file `path`."""
    return save_figure(top5_figure(bars), path, dpi=110)


def top5_figure(bars: Sequence[Bar]) -> Figure:
    """Return the chart of the first MAX_BARS networks, the first at the top."""
    shown = bars[:MAX_BARS]
    figure = Figure(figsize=(8, 1.4 + 0.3 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    places = range(len(shown))
    for place, (_, paper, ours) in zip(places, shown, strict=True):
        ax.plot([paper, ours], [place, place], color="#999999", linewidth=1.5, zorder=1)
    papers, ours_ = [bar[1] for bar in shown], [bar[2] for bar in shown]
    ax.scatter(papers, places, s=44, marker="D", facecolors="white", edgecolors="black", zorder=3, label="paper")
    ax.scatter(ours_, places, s=28, color=THEMES["light"].series[0], zorder=4, label="ours, mean over seeds")
    ax.set_yticks(places, [bar[0] for bar in shown], fontsize=8)
    ax.invert_yaxis()
    ax.set_xlim(left=0)
    ax.set_xlabel("top-5 error (%)")
    left_out = len(bars) - len(shown)
    ax.set_title(f"Top-5 errors{f' ({left_out} more networks are in the table)' if left_out else ''}", fontsize=10)
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.8 / figure.get_figheight()), ncols=2)
    ax.grid(axis="x", alpha=0.25, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    return figure
