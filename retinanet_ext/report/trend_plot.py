"""The drawing of a trend: a line for each arm over a logarithmic axis, with the arms' names at the lines' ends."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from .svg_plots import INK, OURS, QUIET, STYLE, to_svg

# Distinguishable for the colour-blind (Okabe and Ito), readable on a light and on a dark page.
_COLORS = ("#d55e00", "#009e73", "#cc79a7", "#b58900", "#56a0d3", "#8c6bb1", "#7f7f7f")
_MARKERS = "osD^vP*X"
_WIDTH, _HEIGHT = 6.4, 4.0
_LABEL_POINTS = 8.0


@dataclass(frozen=True)
class Line:
    """An arm.

    Args:
        points: (x, mean, interval or None, values of the seeds), by x; without the levels that have no value.
    """

    label: str
    points: Sequence[tuple[float, float, tuple[float, float] | None, Sequence[float]]]


def draw_trend(lines: Sequence[Line], reference: str, x_label: str, y_label: str) -> str:
    """Means with intervals over x; a dot for each seed. Arms stand slightly side by side, to keep intervals apart."""
    lines = [line for line in lines if line.points]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, max(_HEIGHT, 0.2 * len(lines) + 1.0)))
        axes = figure.add_axes((0.1, 0.13, 0.66, 0.84))
        ticks = sorted({point[0] for line in lines for point in line.points})
        limits = _set_axes(axes, lines, ticks, x_label, y_label)
        others = [line.label for line in lines if line.label != reference]
        colors = {label: _COLORS[i % len(_COLORS)] for i, label in enumerate(others)} | {reference: OURS}
        ends = []
        for i, line in enumerate(lines):
            shift = 1.012 ** (i - (len(lines) - 1) / 2)
            _draw_line(axes, line, shift, colors[line.label], _MARKERS[i % len(_MARKERS)], line.label == reference)
            ends.append((line.label, line.points[-1][0] * shift, line.points[-1][1]))
        _write_labels(axes, ends, colors, limits, reference)
        return to_svg(figure)


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The positions, moved apart to a distance of at least `gap`, in the same order, and within limits if they fit."""
    order = np.argsort(positions, kind="stable")
    moved = np.asarray(positions, dtype=np.float64)[order]
    for i in range(len(moved)):
        moved[i] = max(moved[i], low if i == 0 else moved[i - 1] + gap)
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], high if i == len(moved) - 1 else moved[i + 1] - gap)
    result = np.empty(len(moved))
    result[order] = moved
    return result.tolist()


def _set_axes(axes, lines, ticks, x_label, y_label):
    shown = [value for line in lines for _, mean, _, seeds in line.points for value in (mean, *seeds)]
    span = max(max(shown) - min(shown), 1.0)
    low, high = min(shown) - 0.08 * span, max(shown) + 0.08 * span
    axes.set(xscale="log", xlim=(ticks[0] / 1.12, ticks[-1] * 1.12), ylim=(low, high), xlabel=x_label, ylabel=y_label)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:.0f}" for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.grid(True, axis="y")
    return low, high


def _draw_line(axes, line, shift, color, marker, is_reference):
    xs = [x * shift for x, *_ in line.points]
    width = 2.0 if is_reference else 1.2
    axes.plot(xs, [mean for _, mean, *_ in line.points], f"-{marker}", color=color, linewidth=width, markersize=4.5)
    for x, (_, _, interval, seeds) in zip(xs, line.points):
        if interval is not None:
            axes.plot((x, x), interval, color=color, linewidth=1.0, alpha=0.7)
        axes.plot([x] * len(seeds), seeds, "o", color=color, markersize=2.0, alpha=0.6)


def _write_labels(axes, ends, colors, limits, reference):
    """Names in a column at the right; a thin line leads from the end of each arm to its name."""
    height = axes.figure.get_figheight() * axes.get_position().height * 72
    gap = 1.35 * _LABEL_POINTS / height * (limits[1] - limits[0])
    right = axes.get_xlim()[1]
    for (label, x, y), moved in zip(ends, spread([y for *_, y in ends], gap, *limits)):
        axes.annotate(
            label, (x, y), (1.04, moved), textcoords=("axes fraction", "data"), color=colors[label], va="center",
            fontsize=_LABEL_POINTS, fontweight="bold" if label == reference else "normal", annotation_clip=False,
        )  # fmt: skip
        axes.plot([x, right], [y, y], color=QUIET, linewidth=0.5, linestyle=":")
        axes.annotate(
            "", (right, y), (1.035, moved), textcoords=("axes fraction", "data"), annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": QUIET, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip
    axes.tick_params(colors=INK)
