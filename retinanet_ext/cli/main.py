"""Entry point of ``retinanet-ext``. Each verb has its own file."""

import argparse
import logging
import sys
from collections.abc import Sequence

from . import (
    ablate,
    calibrate,
    cluster,
    compare,
    curves,
    doctor,
    edit_gallery,
    identify,
    imbalance,
    predict,
    replay,
    report_run,
    shapes,
    speed_accuracy,
    thresholds,
    train,
    verify,
    write_identities,
)
from .usage import UsageError, VerbParser

# A verb is a module with HELP, add_arguments(parser) and run(args) -> exit code. It imports what it runs inside `run`,
# because torch alone takes seconds, and `--help` needs none of it.
VERBS = {
    "train": train,
    "predict": predict,
    "report": report_run,
    "gallery": edit_gallery,
    "identify": identify,
    "cluster": cluster,
    "thresholds": thresholds,
    "compare": compare,
    "calibrate": calibrate,
    "verify": verify,
    "ablate": ablate,
    "imbalance": imbalance,
    "curves": curves,
    "speed-accuracy": speed_accuracy,
    "replay": replay,
    "shapes": shapes,
    "identities": write_identities,
    "doctor": doctor,
}
USAGE_ERROR = 2


def build_parser() -> argparse.ArgumentParser:
    parser = VerbParser(prog="retinanet-ext", description="RetinaNet and its kin, from the command line.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, module in VERBS.items():
        module.add_arguments(verbs.add_parser(name, help=module.HELP, description=module.HELP))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0 success, 1 part of the input was skipped, 2 wrong usage.

    The answers of `verify` are exit codes of its own.
    """
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return VERBS[args.verb].run(args)
    except UsageError as error:
        sys.stderr.write(f"retinanet-ext {args.verb}: error: {error}\n")
        return USAGE_ERROR


if __name__ == "__main__":
    sys.exit(main())
