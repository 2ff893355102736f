"""The report of a trend: README.md with its picture, index.html, LaTeX and CSV."""

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from retinanet_ext.report.document import (
    Block,
    Bullets,
    Command,
    Facts,
    Figure,
    Heading,
    Paragraph,
    Table,
    Warning,
    to_markdown,
)
from retinanet_ext.report.formats import NOTHING, difference, digits_for, distinct, mean_and_interval
from retinanet_ext.report.html_page import to_html
from retinanet_ext.report.latex import to_latex
from retinanet_ext.report.svg_plots import for_file
from retinanet_ext.report.trend_plot import Line, draw_trend

from .repeat_command import repeat_command
from .results import OUTCOMES
from .statistics import summarize
from .status import DONE
from .study_report import refuse_runs, write_csv
from .trend import Lead, Level, Trend, leads, missing_runs, mixed_runs, read_trend

_IMBALANCE = "anchors per foreground anchor"


def write_trend_report(
    directories: Sequence[str | Path],
    output: str | Path,
    *,
    reference: str | None = None,
    allow_missing: bool = False,
    allow_mixed: bool = False,
) -> dict[str, Path]:
    """Write ``README.md`` with ``trend.svg``, ``index.html``, ``tables.tex`` and ``trend.csv``.

    Args:
        directories: study folders of the same arms under different data.
        output: folder to write to.
        reference: arm that the others are compared with; None: the baseline of the first folder's study.
        allow_missing: report even if runs are missing, running, stopped or failed.
        allow_mixed: report even if runs differ in code, engine or torch, or in their config, apart from ``DATASETS``.
            What was allowed is listed at the top of the report.

    Returns:
        File name -> path, of the files written.

    Raises:
        FileNotFoundError, ValueError: as `read_trend`; or runs are missing or differ and that was not allowed: the
            message lists them.
    """
    trend = read_trend(directories, reference)
    missing, mixed = missing_runs(trend), mixed_runs(trend)
    names = ", ".join(level.name for level in trend.levels)
    refuse_runs(names, missing if not allow_missing else [], mixed if not allow_mixed else [])
    title = f"{_metric(trend)} against imbalance"
    blocks = trend_blocks(trend, missing, mixed)
    drawings = {block.name: for_file(block.svg) for block in blocks if isinstance(block, Figure)}
    contents = {
        "README.md": to_markdown(title, blocks),
        "index.html": to_html(title, blocks),
        "tables.tex": to_latex(title, blocks),
        "trend.csv": trend_csv(trend),
        **drawings,
    }
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (folder / name).write_text(text, encoding="utf-8")
    return {name: folder / name for name in contents}


def trend_blocks(trend: Trend, missing: Sequence[str], mixed: Sequence[str]) -> list[Block]:
    blocks: list[Block] = []
    if missing:
        blocks.append(Warning("Incomplete: these runs have no value yet; means are over the others.", missing))
    if mixed:
        blocks.append(Warning("Mixed: these runs differ in more than the data.", mixed))
    blocks += [*_levels(trend), *_plot(trend), *_means(trend), *_differences(trend)]
    commands = [repeat_command(level.study, level.runs[0].folder.parents[1]) for level in trend.levels]
    folders = [f"output/ablations/{level.name}" for level in trend.levels]
    words = ["retinanet-ext", "ablate", "trend", *folders, "--output", "output/trend", "--baseline", trend.reference]
    known = [command for command in commands if command is not None]
    return [*blocks, Heading("How to repeat it"), Command("\n".join([*known, shlex.join(words)]))]


def trend_csv(trend: Trend) -> str:
    """A row for each arm and level, unrounded; `difference` is the arm minus the reference."""
    header = ["level", "imbalance", "arm", "n", "mean", "std", "interval_low", "interval_high"]
    header += ["difference", "difference_n", "difference_low", "difference_high"]
    rows = []
    for level in trend.levels:
        for arm in trend.arms:
            summary, paired = summarize(level.values.get(arm, {}).values()), trend.difference(arm, level)
            row = [level.name, level.imbalance, arm, summary.n, summary.mean, summary.std]
            row += [*(summary.interval or (None, None))]
            row += [paired.mean, paired.n, *(paired.interval or (None, None))] if arm != trend.reference else [None] * 4
            rows.append(row)
    return write_csv(header, rows)


def lead_sentence(lead: Lead, trend: Trend) -> str:
    """From which imbalance on the reference is ahead of the arm, and what else the intervals say."""
    reference, arm = trend.reference, lead.arm
    if lead.start is not None:
        first = lead.start is trend.levels[0]
        where = "at every level" if first else f"from {_at(lead.start)} {_IMBALANCE} on"
        text = f"{reference} is ahead of {arm} {where}"
        apart = [level for level in lead.reference_ahead if level.imbalance < lead.start.imbalance]
        text += f"; also at {_list(apart)}" if apart else ""
    elif lead.reference_ahead:
        text = f"{reference} is ahead of {arm} at {_list(lead.reference_ahead)}, but not at the highest imbalance"
    else:
        text = f"{reference} is ahead of {arm} at no level"
    text += f"; {arm} is ahead at {_list(lead.arm_ahead)}" if lead.arm_ahead else ""
    text += f"; no interval at {_list(lead.unknown)}" if lead.unknown else ""
    return text + "."


