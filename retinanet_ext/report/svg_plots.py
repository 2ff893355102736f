"""The drawings of a report, as SVG: narrow enough for a phone, with colours that the surrounding page sets."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

# Placeholder colours for roles. A page replaces them by its CSS variables, a separate file by _FILE_COLORS.
INK, QUIET, OURS, PAPER = "#010203", "#010204", "#010205", "#010206"
_FILE_COLORS = {INK: "#1f2328", QUIET: "#9aa1a9", OURS: "#0b65c2", PAPER: "#b8500b"}
_PAGE_COLORS = {INK: "var(--ink)", QUIET: "var(--quiet)", OURS: "var(--ours)", PAPER: "var(--paper)"}

_WIDTH = 4.8  # inches; at 72 points an inch about the width of a phone
_ROW = 0.46  # inches per arm
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "svg.hashsalt": "retinanet_ext",
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": QUIET, "xtick.color": INK, "ytick.color": INK,
    "axes.facecolor": "none", "figure.facecolor": "none", "axes.spines.top": False, "axes.spines.right": False,
    "grid.color": QUIET, "grid.alpha": 0.35, "grid.linewidth": 0.6, "legend.frameon": False,
}  # fmt: skip
_CURVE_POINTS = 150
_EDGE = 0.15  # share of an axis at each end, where the value of an arm beyond the axis is written


@dataclass(frozen=True)
class Row:
    """An arm in a plot of rows. Fields that are None or empty are not drawn.

    Args:
        label: the arm's name, and a remark if needed.
        center: the mean, or the difference.
        interval: its confidence interval.
        dots: the values of the single seeds.
        paper: the paper's value.
    """

    label: str
    center: float | None
    interval: tuple[float, float] | None
    dots: Sequence[float]
    paper: float | None


def draw_means(rows: Sequence[Row], name: str) -> str:
    """Means with intervals and seeds on the left; the paper's values, with their own axis, on the right."""
    has_paper = any(row.paper is not None for row in rows)
    with matplotlib.rc_context(STYLE):
        figure = _row_figure(rows)
        ours, paper = (
            (*figure.subplots(1, 2, sharey=True, width_ratios=(2.2, 1)),) if has_paper else (_single_axes(figure), None)
        )
        _draw_ours(ours, rows, f"{name} here")
        if has_paper:
            values = [row.paper for row in rows]
            limits = zoom_limits(values)
            for y, value in enumerate(values):
                _mark(paper, y, value, limits, "D", PAPER)
            _finish_rows(paper, [(value,) for value in values], limits, f"{name} in the paper")
        return to_svg(figure)


def draw_differences(rows: Sequence[Row], name: str, baseline: str, nothing: float = 0.0) -> str:
    """Differences to the baseline with their paired intervals, and the paper's differences below, on one axis.

    Args:
        nothing: the difference of an arm that learned nothing, see `zoom_limits`.
    """
    with matplotlib.rc_context(STYLE):
        figure = _row_figure(rows)
        axes = _single_axes(figure)
        axes.vlines([0] * len(rows), *_band(range(len(rows))), color=INK, linewidth=0.9, zorder=1)
        _draw_ours(axes, rows, f"{name}, difference to {baseline}", paper=True, nothing=nothing)
        return to_svg(figure)


