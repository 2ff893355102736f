"""The drawings of an evaluation of detections: precision and recall, F1, calibration, confusion, errors, sizes.

K classes. Rates are in 0 to 1.
"""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from .svg_plots import INK, OURS, PAPER, QUIET, STYLE, to_svg

_SIZE = (4.8, 3.4)
_HIGHLIGHTED = 5  # curves that are drawn with a name of their own
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_CELL = 0.42  # inches


def draw_precision_recall(precisions: np.ndarray, names: Sequence[str]) -> str:
    """Precision over recall, a line for each class, the mean in bold.

    Args:
        precisions: ``(K, 101)``, at recall 0, 0.01, ..., 1; NaN for a class without objects.
        names: of the K classes.
    """
    recalls = np.linspace(0, 1, precisions.shape[1])
    return _class_curves(
        [(recalls, row) for row in precisions], names, x_label="recall", y_label="precision", mean=(recalls, precisions)
    )


def draw_f1(curves: Sequence[tuple[np.ndarray, np.ndarray]], names: Sequence[str]) -> str:
    """F1 over the score threshold, a line for each class.

    Args:
        curves: for each class scores ``(S,)``, descending, and the F1 ``(S,)`` of all detections from that score on.
    """
    grid = np.linspace(0, 1, 201)
    sampled = np.array([_steps(grid, *curve) for curve in curves]).reshape(len(curves), len(grid))
    return _class_curves(
        [(grid, row) for row in sampled], names, x_label="score threshold", y_label="F1", mean=(grid, sampled)
    )


def _steps(grid, scores, f1):
    """F1 at thresholds of `grid`: that of the lowest score not below; 0 above the highest score."""
    if not len(scores) or np.isnan(f1).all():
        return np.full(len(grid), np.nan)
    index = np.searchsorted(-scores, -grid, side="right") - 1
    return np.where(index >= 0, f1[np.maximum(index, 0)], 0.0)


def _class_curves(curves, names, *, x_label, y_label, mean):
    defined = [index for index, (_, ys) in enumerate(curves) if not np.isnan(ys).all()]
    order = sorted(defined, key=lambda index: -np.nanmean(curves[index][1]))
    named = order if len(order) <= _HIGHLIGHTED else [*order[:2], *order[-2:]]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        for index in (index for index in order if index not in named):
            axes.plot(*curves[index], color=QUIET, linewidth=0.6, alpha=0.6)
        for index, dash in zip(named, _DASHES, strict=False):
            axes.plot(*curves[index], color=OURS, linewidth=1.2, linestyle=dash, label=_short(names[index]))
        if len(order) > 1:
            axes.plot(mean[0], np.nanmean(mean[1][order], axis=0), color=PAPER, linewidth=2.2, label="mean of classes")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel=x_label, ylabel=y_label)
        axes.grid(True)
        if named:
            axes.legend(loc="best", fontsize=7.5)
        return to_svg(figure)


def draw_reliability(edges: np.ndarray, mean_scores: np.ndarray, precisions: np.ndarray, counts: np.ndarray) -> str:
    """The share of right detections over their score, a bar for each bin, above the number of detections.

    Args:
        edges: ``(B + 1,)``, of the bins.
        mean_scores, precisions: ``(B,)``, NaN for empty bins.
        counts: ``(B,)``, detections.
    """
    middles, widths = (edges[1:] + edges[:-1]) / 2, np.diff(edges) * 0.92
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        axes.bar(middles, np.nan_to_num(precisions), widths, color=OURS, alpha=0.35)
        axes.plot((0, 1), (0, 1), color=QUIET, linewidth=0.9, linestyle="--", label="score = share that is right")
        axes.plot(mean_scores, precisions, "o", color=PAPER, markersize=4, label="mean score of a bin, share right")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share that is right")
        axes.legend(loc="upper left", fontsize=7.5)
        axes.grid(True)
        below.bar(middles, counts, widths, color=QUIET)
        below.set(xlabel="score", ylabel="detections")
        if counts.max(initial=0) > 50 * max(1, np.median(counts)):
            below.set_yscale("log")
            below.set_ylim(bottom=0.8)
            below.yaxis.set_major_locator(LogLocator(numticks=4))
            below.yaxis.set_minor_formatter(NullFormatter())
        else:
            below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        return to_svg(figure)


def draw_confusion(matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> str:
    """A heat map of counts, coloured by the share of a row; the number stands in each cell that is not 0.

    Args:
        matrix: ``(R, C)``, counts.
        rows: what was there.
        columns: what was predicted.
    """
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = max(_CELL, 2.8 / max(matrix.shape[1], 1)) if len(rows) < 8 else _CELL
    size = (side * matrix.shape[1] + 1.5, min(side, 0.55) * matrix.shape[0] + 1.3)
    with matplotlib.rc_context({**STYLE, "font.size": 8}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        for (row, column), share in np.ndenumerate(shares):
            if matrix[row, column]:
                axes.add_patch(
                    Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=OURS, alpha=0.08 + 0.55 * share, linewidth=0)
                )
                axes.text(column, row, _count(matrix[row, column]), ha="center", va="center", fontsize=7.5, color=INK)
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
        axes.set_xticks(range(len(columns)), [_short(name) for name in columns], rotation=45, ha="right")
        axes.set_yticks(range(len(rows)), [_short(name) for name in rows])
        axes.set(xlabel="predicted", ylabel="true")
        for side_name in ("left", "bottom"):
            axes.spines[side_name].set_visible(False)
        axes.tick_params(length=0)
        return to_svg(figure)


def draw_costs(labels: Sequence[str], costs: Sequence[float], x_label: str) -> str:
    """Horizontal bars, the value beside each."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_SIZE[0], 0.34 * len(labels) + 0.8), layout="constrained")
        axes = figure.subplots()
        axes.barh(range(len(labels)), costs, 0.65, color=OURS, alpha=0.6)
        longest = max([*costs, 1e-9])
        for row, cost in enumerate(costs):
            axes.text(max(cost, 0) + 0.015 * longest, row, f"{cost:.1f}", va="center", fontsize=8)
        axes.set_yticks(range(len(labels)), labels)
        axes.set(ylim=(len(labels) - 0.4, -0.6), xlim=(min(0, *costs), 1.15 * longest), xlabel=x_label)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        return to_svg(figure)


def draw_intervals(
    labels: Sequence[str], values: Sequence[float], intervals: Sequence[tuple[float, float] | None], x_label: str
) -> str:
    """A dot for each value and a line for its interval, on an axis from 0 to 100."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_SIZE[0], 0.34 * len(labels) + 0.8), layout="constrained")
        axes = figure.subplots()
        for row, (value, interval) in enumerate(zip(values, intervals)):
            if interval is not None:
                axes.plot(interval, (row, row), color=OURS, linewidth=2, alpha=0.6, solid_capstyle="butt")
            axes.plot(value, row, "o", color=OURS, markersize=5)
            axes.annotate(f"{value:.1f}", (value, row), (0, 6), textcoords="offset points", fontsize=7.5, ha="center")
        axes.set_yticks(range(len(labels)), [_short(label, 24) for label in labels])
        axes.set(ylim=(len(labels) - 0.4, -0.8), xlim=(0, 100), xlabel=x_label)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.grid(True, axis="x")
        axes.tick_params(axis="y", length=0)
        return to_svg(figure)


def _count(value) -> str:
    value = int(value)
    return f"{value}" if value < 10_000 else f"{value / 1000:.0f}k"


def _short(name: str, longest: int = 16) -> str:
    text = " ".join(str(name).split()).replace("$", r"\$")
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
