"""``retinanet-ext replay``: compute the step of a saved incident once more."""

import argparse
import sys

from .usage import usage_errors

HELP = "Compute the step of an incident (a loss or gradient that is not finite) once more, from its files alone."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="OUTPUT_DIR/incidents/iter_0000123")
    parser.add_argument("--device", help="cpu or cuda; default: the run's, or cpu where there is no CUDA")


def run(args: argparse.Namespace) -> int:
    from retinanet_ext.training.incidents.incident_replay import replay_incident

    with usage_errors():
        same, report = replay_incident(args.folder, args.device)
    sys.stdout.write(report + "\n")
    return 0 if same else 1