def draw_curves(curves: Mapping[str, Sequence[Sequence[tuple[int, float]]]], reference: str | None, log: bool) -> str:
    """A small panel for each arm, with a line for each of its runs.

    Args:
        curves: arm -> runs -> (iteration, value).
        reference: the arm whose runs are drawn in grey in every panel, all with the same axis of values. None: no
            such arm, and a separate axis for each panel.
        log: make the axis of values logarithmic.
    """
    with matplotlib.rc_context({**STYLE, "font.size": 7.5}):
        count = math.ceil(len(curves) / 2)
        figure = Figure(figsize=(_WIDTH, 1.25 * count + 0.3), layout="constrained")
        panels = figure.subplots(count, 2, sharex=True, sharey=reference is not None, squeeze=False).ravel()
        for panel, (arm, runs) in zip(panels, curves.items(), strict=False):
            for run in curves[reference] if reference not in (None, arm) else ():
                panel.plot(*_thinned(run), color=QUIET, linewidth=0.8)
            for run in runs:
                # A run that stopped early may have only one value.
                panel.plot(*_thinned(run), "." if len(run) == 1 else "-", color=OURS, linewidth=0.9, alpha=0.8)
            panel.set_title(arm, fontsize=7.5, loc="left")
            panel.grid(True)
            panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            if log and any(value > 0 for run in runs for _, value in run):
                panel.set_yscale("log")
                panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=5))
                panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
                panel.yaxis.set_minor_formatter(NullFormatter())
        for panel in panels[len(curves) :]:
            panel.axis("off")
        for panel in panels[max(0, len(curves) - 2) : len(curves)]:
            panel.set_xlabel("iteration")
            panel.tick_params(labelbottom=True)
        return to_svg(figure)


def zoom_limits(
    values: Sequence[float | None], ends: Sequence[tuple[float, float] | None] = (), nothing: float = 0.0
) -> tuple[float, float]:
    """Limits of an axis that shows `values`, and as much of the intervals as possible without squeezing the values.

    If a gap of more than half the range splits the values, the lower group may be left outside: arms that learned
    nothing would otherwise push all other arms into one spot. The upper group is always shown.

    Args:
        values: None entries are ignored.
        ends: (low, high) of each interval, or None.
        nothing: the value of an arm that learned nothing. A lower group that is larger than the upper one is left
            outside only if it lies within a tenth of the distance from here to the highest value.
    """
    shown = np.sort(np.asarray([value for value in values if value is not None], dtype=np.float64))
    if not len(shown):
        return 0.0, 1.0
    gaps = np.diff(shown)
    if len(gaps) > 2 and gaps.max() > (shown[-1] - shown[0]) / 2:
        split = int(gaps.argmax()) + 1
        learned_nothing = shown[split - 1] - nothing <= 0.1 * (shown[-1] - nothing)
        shown = shown[split:] if len(shown) >= 2 * split or learned_nothing else shown
    middle, span = (shown[0] + shown[-1]) / 2, max(shown[-1] - shown[0], 0.02 * abs(shown[-1]), 0.2)
    low, high = middle - span / 2, middle + span / 2
    inside = [interval for interval in ends if interval is not None and interval[0] <= high and interval[1] >= low]
    low_end, high_end = min([low, *(pair[0] for pair in inside)]), max([high, *(pair[1] for pair in inside)])
    return (max(low_end, low - span / 2) - 0.06 * span, min(high_end, high + span / 2) + 0.06 * span)


def for_page(svg: str) -> str:
    """The drawing for an HTML page that sets the CSS variables --ink, --quiet, --ours and --paper."""
    return _recolor(svg[svg.index("<svg") :], _PAGE_COLORS)


def for_file(svg: str) -> str:
    """The drawing as a separate file, on white."""
    colored = _recolor(svg, _FILE_COLORS)
    return re.sub(r"(<svg\b[^>]*>)", r'\1\n <rect width="100%" height="100%" fill="#ffffff"/>', colored, count=1)


def _recolor(svg, colors):
    for role, color in colors.items():
        svg = svg.replace(role, color)
    return svg


def to_svg(figure: Figure) -> str:
    """The figure as SVG, with the placeholder colours."""
    text = io.StringIO()
    # No date: the same results give the same file.
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return text.getvalue()


def _row_figure(rows):
    return Figure(figsize=(_WIDTH, _ROW * len(rows) + 0.75), layout="constrained")


def _single_axes(figure):
    return figure.subplots()


