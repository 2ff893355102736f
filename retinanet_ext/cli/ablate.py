"""``retinanet-ext ablate``: list, run and report studies of several configs, and their trend."""

import argparse
import logging
import shlex
import signal
from contextlib import ExitStack
from itertools import takewhile
from pathlib import Path

from .usage import UsageError, VerbParser, usage_errors

HELP = "List, run and report ablation studies: the arms of a YAML file, each with every seed; and their trend."
_INTERRUPTED = 130  # the exit code of shells after Ctrl-C

logger = logging.getLogger(__name__)


class _RunParser(VerbParser):
    """Accepts overrides anywhere; argparse alone accepts them only before the first option."""

    def take_words(self, namespace, words):
        if not hasattr(namespace, "opts"):
            return words
        namespace.opts += [word for word in words if not word.startswith("--")]
        return [word for word in words if word.startswith("--")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=_RunParser)
    actions.add_parser("list", help="the built-in studies, and how many runs each needs")
    _add_run_arguments(actions.add_parser("run", help="run a study, or resume it"))
    report = actions.add_parser("report", help="compare the arms of a study that was run")
    report.add_argument("directory", metavar="DIR", help="output folder of the study")
    report.add_argument("--output", metavar="DIR", help="folder for the report; default: the study's folder")
    trend = actions.add_parser("trend", help="compare the arms of several studies by the imbalance of their data")
    trend.add_argument("directories", nargs="+", metavar="DIR", help="output folders of studies of the same arms")
    trend.add_argument("--output", required=True, metavar="DIR", help="folder for the report")
    trend.add_argument("--baseline", metavar="ARM", help="arm to compare with; default: that of the first study")
    for parser in (report, trend):
        parser.add_argument("--allow-missing", action="store_true", help="report even if runs are missing")
        parser.add_argument("--allow-mixed", action="store_true", help="report even if runs differ in code or config")


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY", help="name of a built-in study, or a .yaml file of your own")
    parser.add_argument("--config-file", metavar="BASE", help="base config; default: the study's")
    parser.add_argument("--arm", action="append", default=[], metavar="NAME", help="only this arm; may be repeated")
    parser.add_argument("--seeds", nargs="+", metavar="S", help="integers; default: the study's")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--jobs", type=int, metavar="N", help="runs at a time; default: one per GPU, or one on a CPU")
    where.add_argument("--ray", metavar="ADDRESS", help="run on this Ray cluster: auto, local or HOST:PORT")
    parser.add_argument("--output", metavar="DIR", help="default: output/ablations/STUDY")
    parser.add_argument("--dry-run", action="store_true", help="print the training command of each run, on 8 GPUs")
    parser.add_argument("--retry", action="store_true", help="also repeat runs that diverged")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides for all arms")


def run(args: argparse.Namespace) -> int:
    return {"list": _list, "run": _run, "report": _report, "trend": _trend}[args.action](args)


def _list(args: argparse.Namespace) -> int:
    from tabulate import tabulate

    from retinanet_ext.ablation.study import BUILT_IN_STUDIES, built_in_studies, load_study

    with usage_errors():
        studies = [load_study(name) for name in built_in_studies()]
    if not studies:
        raise UsageError(f"{BUILT_IN_STUDIES} has no studies, so this installation is not whole; install it again.")
    rows = [(s.name, s.title, len(s.arms), len(s.seeds), len(s.arms) * len(s.seeds), s.source, s.note) for s in studies]
    widths = [None, 36, None, None, None, 24, 40]
    headers = ["study", "title", "arms", "seeds", "runs", "source", "note"]
    print(tabulate(rows, headers, tablefmt="simple", maxcolwidths=widths))
    return 0


def _run(args: argparse.Namespace) -> int:
    from retinanet_ext.ablation.dry_run import full_schedule_commands
    from retinanet_ext.ablation.runner import prepare_study
    from retinanet_ext.ablation.status import DONE
    from retinanet_ext.ablation.study import load_study, with_changes
    from retinanet_ext.ablation.unread_keys import check_overrides_are_read

    seeds, opts = _split_seeds(args.seeds or [], args.opts)
    with ExitStack() as stack:
        with usage_errors():
            study = with_changes(
                load_study(args.study), base=args.config_file, arms=args.arm, seeds=seeds, overrides=opts
            )
            output = Path(args.output or Path("output", "ablations", study.name))
            if args.dry_run:
                check_overrides_are_read(study)
                print("\n".join(shlex.join(command) for command in full_schedule_commands(study, output)))
                return 0
            preparing = prepare_study(study, output, jobs=args.jobs, ray_address=args.ray, retry=args.retry)
            try:
                prepared = stack.enter_context(preparing)
            except ModuleNotFoundError as error:
                raise UsageError(error) from error
        # SIGTERM, which job schedulers send, ends the runs as properly as Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            results = prepared.run()
        except KeyboardInterrupt:
            logger.warning("Stopped. The same command resumes the study.")
            return _INTERRUPTED
    print(_table(study, results))
    return 0 if all(status.state == DONE for status in results.values()) else 1


def _report(args: argparse.Namespace) -> int:
    from retinanet_ext.ablation.study_report import write_report

    with usage_errors():
        files = write_report(
            args.directory, args.output, allow_missing=args.allow_missing, allow_mixed=args.allow_mixed
        )
    for kind, path in files.items():
        logger.info("%s: %s", kind, path)
    return 0


def _trend(args: argparse.Namespace) -> int:
    from retinanet_ext.ablation.trend_report import write_trend_report

    with usage_errors():
        files = write_trend_report(
            args.directories, args.output, reference=args.baseline,
            allow_missing=args.allow_missing, allow_mixed=args.allow_mixed,
        )  # fmt: skip
    for kind, path in files.items():
        logger.info("%s: %s", kind, path)
    return 0


def _split_seeds(words: list[str], opts: list[str]) -> tuple[list[int], list[str]]:
    """(seeds, overrides). In `--seeds 0 1 KEY VALUE`, argparse counts all words as seeds."""
    seeds = [int(word) for word in takewhile(str.isdecimal, words)]
    if words and not seeds:
        raise UsageError(f"--seeds wants integers from 0 on, found {words[0]!r}.")
    return seeds, [*words[len(seeds) :], *opts]


def _table(study, results) -> str:
    from tabulate import tabulate

    from retinanet_ext.ablation.status import DONE

    def cell(arm, seed):
        status = results[arm.name, seed]
        value = status.metrics.get(study.metric)
        return status.state if status.state != DONE else "undefined" if value is None else f"{value:.2f}"

    rows = [[arm.name, *(cell(arm, seed) for seed in study.seeds)] for arm in study.arms]
    headers = [study.metric, *(f"seed {seed}" for seed in study.seeds)]
    return tabulate(rows, headers, tablefmt="simple", disable_numparse=True)
