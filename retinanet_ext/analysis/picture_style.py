"""The style that all pictures share. It leaves pyplot's global state alone, so that any thread may draw."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Distinguishable for the colour-blind and in grey (Okabe and Ito, "Color Universal Design").
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#8c8c8c"


def ordered_colors(count: int) -> list:
    """Colours for values that have an order, such as gammas: from dark to light, none too light for a white page."""
    return [colormaps["viridis"](0.85 * index / max(1, count - 1)) for index in range(count)]


def new_figure(panels: int = 1, *, width: float = 5.2, height: float = 4.2) -> tuple[Figure, Sequence[Axes]]:
    """A figure with ``panels`` side by side, each ``width`` by ``height`` inches."""
    figure = Figure(figsize=(width * panels, height), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis in axes:
        axis.grid(color="#e4e4e4", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a PNG; creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
