"""The drawings of a run's course: losses, learning rate, metrics and times over iterations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from .svg_plots import OURS, QUIET, STYLE, to_svg

_WIDTH = 4.8
_POINTS = 300


@dataclass(frozen=True)
class Panel:
    """One small plot over iterations.

    Args:
        title: what is drawn, with its unit.
        points: (iteration, value), by iteration.
        floor: smallest value that the axis shows; None: it follows the values.
    """

    title: str
    points: Sequence[tuple[int, float]]
    floor: float | None = None


def draw_history(panels: Sequence[Panel], resumes: Sequence[int] = ()) -> str:
    """Panels over one axis of iterations. An axis of values is logarithmic where the values ask for it.

    Args:
        resumes: iterations at which the run was resumed; a dotted line each.
    """
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    height = 2.4 if rows == columns == 1 else 1.5 * rows + 0.3
    with matplotlib.rc_context({**STYLE, "font.size": 8}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
        for axes, panel in zip(grid, panels, strict=False):
            _draw_panel(axes, panel, resumes)
        for axes in grid[len(panels) :]:
            axes.axis("off")
        for axes in grid[max(0, len(panels) - columns) : len(panels)]:
            axes.set_xlabel("iteration")
            axes.tick_params(labelbottom=True)
        return to_svg(figure)


def is_logarithmic(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows the values better: most of them would lie in the lowest part of a linear one."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 4 or values.min() <= 0:
        return False
    return values.max() > 10 * values.min() and np.median(values) < 0.15 * values.max()


def _draw_panel(axes, panel: Panel, resumes: Sequence[int]) -> None:
    xs, ys = _thinned(panel.points)
    axes.plot(xs, ys, "-o" if len(xs) <= 12 else "-", markersize=2.5, color=OURS, linewidth=1.1)
    axes.set_title(panel.title, fontsize=8, loc="left")
    axes.grid(True)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for iteration in resumes:
        axes.axvline(iteration, color=QUIET, linewidth=0.9, linestyle=":")
    if is_logarithmic(ys):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=5))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        return
    axes.yaxis.set_major_locator(MaxNLocator(4))
    if panel.floor is not None:
        # Set with the upper end, because the margin of the data is too small once the axis starts at the floor.
        axes.set_ylim(panel.floor, panel.floor + 1.08 * max(float(np.max(ys)) - panel.floor, 1e-12))


def _thinned(points):
    """(iterations, values); neighbours are averaged where there are more points than a panel can show."""
    array = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    blocks = np.array_split(array, max(1, min(len(array), _POINTS)))
    means = np.array([block.mean(axis=0) for block in blocks])
    return means[:, 0], means[:, 1]
