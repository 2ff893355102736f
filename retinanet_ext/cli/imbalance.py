"""``retinanet-ext imbalance``: how the loss of a trained model is distributed over its entries (paper, Figure 4)."""

import argparse
import csv
import json
import logging
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from retinanet_ext.analysis.loss_distribution import LossDistribution, annotated_loader, loss_distribution
from retinanet_ext.analysis.picture_style import new_figure, ordered_colors, save_figure
from retinanet_ext.checkpoint.weights import load_weights
from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import ENGINE, build_model
from retinanet_ext.machine.devices import check_device

from .usage import UsageError, usage_errors

HELP = "Distribution of a trained model's loss over foreground and background, for several gammas (paper, Figure 4)."
_HARDEST = (0.01, 0.1, 0.2, 0.5)
_SETS = ("foreground", "background")
# Where the CSV file samples the curves: every hundredth, and more finely for the hardest entries, up to 1 - 1e-7.
_FRACTIONS = np.concatenate([np.linspace(0.0, 0.99, 100), 1.0 - np.logspace(-2, -7, 101)[1:], [1.0]])

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config, ideally the config.yaml of a run")
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint of the trained model")
    parser.add_argument("--dataset", metavar="NAME", help="annotated dataset; default: the first of DATASETS.TEST")
    parser.add_argument(
        "--gammas", nargs="+", type=float, default=[0.0, 0.5, 1.0, 2.0], metavar="G",
        help="focusing exponents, all on the same predictions (default: 0 0.5 1 2)",
    )  # fmt: skip
    parser.add_argument("--max-images", type=int, metavar="N", help="only the first N images (default: all)")
    parser.add_argument("--output", metavar="DIR", help="default: the folder imbalance in the config's OUTPUT_DIR")
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="config overrides; directly after --gammas, put -- before them"
    )


def run(args: argparse.Namespace) -> int:
    with usage_errors():
        overrides = ["DATASETS.TEST", str((args.dataset,))] if args.dataset else []
        cfg = load_config(args.config_file, [*args.opts, *overrides])
        if not cfg.DATASETS.TEST:
            raise UsageError("the config's DATASETS.TEST names no dataset; give one with --dataset NAME")
        dataset = cfg.DATASETS.TEST[0]
        check_device(cfg.MODEL.DEVICE)
        model = build_model(cfg)
        load_weights(model, args.weights, strict=True)
        distribution = loss_distribution(model, annotated_loader(cfg, dataset, args.max_images), args.gammas)
        table = _table(distribution)
    output = Path(args.output or Path(cfg.OUTPUT_DIR) / "imbalance")
    about = {"dataset": dataset, "config": args.config_file, "weights": args.weights, "engine": ENGINE}
    save_figure(draw(distribution), output / "imbalance.png")
    _write_curves(distribution, output / "imbalance.csv")
    content = about | _summary(distribution)
    (output / "imbalance.json").write_text(json.dumps(content, indent=2) + "\n")
    heading = f"{args.weights} on {dataset}, {distribution.num_images} images"
    (output / "imbalance.md").write_text(f"# Distribution of the loss\n\n{heading}.\n\n{table}\n")
    print(f"{heading}\n\n{table}")
    logger.info("Picture, curves and table: %s/imbalance.png, .csv, .json, .md", output)
    return 0


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


def _table(distribution):
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
