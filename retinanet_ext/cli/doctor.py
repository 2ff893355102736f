"""``retinanet-ext doctor``: what is wrong with data or machine, before a run says it in its own way."""

import argparse
import json
import logging
import os
from pathlib import Path

from .usage import UsageError, VerbParser, usage_errors

HELP = "Find what is wrong before training: `doctor data` examines datasets, `doctor env` this machine."
_HELP_DATA = (
    "Examine the datasets of a config: damaged images, bad annotations, duplicates, leakage between splits, "
    "statistics. Exit code: 0 no errors, 1 errors, 2 wrong usage."
)
_HELP_ENV = (
    "Examine this machine: Python, engine, torch, CUDA, torchvision's operators, Triton, Detectron2, OpenCV, disk, "
    "shared memory. Each is OK, or FAIL with what mends it. Exit code: 0 nothing failed, 1 something failed."
)
_INTERRUPTED = 130  # as a shell reports SIGINT

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    about = parser.add_subparsers(dest="about", required=True, metavar="data | env", parser_class=VerbParser)
    _add_data_arguments(about.add_parser("data", help=_HELP_DATA, description=_HELP_DATA))
    _add_env_arguments(about.add_parser("env", help=_HELP_ENV, description=_HELP_ENV))


def run(args: argparse.Namespace) -> int:
    return _RUN[args.about](args)


def _add_data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="the config of a run; nothing is trained"
    )
    parser.add_argument(
        "--output", metavar="DIR", help="folder for doctor.html and findings.json; default: OUTPUT_DIR/doctor"
    )
    parser.add_argument(
        "--weights", metavar="FILE", help="checkpoint of a trained model: find probable label errors too"
    )
    parser.add_argument("--repair", metavar="DIR", help="write a repaired copy of the data into this new folder")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, metavar="N",
        help="threads that read images (default: the number of CPU cores, %(default)s here)",
    )  # fmt: skip
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides")


def _add_env_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output-dir", default=".", metavar="DIR", help="where runs will write, for the free space")
    parser.add_argument("--json", metavar="FILE", help="write the checks to this file too")


def _run_data(args: argparse.Namespace) -> int:
    from retinanet_ext.inspection.datasets.data_doctor import examine, load_unadapted, text_summary
    from retinanet_ext.inspection.datasets.data_repair import Repair

    if args.workers < 1:
        raise UsageError(f"--workers is {args.workers}; legal: 1 or more.")
    with usage_errors():
        cfg, refusal = load_unadapted(args.config_file, args.opts)
        repair = Repair(Path(args.repair), cfg, args.config_file) if args.repair else None
        output = Path(args.output or Path(cfg.OUTPUT_DIR) / "doctor")
        output.mkdir(parents=True, exist_ok=True)
    try:
        examination = examine(
            cfg, refusal, workers=args.workers, weights=args.weights, on_checked=repair and repair.write
        )
        print(text_summary(examination))
        if repair is not None:
            print(f"\n{repair.finish()}")
        _write(examination, args.config_file, output)
    except KeyboardInterrupt:
        logger.error("Interrupted. Nothing of the data was changed; what was written so far is in %s.", output)
        return _INTERRUPTED
    return 1 if examination.has_errors else 0


def _write(examination, config_file, output):
    from retinanet_ext.inspection.datasets.data_doctor import JSON_FILE, PAGE_FILE, write_json
    from retinanet_ext.inspection.datasets.doctor_page import write_page

    write_json(examination, output / JSON_FILE)
    write_page(examination, config_file, output / PAGE_FILE)
    print(f"\nPage: {output / PAGE_FILE}\nAll findings and statistics: {output / JSON_FILE}")


def _run_env(args: argparse.Namespace) -> int:
    from retinanet_ext.inspection.environment import FAIL, as_records, as_text, check_environment

    checks = check_environment(args.output_dir)
    print(as_text(checks))
    if args.json:
        with usage_errors():
            Path(args.json).write_text(json.dumps(as_records(checks), indent=2) + "\n")
    return 1 if any(check.state == FAIL for check in checks) else 0


_RUN = {"data": _run_data, "env": _run_env}
