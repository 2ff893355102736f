"""``retinanet-ext report``: one page that explains a run."""

import argparse

from .usage import usage_errors

HELP = "One self-contained HTML page that explains a run: metrics, errors, worst images, losses, config, environment."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="output folder of a run, of this package or of Detectron2")
    parser.add_argument("--output", metavar="FILE", help="the page; default: report.html in the folder")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="compute nothing further after this time (default: no limit)"
    )


def run(args: argparse.Namespace) -> int:
    from retinanet_ext.inspection.runs.run_report import write_run_report

    with usage_errors():
        path = write_run_report(args.run, args.output, seconds=args.seconds)
    print(path)
    return 0
