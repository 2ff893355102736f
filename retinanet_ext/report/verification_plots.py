"""The drawings of a verification: the ROC over a logarithmic axis, and the histograms of distances."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from .svg_plots import INK, OURS, PAPER, QUIET, STYLE, to_svg

_SIZE = (4.8, 3.4)
_BINS = 50
_CURVE_POINTS = 400


def draw_roc(
    far: np.ndarray,
    val: np.ndarray,
    num_different: int,
    marks: Sequence[tuple[float, float, float, str]],
    operating_point: tuple[float, float],
) -> str:
    """VAL over FAR.

    Args:
        far, val: both ``(M,)``, 0 to 1, ascending.
        num_different: 1 over it is the smallest FAR above 0 that can be seen; the axis starts at half of that, where
            points with FAR 0 are drawn too.
        marks: FAR, VAL, standard error of VAL (NaN: none) and label of each marked point.
        operating_point: FAR and VAL at the threshold of the accuracy.
    """
    edge = 0.5 / num_different
    positions = np.unique(np.searchsorted(far, np.geomspace(edge, 1.0, _CURVE_POINTS), side="right") - 1)
    # Both corners of each step: the first and the last of the points with one FAR.
    corners = np.unique(np.concatenate([positions, np.searchsorted(far, far[positions]), [0, len(far) - 1]]))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        axes.plot(np.maximum(far[corners], edge), val[corners], color=OURS, linewidth=1.4, label="all pairs")
        chance = np.geomspace(edge, 1.0, 100)
        axes.plot(chance, chance, color=QUIET, linewidth=0.8, linestyle="--", label="chance")
        label = f"accuracy's threshold: FAR {operating_point[0]:.2g}, VAL {operating_point[1]:.1%}"
        axes.plot(max(operating_point[0], edge), operating_point[1], "D", color=INK, markersize=5, label=label)
        for index, (mark_far, mark_val, error, text) in enumerate(marks):
            error = None if np.isnan(error) else error
            style = {"label": "held out, with standard error"} if index == 0 else {}
            axes.errorbar(
                max(mark_far, edge), mark_val, yerr=error, fmt="o", color=PAPER, markersize=4, capsize=2, **style
            )
            axes.annotate(
                text, (max(mark_far, edge), mark_val), (5, -11), textcoords="offset points", fontsize=7.5, color=PAPER
            )
        axes.set(
            xscale="log", xlim=(edge, 1.0), ylim=(0.0, 1.02), xlabel="FAR: different pairs accepted",
            ylabel="VAL: same pairs accepted",
        )  # fmt: skip
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(True)
        axes.legend(loc="lower right", fontsize=7.5)
        return to_svg(figure)


def draw_distances(same: np.ndarray, different: np.ndarray, threshold: float) -> str:
    """Histograms of the distances of same pairs ``(S,)`` and of different pairs ``(F,)``, each in shares of its kind.

    Args:
        threshold: pairs up to it are accepted.
    """
    values = np.concatenate([same, different])
    edges = np.linspace(min(0.0, float(values.min())), float(values.max()) or 1.0, _BINS + 1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        for distances, color, label in ((same, OURS, "same"), (different, PAPER, "different")):
            shares = np.histogram(distances, edges)[0] / len(distances)
            axes.stairs(shares, edges, color=color, fill=True, alpha=0.35)
            axes.stairs(shares, edges, color=color, linewidth=1.2, label=f"{len(distances):,} {label} pairs")
        axes.axvline(threshold, color=INK, linewidth=1.0, linestyle="--", label=f"threshold {threshold:.3f}")
        axes.set(xlabel="squared L2 distance", ylabel="share of pairs", ylim=(0.0, None))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.legend(fontsize=7.5)
        return to_svg(figure)
