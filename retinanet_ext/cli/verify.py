"""``retinanet-ext verify``: whether two images show the same face."""

import argparse
import logging
import math

from .embedder_arguments import check_threshold, distance_threshold
from .usage import UsageError, usage_errors

HELP = "Say whether two images show the same face. Exit code: 0 same, 1 different, 3 unsure, 2 wrong usage or input."
EXIT_CODES = {"same": 0, "different": 1, "unsure": 3}

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="the folder of a FaceNet's run, or its config"
    )
    parser.add_argument("--weights", metavar="FILE", help="checkpoint; default: as of `predict`")
    parser.add_argument(
        "--threshold", type=float, metavar="D",
        help="largest squared L2 distance of the same face, 0 to 4; default: as calibrated, which adds \"unsure\"",
    )  # fmt: skip
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="default: as of `predict`")
    parser.add_argument("images", nargs=2, metavar="IMAGE", help="two files")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides")


def run(args: argparse.Namespace) -> int:
    from retinanet_ext.inference.trained_model import load_embedder

    check_threshold(args)
    with usage_errors():
        embedder = load_embedder(args.config_file, args.weights, device=args.device, overrides=args.opts)
        threshold = distance_threshold(args, embedder)
        first, second = embedder(args.images).double()
    distance = float((first - second).square().sum())
    if not math.isfinite(distance):
        raise UsageError(f"The distance is {distance}: the weights {embedder.cfg.MODEL.WEIGHTS} are not finite.")
    for path in embedder.files_without_face:
        print(f"no face found in {path}; its centre was taken")
    if args.threshold is not None:
        answer = "same" if distance <= threshold else "different"
        print(f"{answer}: distance {distance:.4f}, threshold {threshold:.4f} (named, not calibrated)")
    else:
        answer = embedder.calibration.answer(distance)
        print(f"{answer}: distance {distance:.4f}, threshold {threshold:.4f}")
        print(_meaning(embedder.calibration))
    return EXIT_CODES[answer]


def _meaning(calibration):
    low, high = calibration.far_interval
    return (
        f"  same up to {calibration.unsure[0]:.4f}: accepts {calibration.far:.3g} of different pairs (asked for "
        f"{calibration.far_target:g}; 95 % interval {low:.3g} to {high:.3g}), {calibration.val:.2%} of same pairs\n"
        f"  different above {calibration.unsure[1]:.4f}: at most {calibration.miss_target:.3g} of same pairs\n"
        f"  calibrated on {calibration.num_same:,} same and {calibration.num_different:,} different pairs of "
        f"{calibration.created_from}"
    )
