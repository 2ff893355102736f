"""``retinanet-ext thresholds``: the score threshold of each class, from the last evaluation of a run."""

import argparse
import logging
from pathlib import Path

from .usage import UsageError, usage_errors

HELP = "Find the score threshold of each class (best F1, or a target precision), and store it with the model."

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", metavar="RUN", help="the output folder of a run, or the folder inference/<dataset> of an evaluation"
    )
    parser.add_argument("--dataset", metavar="NAME", help="of several that the run evaluated")
    parser.add_argument(
        "--target-precision", type=float, metavar="P",
        help="the most hits at a precision of at least this (0 to 1); default: the best F1",
    )  # fmt: skip
    parser.add_argument("--task", choices=("bbox", "segm", "keypoints"), default="bbox", help="default: bbox")
    parser.add_argument(
        "--weights", metavar="FILE", help="store the thresholds in this checkpoint, the one that was evaluated"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="JSON; default: operating_thresholds.json in the folder of the evaluation"
    )


def run(args: argparse.Namespace) -> int:
    from retinanet_ext.checkpoint.checkpoint_entries import check_takes_entries, write_entry
    from retinanet_ext.evaluation.image_matches import match_dataset
    from retinanet_ext.evaluation.operating_thresholds import (
        ENTRY,
        OPERATING_IOU,
        THRESHOLDS_FILE,
        find_thresholds,
        write_thresholds,
    )
    from retinanet_ext.evaluation.result_files import choose_evaluation, read_evaluation

    if args.target_precision is not None and not 0 < args.target_precision <= 1:
        raise UsageError(f"--target-precision is {args.target_precision}; legal: above 0, up to 1.")
    with usage_errors():
        if args.weights is not None:
            check_takes_entries(args.weights)
        folder = choose_evaluation(args.run, args.dataset)
        data = read_evaluation(folder)
        if args.task not in data.tasks:
            raise UsageError(f"--task is {args.task}, but {folder} was evaluated for {', '.join(data.tasks)}.")
        matches = match_dataset(data, args.task, iou_thresholds=[OPERATING_IOU], sizes=False)
        found = find_thresholds(
            matches, dataset=data.name, category_ids=data.truth.category_ids, target_precision=args.target_precision
        )
        path = Path(args.output) if args.output else folder / THRESHOLDS_FILE
        write_thresholds(path, found)
        if args.weights is not None:
            write_entry(args.weights, ENTRY, found.to_dict())
    _report(found)
    print(f"written to {path}" + (f", stored in {args.weights}" if args.weights else ""))
    if args.weights is None:
        print("to store them with the model, name the checkpoint that was evaluated: --weights FILE")
    return 0


def _report(found) -> None:
    from tabulate import tabulate

    print(f"{found.dataset}, {found.images} images, {found.task}, IoU {found.iou:g}, {found.rule}:")
    rows = [
        (one.name, _or_dash(one.threshold), _or_dash(one.precision), _or_dash(one.recall), _or_dash(one.f1), one.tp,
         one.fp, one.fn, one.reason)
        for one in found.classes
    ]  # fmt: skip
    headers = ("class", "threshold", "precision", "recall", "F1", "hits", "false alarms", "missed", "")
    print(tabulate(rows, headers, tablefmt="simple", disable_numparse=True))


def _or_dash(value) -> str:
    return "-" if value is None else f"{value:.3f}"