def _draw_ours(axes, rows, label, paper=False, nothing=0.0):
    values = [row.center for row in rows] + [dot for row in rows for dot in row.dots]
    limits = zoom_limits(values + [row.paper for row in rows if paper], [row.interval for row in rows], nothing)
    for y, row in enumerate(rows):
        if row.interval is not None:
            _draw_interval(axes, y, row, limits)
        axes.plot(row.dots, [y + 0.24] * len(row.dots), "o", color=OURS, markersize=2.8, alpha=0.6, zorder=2)
        _mark(axes, y, row.center, limits, "o", OURS)
        if paper:
            _mark(axes, y + 0.24, row.paper, limits, "D", PAPER)
        axes.text(0.0, y - 0.3, row.label, transform=axes.get_yaxis_transform(), fontsize=8.5, va="center")
    _finish_rows(axes, [(row.center, row.paper if paper else None) for row in rows], limits, label)


def _draw_interval(axes, y, row, limits):
    low, high = np.clip(row.interval, *limits)
    for end, marker in zip((low, high), "<>"):
        if end not in row.interval and limits[0] <= row.center <= limits[1]:  # it continues beyond the edge
            axes.plot(end, y, marker, color=OURS, markersize=3.5, alpha=0.75, clip_on=False)
    # The value of a mean beyond the edge is written there.
    low = max(low, limits[0] + _EDGE * (limits[1] - limits[0])) if row.center < limits[0] else low
    high = min(high, limits[1] - _EDGE * (limits[1] - limits[0])) if row.center > limits[1] else high
    if low < high:
        axes.plot((low, high), (y, y), color=OURS, linewidth=1.6, alpha=0.75, solid_capstyle="butt", zorder=2)


def _mark(axes, y, value, limits, marker, color):
    """Draw the value; beyond the limits, draw an arrow with its number at the edge."""
    if value is None:
        return
    if limits[0] <= value <= limits[1]:
        axes.plot(value, y, marker, color=color, markersize=5 if marker == "o" else 4, zorder=3)
        return
    left = value < limits[0]
    axes.plot(limits[0 if left else 1], y, "<" if left else ">", color=color, markersize=5, clip_on=False, zorder=3)
    axes.annotate(
        f"{value:.1f}", (limits[0 if left else 1], y), (7 if left else -7, 0), textcoords="offset points",
        ha="left" if left else "right", va="center", fontsize=7.5, color=color,
    )  # fmt: skip


def _band(rows):
    """(tops, bottoms) of the parts of rows that hold marks; the label stands above."""
    rows = np.asarray(rows)
    return rows - 0.14, rows + 0.46


def _finish_rows(axes, values, limits, label):
    """`values`: for each row, what is marked in it."""
    axes.set(xlim=limits, ylim=(len(values) - 0.45, -0.6), yticks=[], xlabel=label)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5 if axes.get_position().width > 0.4 else 3))
    # Grid lines run beside the marks only: through the labels, they would strike them out.
    inner = [limits[0] + share * (limits[1] - limits[0]) for share in (_EDGE, 1 - _EDGE)]
    for y, marked in enumerate(values):
        beyond = any(value is not None and not limits[0] <= value <= limits[1] for value in marked)
        ticks = [tick for tick in axes.get_xticks() if limits[0] <= tick <= limits[1]]
        ticks = [tick for tick in ticks if inner[0] <= tick <= inner[1]] if beyond else ticks
        axes.vlines(ticks, *_band(np.full(len(ticks), y)), color=QUIET, linewidth=0.6, alpha=0.35, zorder=0.5)
    axes.hlines(
        np.arange(1, len(values)) - 0.52, 0, 1, QUIET, linewidth=0.5, alpha=0.5, transform=axes.get_yaxis_transform()
    )


def _thinned(curve):
    """(iterations, values); neighbours are averaged if a curve has more points than a panel can show."""
    if not curve:
        return [], []
    points = np.asarray(curve, dtype=np.float64)
    blocks = np.array_split(points, min(len(points), _CURVE_POINTS))
    return zip(*(block.mean(axis=0) for block in blocks))
