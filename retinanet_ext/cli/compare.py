"""``retinanet-ext compare``: two runs or result files, paired on the same images."""

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path

from .usage import UsageError, usage_errors

HELP = "Compare two runs, or two files of predictions: differences with intervals, and what changed most."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "first", metavar="A", help="the output folder of a run, the folder inference/<dataset> of an evaluation, or, "
        "with --ground-truth, a file in COCO's results format",
    )  # fmt: skip
    parser.add_argument("second", metavar="B", help="likewise; differences are B - A")
    parser.add_argument("--ground-truth", metavar="FILE", help="COCO annotations, if A and B are files")
    parser.add_argument("--image-root", metavar="DIR", default="", help="with --ground-truth: folder of the images")
    parser.add_argument("--dataset", metavar="NAME", help="of several that the runs evaluated")
    parser.add_argument("--task", choices=("bbox", "segm", "keypoints"), default="bbox", help="default: bbox")
    parser.add_argument("--samples", type=int, default=1000, metavar="N", help="resamples of images (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the resamples (default: 0)")
    parser.add_argument("--images", type=int, default=10, metavar="N", help="changed images to list (default: 10)")
    parser.add_argument("--output", metavar="FILE", help="write all numbers as JSON")
    parser.add_argument("--page", metavar="FILE", help="write one HTML page with the changed images side by side")


def run(args: argparse.Namespace) -> int:
    for flag, value, least in (("--samples", args.samples, 1), ("--images", args.images, 0), ("--seed", args.seed, 0)):
        if value < least:
            raise UsageError(f"{flag} is {value}; legal: {least} or more.")
    with usage_errors():
        content = _verification(args) if _are_verifications(args) else _detection(args)
        if args.output:
            from retinanet_ext.machine.atomic_file import write_atomically

            text = json.dumps(_undefined_as_null(content), indent=1, allow_nan=False, default=str)
            write_atomically(args.output, text + "\n")
            print(f"written to {args.output}")
    return 0


def _detection(args) -> dict:
    from tabulate import tabulate

    from retinanet_ext.evaluation.paired_comparison import compare
    from retinanet_ext.inspection.runs.comparison_page import HEADER, difference_row, write_comparison_page

    first, second = (_read(path, args) for path in (args.first, args.second))
    for path, data in ((args.first, first), (args.second, second)):
        if args.task not in data.tasks:
            raise UsageError(f"--task is {args.task}, but {path} has {', '.join(data.tasks)}.")
    found = compare(first, second, args.task, samples=args.samples, seed=args.seed, images=args.images)
    print(f"{found.dataset}, {found.task}, {found.num_images} images; first: {args.first}; second: {args.second}")
    rows = [difference_row(name, one) for name, one in found.metrics.items()]
    print(tabulate(rows, HEADER, tablefmt="simple", disable_numparse=True))
    for name, reason in found.reasons.items():
        print(f"{name} is undefined: {reason}")
    print(f"{found.num_changed} images have other counts at the operating thresholds; those that changed most:")
    for change in found.images:
        name = first.image_record(change.image_id).get("file_name", change.image_id)
        counts = ", ".join(
            f"{label} {values[0]} -> {values[1]}"
            for label, values in (("hits", change.tp), ("false alarms", change.fp), ("missed", change.fn))
        )
        print(f"  {name}: F1 {change.f1[0]:.2f} -> {change.f1[1]:.2f} ({counts})")
    if args.page:
        write_comparison_page(Path(args.page), found, first, second, (args.first, args.second))
        print(f"page: {args.page}")
    return {"first": args.first, "second": args.second, "samples": args.samples, "seed": args.seed, **asdict(found)}


def _read(path, args):
    from retinanet_ext.evaluation.result_files import choose_evaluation, read_evaluation, read_result_files

    if args.ground_truth:
        return read_result_files(args.ground_truth, path, image_root=args.image_root)
    if Path(path).is_file():
        raise UsageError(f"{path} is a file; name its ground truth too: --ground-truth FILE.")
    return read_evaluation(choose_evaluation(path, args.dataset))


def _are_verifications(args) -> bool:
    found = [_pairs_file(path, args.dataset) is not None for path in (args.first, args.second)]
    if any(found) and not all(found):
        raise UsageError(f"one of {args.first} and {args.second} is a verification of pairs, the other is not.")
    return all(found)


def _pairs_file(path, dataset) -> Path | None:
    """The verified pairs of a run of a FaceNet, or of one of its evaluations."""
    from retinanet_ext.evaluation.paired_verification import PAIRS_FILE

    if (Path(path) / PAIRS_FILE).is_file():
        return Path(path) / PAIRS_FILE
    found = sorted(Path(path).glob(f"inference/{dataset or '*'}/{PAIRS_FILE}"))
    if len(found) > 1:
        raise UsageError(f"{path} verified {', '.join(file.parent.name for file in found)}; name one: --dataset.")
    return found[0] if found else None


def _verification(args) -> dict:
    from retinanet_ext.evaluation.paired_verification import compare_pairs, read_pairs

    if args.page:
        raise UsageError("--page is for detections; each verification has its own page, verification.html.")
    first, second = (read_pairs(_pairs_file(path, args.dataset)) for path in (args.first, args.second))
    found = compare_pairs(first, second, samples=args.samples, seed=args.seed)
    print(f"verification of {found.num_pairs} pairs; first: {args.first}; second: {args.second}")
    print(
        f"accuracy over all pairs: {found.first:.2f} and {found.second:.2f}; difference {found.change.value:+.2f}, "
        f"95 % interval {found.change.low:+.2f} to {found.change.high:+.2f} (pairs share images: it may be too narrow)"
    )
    for title, pairs in (("right only in the second", found.gained), ("right only in the first", found.lost)):
        print(f"{len(pairs)} pairs are {title}")
        for (one, other, same, _), before, after in pairs[: args.images]:
            print(f"  {one} {other} ({'same' if same else 'different'}): distance {before:.3f} -> {after:.3f}")
    return {"first": args.first, "second": args.second, "samples": args.samples, "seed": args.seed, **asdict(found)}


def _undefined_as_null(value):
    if isinstance(value, dict):
        return {str(key): _undefined_as_null(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_undefined_as_null(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
