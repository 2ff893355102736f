"""The report of a study: Markdown, CSV, LaTeX, and an HTML page with the plots."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retinanet_ext.report.document import Block, Figure, Warning, to_markdown
from retinanet_ext.report.html_page import to_html
from retinanet_ext.report.latex import to_latex
from retinanet_ext.report.svg_plots import for_file

from .comparison import ArmResult, compare_arms, differing_runs, other_metrics, unfinished_runs, values_of
from .report_sections import (
    agreement_section,
    figures,
    how_to_repeat,
    main_table,
    other_metrics_table,
    runs_without_value,
    table_by_seed,
    what_was_run,
)
from .results import OUTCOMES, Run, read_study_folder
from .statistics import summarize
from .study import Study


def write_report(
    directory: str | Path, output: str | Path | None = None, *, allow_missing: bool = False, allow_mixed: bool = False
) -> dict[str, Path]:
    """Write ``report.md`` with its pictures, ``report.html``, ``tables.tex``, ``runs.csv`` and ``arms.csv``.

    Diverged runs, and runs whose metric is undefined (no detection at all), are counted but enter no mean.

    Args:
        directory: output folder of ``retinanet-ext ablate run``.
        output: where to write; None: into `directory`.
        allow_missing: report even if runs are missing, running, stopped or failed.
        allow_mixed: report even if runs differ in code, engine or torch, or the runs of an arm in their config.
            What was allowed is listed at the top of the report.

    Returns:
        File name -> path, of the files written.

    Raises:
        FileNotFoundError, ValueError: the folder does not hold a study, see `read_study_folder`; no run in it has
            ended; or runs are missing or differ and that was not allowed: the message lists each of them.
    """
    study, runs = read_study_folder(directory)
    if not any(run.state in OUTCOMES for run in runs):
        raise ValueError(f"{directory}: none of the {len(runs)} runs has ended, so there is nothing to report")
    missing, mixed = unfinished_runs(runs, study.metric), differing_runs(runs)
    refuse_runs(directory, missing if not allow_missing else [], mixed if not allow_mixed else [])
    report = Report(study, runs, compare_arms(study, runs), missing, mixed)
    blocks = report.blocks()
    drawings = {block.name: for_file(block.svg) for block in blocks if isinstance(block, Figure)}
    contents = {
        "report.md": to_markdown(study.title, blocks),
        "report.html": to_html(study.title, blocks),
        "tables.tex": to_latex(study.title, blocks),
        "runs.csv": runs_csv(runs),
        "arms.csv": arms_csv(study, runs, report.results),
        **drawings,
    }
    folder = Path(directory if output is None else output)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (folder / name).write_text(text, encoding="utf-8")
    return {name: folder / name for name in contents}


@dataclass(frozen=True)
class Report:
    """The content of a report; `missing` and `mixed` are lines about runs that were allowed nevertheless."""

    study: Study
    runs: Sequence[Run]
    results: Sequence[ArmResult]
    missing: Sequence[str]
    mixed: Sequence[str]

    def blocks(self) -> list[Block]:
        blocks: list[Block] = []
        if self.missing:
            blocks.append(Warning("Incomplete: these runs have no value; means are over the others.", self.missing))
        if self.mixed:
            blocks.append(Warning("Mixed: these runs differ from most in code, engine, torch or config.", self.mixed))
        blocks += what_was_run(self.study, self.runs)
        blocks += main_table(self.study, self.runs, self.results)
        blocks += table_by_seed(self.study, self.results)
        blocks += figures(self.study, self.results)
        blocks += other_metrics_table(self.study, self.runs, self.results)
        blocks += agreement_section(self.results)
        blocks += runs_without_value(self.study, self.runs)
        blocks += how_to_repeat(self.study, self.runs)
        return blocks


def runs_csv(runs: Sequence[Run]) -> str:
    """A row for each run, with all its metrics."""
    metrics = list(dict.fromkeys(name for run in runs for name in run.metrics))
    header = ["arm", "seed", "state", "reason", "seconds", "iterations", "starts", "started", "code", "engine", "torch"]
    rows = []
    for run in runs:
        last = run.starts[-1] if run.starts else None
        made_with = [last.time, last.code, last.engine, last.torch] if last else [""] * 4
        rows.append(
            [run.arm, run.seed, run.state, run.reason, run.seconds, run.iterations, len(run.starts), *made_with]
            + [last.machine if last else ""]
            + [run.metrics.get(name) for name in metrics]
        )
    return write_csv([*header, "machine", *metrics], rows)


def arms_csv(study: Study, runs: Sequence[Run], results: Sequence[ArmResult]) -> str:
    """A row for each arm, with full keys and unrounded values; other metrics: mean, deviation, paper."""
    others = other_metrics(study, runs)
    header = ["arm", "n", "diverged", "unfinished", "mean", "std", "interval_low", "interval_high"]
    header += ["difference", "difference_n", "difference_low", "difference_high", "paper", "paper_difference"]
    header += ["seconds", "config_difference"]
    header += [f"{name}_{part}" for name in others for part in ("mean", "std", "paper")]
    rows = []
    for result in results:
        summary, difference = result.summary, result.difference
        row = [result.name, summary.n, result.count("diverged"), len(result.runs) - result.count(*OUTCOMES)]
        row += [summary.mean, summary.std, *(summary.interval or (None, None))]
        row += [difference.mean, difference.n, *(difference.interval or (None, None))] if difference else [None] * 4
        row += [result.paper, result.paper_difference, result.seconds]
        row.append("; ".join(f"{key}: {new!r}" for key, (_, new) in result.changes.items()))
        for name in others:
            other = summarize(values_of(result.runs, name).values())
            row += [other.mean, other.std, result.arm.paper.get(name.rpartition("/")[2])]
        rows.append(row)
    return write_csv(header, rows)


def refuse_runs(directory: str | Path, missing: Sequence[str], mixed: Sequence[str]) -> None:
    """Raise a ValueError that lists the lines of `missing` and `mixed`, if any."""
    problems = []
    if missing:
        problems.append(
            f"{len(missing)} run(s) without a result; finish them with `retinanet-ext ablate run`, or report without "
            "them with --allow-missing:\n  " + "\n  ".join(missing)
        )
    if mixed:
        problems.append(
            f"{len(mixed)} difference(s) between runs that should be alike; repeat these runs, or compare "
            "them nevertheless with --allow-mixed:\n  " + "\n  ".join(mixed)
        )
    if problems:
        raise ValueError(f"{directory}: " + "\n".join(problems))


def write_csv(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """The text of a CSV file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
