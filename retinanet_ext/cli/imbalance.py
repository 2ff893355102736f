"""``retinanet-ext imbalance``: how the loss of a trained model is distributed over its entries (paper, Figure 4)."""

import argparse
import logging
from pathlib import Path

from .usage import UsageError, usage_errors

HELP = "Distribution of a trained model's loss over foreground and background, for several gammas (paper, Figure 4)."

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
    from retinanet_ext.analysis.imbalance_report import format_table, write_report
    from retinanet_ext.analysis.loss_distribution import annotated_loader, loss_distribution
    from retinanet_ext.checkpoint.weights import load_weights
    from retinanet_ext.config.loading import load_config
    from retinanet_ext.d2 import ENGINE, build_model
    from retinanet_ext.machine.devices import check_device

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
        table = format_table(distribution)
    output = Path(args.output or Path(cfg.OUTPUT_DIR) / "imbalance")
    about = {"dataset": dataset, "config": args.config_file, "weights": args.weights, "engine": ENGINE}
    heading = f"{args.weights} on {dataset}, {distribution.num_images} images"
    write_report(distribution, heading, about, output)
    print(f"{heading}\n\n{table}")
    logger.info("Picture, curves and table: %s/imbalance.png, .csv, .json, .md", output)
    return 0
