"""``retinanet-ext speed-accuracy``: AP against measured milliseconds per image (paper, Figure 2 and Table 1e)."""

import argparse
import json
import logging
import math
from pathlib import Path

from .usage import UsageError, usage_errors

HELP = "AP against measured milliseconds per image, for a list of trained models (paper, Figure 2 and Table 1e)."
_RUN_KEYS = ("CONFIG", "WEIGHTS", "NAME")

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", nargs="+", action="append", default=[], dest="runs", metavar=("CONFIG WEIGHTS", "NAME"),
        help="a trained model: config, checkpoint, and optionally a name; once for each model",
    )  # fmt: skip
    parser.add_argument(
        "--runs-file", metavar="FILE",
        help="YAML with the key RUNS: a list of {CONFIG: ..., WEIGHTS: ..., NAME: ...}; paths relative to the file",
    )  # fmt: skip
    parser.add_argument("--images", type=int, default=50, metavar="N", help="timed images (default: 50)")
    parser.add_argument(
        "--ap-from-results", action="store_true", help="read AP from results.json beside each config, do not measure it"
    )
    parser.add_argument("--output", default="output/speed_accuracy", metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "opts", nargs="*", metavar="KEY VALUE", help="config overrides for all; directly after --run, put -- before"
    )


def run(args: argparse.Namespace) -> int:
    from retinanet_ext.analysis.speed_accuracy_report import write_report
    from retinanet_ext.analysis.timed_models import Row, conditions, evaluate, load_subject, read_images, time_in_turns
    from retinanet_ext.config.loading import load_config

    output = Path(args.output)
    with usage_errors():
        runs = _runs(args)
        subjects = [load_subject(name, load_config(c, args.opts), weights) for name, (c, weights) in runs.items()]
        _refuse_different("test dataset", {s.name: s.dataset for s in subjects})
        _refuse_different("MODEL.DEVICE", {s.name: s.cfg.MODEL.DEVICE for s in subjects})
        results = [_read_results(runs[s.name][0], s.dataset) for s in subjects] if args.ap_from_results else None
        inputs = [read_images(subject, args.images) for subject in subjects]
    times = time_in_turns(subjects, inputs)
    results = results or [evaluate(subject, str(output / subject.name)) for subject in subjects]
    rows = [
        Row(subject.name, _or_none(result["bbox"]["AP"]), _or_none(result["bbox"]["AP50"]), milliseconds)
        for subject, result, milliseconds in zip(subjects, results, times)
    ]
    about = {"dataset": subjects[0].dataset, "AP": "from results.json" if args.ap_from_results else "measured now"}
    print(write_report(rows, about | conditions(subjects[0].cfg.MODEL.DEVICE), output))
    logger.info("Picture, table and values: %s/speed_accuracy.png, .md, .csv, .json", output)
    return 0


def _runs(args):
    """Name -> (config, weights), both paths."""
    runs = [(*run, None)[:3] for run in args.runs]
    if args.runs_file:
        runs += _read_runs_file(args.runs_file)
    if not runs or any(len(run) != 3 for run in runs) or any(len(run) > 3 for run in args.runs):
        raise UsageError("--run takes CONFIG WEIGHTS [NAME], once for each model; or give --runs-file")
    if args.ap_from_results and set(args.opts[::2]) - {"MODEL.DEVICE"}:
        raise UsageError("--ap-from-results takes APs that were measured without these overrides; use one or the other")
    named = {}
    for config, weights, name in runs:
        path = Path(config)
        name = name or (path.resolve().parent.name if path.stem == "config" else path.stem)
        if name in named or Path(name).name != name:
            raise UsageError(f"the name {name!r} of {config} is taken or cannot be a folder's; give --run ... NAME")
        named[name] = (config, weights)
    return named


def _read_runs_file(file):
    from retinanet_ext.config.yaml_files import read_config_file

    content = read_config_file(file)
    entries = content.get("RUNS")
    if set(content) != {"RUNS"} or not isinstance(entries, list) or not entries:
        raise UsageError(f"{file} must have the one key RUNS, a list of mappings; found {', '.join(content) or 'none'}")
    folder = Path(file).parent
    runs = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or not {"CONFIG", "WEIGHTS"} <= set(entry) <= set(_RUN_KEYS):
            raise UsageError(f"{file}: RUNS[{index}] needs CONFIG and WEIGHTS, may have NAME; found {entry!r}")
        runs.append((str(folder / entry["CONFIG"]), str(folder / entry["WEIGHTS"]), entry.get("NAME")))
    return runs


def _refuse_different(what, found):
    if len(set(found.values())) > 1:
        listing = ", ".join(f"{name}: {value}" for name, value in found.items())
        raise UsageError(f"the runs differ in their {what}, so their figures cannot be compared: {listing}")


def _read_results(config, dataset):
    """Metrics of the run whose folder the config lies in."""
    path = Path(config).parent / "results.json"
    if not path.is_file():
        raise UsageError(f"{path} does not exist; leave out --ap-from-results to measure AP")
    content = json.loads(path.read_text())
    results = content.get(dataset, content)  # grouped by dataset only if there were several
    if not {"AP", "AP50"} <= set(results.get("bbox", {})):
        raise UsageError(f"{path} has no bbox AP of {dataset}; leave out --ap-from-results to measure it")
    return results


def _or_none(value):
    return None if value is None or math.isnan(value) else value