def _metric(trend: Trend) -> str:
    return trend.metric.rpartition("/")[2]


def _at(level: Level) -> str:
    return f"{level.imbalance:.0f}"


def _list(levels: Sequence[Level]) -> str:
    return ", ".join(map(_at, levels))


def _levels(trend: Trend) -> list[Block]:
    rows = []
    for level in trend.levels:
        runs = [run for run in level.runs if run.arm in trend.arms]
        data = distinct(
            ", ".join(map(str, run.config["DATASETS.TRAIN"])) for run in runs if "DATASETS.TRAIN" in (run.config or ())
        )
        states = Counter(run.state for run in runs)
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        rows.append([level.name, data, f"{level.imbalance:.1f}", counts])
    starts = [start for level in trend.levels for run in level.runs if run.arm in trend.arms for start in run.starts]
    facts = [
        ("Study", distinct(level.study.title for level in trend.levels)),
        ("Source", distinct(level.study.source for level in trend.levels)),
        ("Code", distinct(start.code for start in starts)),
        ("Engine", distinct(f"{start.engine}, torch {start.torch}" for start in starts)),
        ("Machine", distinct(start.machine for start in starts)),
        *([("Arms of one level only, left out", ", ".join(trend.left_out))] if trend.left_out else []),
    ]
    text = f"Imbalance: {_IMBALANCE} in training, over the logged steps of all runs of a level."
    header = ["level", "training data", _IMBALANCE, "runs"]
    return [Heading("Levels"), Facts(facts), Table(header, rows, numbers=(2,)), Paragraph(text)]


def _plot(trend: Trend) -> list[Block]:
    lines = []
    for arm in trend.arms:
        points = []
        for level in trend.levels:
            values = level.values.get(arm, {})
            summary = summarize(values.values())
            if summary.n:
                points.append((level.imbalance, summary.mean, summary.interval, list(values.values())))
        lines.append(Line(arm, points))
    name = _metric(trend)
    if not any(line.points for line in lines):
        return []
    caption = f"{name} against imbalance: mean, 95 % interval and a small dot for each seed. Arms of a level stand "
    caption += "side by side; a wide interval may continue beyond the axis"
    return [
        Heading("Plot"), Figure("trend.svg", caption, draw_trend(lines, trend.reference, f"{_IMBALANCE} (log)", name))
    ]  # fmt: skip


def _means(trend: Trend) -> list[Block]:
    summaries = {
        arm: [summarize(level.values.get(arm, {}).values()) for level in trend.levels] for arm in trend.arms
    }  # fmt: skip
    digits = digits_for(summary.std for row in summaries.values() for summary in row)
    rows = []
    for arm, row in summaries.items():
        cells = [mean_and_interval(summary, digits) for summary in row]
        rows.append([arm, *(_or_state(cell, trend, arm, level) for cell, level in zip(cells, trend.levels))])
    header = ["arm", *(f"at {_at(level)}" for level in trend.levels)]
    return [Heading(f"{_metric(trend)} of each arm: mean [95 % interval]"), Table(header, rows)]


def _or_state(cell: str, trend: Trend, arm: str, level: Level) -> str:
    """Where no run has a value: how the runs ended, if they ended."""
    runs = [run for run in level.runs if run.arm == arm and run.state in OUTCOMES]
    if cell != NOTHING or not runs:
        return cell
    states = Counter("undefined" if run.state == DONE else run.state for run in runs)
    return ", ".join(f"{count} {state}" for state, count in states.items())


def _differences(trend: Trend) -> list[Block]:
    others = [arm for arm in trend.arms if arm != trend.reference]
    rows = {arm: [trend.difference(arm, level) for level in trend.levels] for arm in others}
    entries = [entry for row in rows.values() for entry in row]
    digits = digits_for(value for entry in entries for value in (entry.mean, *(entry.interval or ())))
    table = [[arm, *(difference(entry, digits) for entry in row)] for arm, row in rows.items()]
    text = (
        "The difference is taken seed by seed. One arm is ahead where the interval of the difference excludes zero; "
        "intervals are not corrected for the number of comparisons."
    )
    return [
        Heading(f"Difference to {trend.reference} [95 % interval]"),
        Table(["arm", *(f"at {_at(level)}" for level in trend.levels)], table),
        Paragraph(text),
        Heading(f"From which imbalance on {trend.reference} is ahead"),
        Bullets([lead_sentence(lead, trend) for lead in leads(trend)]),
    ]
