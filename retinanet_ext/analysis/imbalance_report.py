"""The files of ``retinanet-ext imbalance``: Figure 4 of the Focal Loss paper, its curves and its table."""

import csv
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from .loss_distribution import LossDistribution
from .picture_style import new_figure, ordered_colors, save_figure

_HARDEST = (0.01, 0.1, 0.2, 0.5)
_SETS = ("foreground", "background")
# Where the CSV file samples the curves: every hundredth, and more finely for the hardest entries, up to 1 - 1e-7.
_FRACTIONS = np.concatenate([np.linspace(0.0, 0.99, 100), 1.0 - np.logspace(-2, -7, 101)[1:], [1.0]])


def write_report(distribution: LossDistribution, heading: str, about: dict[str, str], output: Path) -> None:
    """Write ``imbalance.png``, ``.csv``, ``.json`` and ``.md``.

    Args:
        distribution: the losses.
        heading: what was measured, for the table's file.
        about: dataset, config, weights and engine, for the JSON file.
        output: the folder.
    """
    save_figure(draw(distribution), output / "imbalance.png")
    _write_curves(distribution, output / "imbalance.csv")
    (output / "imbalance.json").write_text(json.dumps(about | _summary(distribution), indent=2) + "\n")
    table = format_table(distribution)
    (output / "imbalance.md").write_text(f"# Distribution of the loss\n\n{heading}.\n\n{table}\n")


def draw(distribution: LossDistribution) -> Figure:
    """Figure 4: cumulative normalised loss over the fraction of entries, foreground left, background right."""
    figure, axes = new_figure(panels=2)
    for axis, name in zip(axes, _SETS):
        histogram = getattr(distribution, name)
        for gamma, color in zip(distribution.gammas, ordered_colors(len(distribution.gammas))):
            # No clipping, because the steepest curves run along the border.
            axis.plot(*histogram.curve(gamma), color=color, linewidth=2, label=f"γ = {gamma:g}", clip_on=False)
        axis.set(xlim=(0, 1), ylim=(0, 1), xlabel=f"fraction of {name} entries, by ascending loss")
        axis.set(ylabel="cumulative normalised loss", title=f"{name}: {len(histogram):,} entries")
        axis.legend(loc="upper left", edgecolor="none")
    return figure


def format_table(distribution: LossDistribution) -> str:
    """Markdown: the share of the loss in the hardest entries."""
    rows = [
        [name, f"{gamma:g}", *(f"{100 * getattr(distribution, name).hardest(part, gamma):.1f} %" for part in _HARDEST)]
        for name in _SETS
        for gamma in distribution.gammas
    ]
    headers = ["entries", "gamma", *(f"loss in the hardest {part:.0%}" for part in _HARDEST)]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _summary(distribution):
    shares = {
        name: {
            f"{gamma:g}": {f"{part:g}": getattr(distribution, name).hardest(part, gamma) for part in _HARDEST}
            for gamma in distribution.gammas
        }
        for name in _SETS
    }
    return {
        "images": distribution.num_images,
        "entries": {name: len(getattr(distribution, name)) for name in _SETS},
        "ignored_anchors": distribution.num_ignored,
        "share_of_loss_in_hardest": shares,
    }


def _write_curves(distribution, path):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["entries", "gamma", "fraction_of_entries", "cumulative_normalised_loss"])
        for name in _SETS:
            for gamma in distribution.gammas:
                shares = np.interp(_FRACTIONS, *getattr(distribution, name).curve(gamma))
                writer.writerows([name, gamma, f"{x:.9g}", f"{y:.9g}"] for x, y in zip(_FRACTIONS, shares))
