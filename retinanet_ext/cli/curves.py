"""``retinanet-ext curves``: the paper's loss curves (Figures 1, 5 and 6)."""

import argparse
import csv
from pathlib import Path

from .usage import usage_errors

HELP = "Draw the losses and their derivatives as in the Focal Loss paper (Figures 1, 5 and 6)."
_FIGURES = {
    "figure_1": "focal loss by p_t",
    "figure_5": "CE, FL and FL* by the margin x_t",
    "figure_6": "their derivatives by the logit",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the pictures and their values")


def run(args: argparse.Namespace) -> int:
    from retinanet_ext.analysis import loss_curves
    from retinanet_ext.analysis.picture_style import save_figure

    output = Path(args.output)
    with usage_errors():
        output.mkdir(parents=True, exist_ok=True)
    for name, what in _FIGURES.items():
        figure, columns = getattr(loss_curves, name)()
        save_figure(figure, output / f"{name}.png")
        with (output / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows([f"{value:.9g}" for value in row] for row in zip(*columns.values()))
        print(f"{output / name}.png, .csv: {what}")
    return 0
