"""The sections of the report of a study."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime

from retinanet_ext.report.document import Block, Bullets, Command, Facts, Figure, Heading, Paragraph, Table
from retinanet_ext.report.formats import (
    NOTHING,
    config_value,
    difference,
    digits_for,
    distinct,
    duration,
    interval,
    mean_and_std,
    number,
    shortened,
    signed,
    total_duration,
)
from retinanet_ext.report.svg_plots import Row, draw_curves, draw_differences, draw_means

from .comparison import ArmResult, other_metrics, short_keys, values_of
from .repeat_command import config_path, repeat_command
from .results import Run, read_curve
from .statistics import Pair, compare_order, summarize
from .status import DIVERGED, DONE
from .study import Study


def what_was_run(study: Study, runs: Sequence[Run]) -> list[Block]:
    states = Counter(run.state for run in runs)
    starts = [start for run in runs for start in run.starts]
    facts = [
        ("Source", study.source),
        *([("Note", study.note)] if study.note else []),
        ("Base config", config_path(study.base)),
        *([("For all arms", _overrides(study))] if study.overrides else []),
        *_settings(runs),
        ("Runs", f"{len(study.arms)} arms, seeds {', '.join(map(str, study.seeds))}: "
                 f"{', '.join(f'{count} {state}' for state, count in states.items())}"),
        ("Code", distinct(start.code for start in starts)),
        ("Engine", distinct(f"{start.engine}, torch {start.torch}" for start in starts)),
        ("Machine", distinct(start.machine for start in starts)),
        ("Time", _time_range(runs)),
    ]  # fmt: skip
    return [Heading("What was run"), Facts(facts)]


def main_table(study: Study, runs: Sequence[Run], results: Sequence[ArmResult]) -> list[Block]:
    name = _short(study.metric)
    value_digits = digits_for(result.summary.std for result in results)
    differences = [result.difference for result in results if result.difference is not None]
    difference_digits = digits_for(value for entry in differences for value in (entry.mean, *(entry.interval or ())))
    keys = short_keys(results, [key for run in runs for key in run.config or ()])
    rows = [
        [
            result.name,
            _count(result),
            mean_and_std(result.summary, value_digits) if result.summary.n else _without_mean(result),
            interval(result.summary, value_digits),
            difference(result.difference, difference_digits),
            number(result.paper, 1),
            signed(result.paper_difference, 1),
            duration(result.seconds),
            ", ".join(f"{keys[key]} {config_value(new)}" for key, (_, new) in result.changes.items())
            or _no_change(result),
        ]
        for result in results
    ]
    header = ["arm", "n", f"{name}, mean ± std", "95 % interval", "difference to the baseline [95 %]", "paper"]
    header += ["paper's difference", "time of a run", "config changes from the baseline"]
    blocks: list[Block] = [
        Heading(f"{name} of each arm"),
        Table(header, rows, numbers=range(1, 8)),
        Paragraph(_how_to_read(results)),
    ]
    notes = [f"{result.name}: {result.arm.note}" for result in results if result.arm.note]
    if notes:
        blocks.append(Bullets(notes))
    if keys:
        baseline = {key: old for result in results for key, (old, _) in result.changes.items()}
        table = [[short, key, config_value(baseline[key])] for key, short in keys.items()]
        blocks += [Heading("Keys"), Table(["short", "config key", "value in the baseline"], table, numbers=())]
    return blocks


def table_by_seed(study: Study, results: Sequence[ArmResult]) -> list[Block]:
    """The value of every run, or its state."""
    rows = []
    for result in results:
        states = {run.seed: "undefined" if run.state == DONE else run.state for run in result.runs}
        cells = [number(result.values[s], 2) if s in result.values else states[s] for s in study.seeds]
        rows.append([result.name, *cells])
    heading = Heading(f"{_short(study.metric)} by seed")
    return [heading, Table(["arm", *(f"seed {seed}" for seed in study.seeds)], rows)]


def figures(study: Study, results: Sequence[ArmResult]) -> list[Block]:
    name = _short(study.metric)
    rows = [
        Row(_row_label(r), r.summary.mean, r.summary.interval, list(r.values.values()), r.paper) for r in results
    ]  # fmt: skip
    means = f"{name}: mean, 95 % interval, and a small dot for each seed"
    means += "; diamonds: the paper's values, on their own axis" if any(row.paper is not None for row in rows) else ""
    blocks: list[Block] = [
        Heading("Plots"),
        Figure("means.svg", means, draw_means(rows, name)),
    ]
    others = [result for result in results if result.difference is not None and result.difference.n]
    if others:
        rows = [
            Row(r.name, r.difference.mean, r.difference.interval, [], r.paper_difference) for r in others
        ]  # fmt: skip
        caption = f"{name}: difference to {study.baseline} with its paired 95 % interval"
        caption += "; diamonds: the paper's difference" if any(row.paper is not None for row in rows) else ""
        baseline = next(result.summary.mean for result in results if result.name == study.baseline)
        drawing = draw_differences(rows, name, study.baseline, nothing=-baseline)  # AP of 0
        blocks.append(Figure("differences.svg", caption, drawing))
    losses = _curves(results, "total_loss")
    if losses:
        caption = "Training loss, a line for each seed; each arm has its own scale, because losses differ in kind"
        blocks.append(Figure("losses.svg", caption, draw_curves(losses, None, log=True)))
    metric_curves = _curves(results, study.metric)
    if any(len(run) > 1 for curves in metric_curves.values() for run in curves):
        reference = study.baseline if study.baseline in metric_curves and len(metric_curves) > 1 else None
        caption = f"{name} during training, a line for each seed" + (f"; grey: {reference}" if reference else "")
        blocks.append(Figure("progress.svg", caption, draw_curves(metric_curves, reference, log=False)))
    return blocks


def other_metrics_table(study: Study, runs: Sequence[Run], results: Sequence[ArmResult]) -> list[Block]:
    names = other_metrics(study, runs)
    if not names:
        return []
    header = ["arm"]
    for name in names:
        header += [_short(name), "paper"]
    rows = []
    for result in results:
        row = [result.name]
        for name in names:
            summary = summarize(values_of(result.runs, name).values())
            row += [mean_and_std(summary, 1) if summary.n else NOTHING, number(result.arm.paper.get(_short(name)), 1)]
        rows.append(row)
    return [Heading("Other metrics"), Paragraph("Mean ± standard deviation over the same runs."), Table(header, rows)]


def agreement_section(results: Sequence[ArmResult]) -> list[Block]:
    """How well our order of the arms agrees with the paper's."""
    paper = {result.name: result.paper for result in results if result.paper is not None}
    if len(paper) < 2:
        return []
    agreement = compare_order({result.name: result.values for result in results}, paper)
    blocks: list[Block] = [Heading("Agreement with the paper's order")]
    excluded = [_why_excluded(result) for result in results if result.name not in agreement.arms]
    left_out = [Paragraph("Not in this comparison: " + "; ".join(excluded) + ".")] if excluded else []
    if len(agreement.arms) < 2:
        return [*blocks, Paragraph("Fewer than two arms have a value both here and in the paper."), *left_out]
    pairs = agreement.pairs
    wrong = [pair for pair in pairs if pair.is_reversed]
    ties = sum(pair.is_tied for pair in pairs)
    tau = "undefined (all values of one side are equal)" if agreement.tau is None else f"{agreement.tau:.2f}"
    counts = f"{len(pairs) - len(wrong) - ties} ordered as in the paper, {len(wrong)} the other way round, {ties} tied"
    text = f"Kendall's tau between our means and the paper's values is {tau}, over {len(agreement.arms)} arms. "
    text += f"Pairs of arms: {len(pairs)}, of which {counts}."
    return [*blocks, Paragraph(text), *_reversed_pairs(wrong), *left_out]


def runs_without_value(study: Study, runs: Sequence[Run]) -> list[Block]:
    lines = []
    for run in runs:
        if run.state != DONE:
            after = f" after {run.iterations} iterations" if run.iterations else ""
            reason = f": {shortened(run.reason)}" if run.reason else ""
            lines.append(f"{run.arm}, seed {run.seed}: {run.state}{after}{reason}")
        elif run.metrics.get(study.metric) is None:
            known = "undefined, as when nothing is detected" if study.metric in run.metrics else "not among its metrics"
            lines.append(f"{run.arm}, seed {run.seed}: done, {study.metric} is {known}")
    return [Heading("Runs without a value"), Bullets(lines)] if lines else []


def how_to_repeat(study: Study, runs: Sequence[Run]) -> list[Block]:
    command = repeat_command(study, runs[0].folder.parents[1])
    code = distinct(start.code for run in runs for start in run.starts)
    kept = "command, versions and uncommitted changes" if "uncommitted" in code else "command and versions"
    text = f"Use the code {code}. The run.json of each run records its {kept}."
    if command is None:
        text += f" The folder does not record how the study {study.name} was called: its file, overrides and arms."
        return [Heading("How to repeat it"), Paragraph(text)]
    return [Heading("How to repeat it"), Command(command), Paragraph(text)]


def _reversed_pairs(pairs: Sequence[Pair]) -> list[Block]:
    if not pairs:
        return [Paragraph("No pair of arms has the opposite order to the paper's.")]
    clear = sum(pair.is_clear for pair in pairs)
    text = (
        f"The paired 95 % interval excludes 0 for {clear} of the {len(pairs)} pairs that are ordered the other way "
        "round; for the other pairs, the seeds show no clear difference. One interval in twenty excludes 0 even if two "
        "arms are alike."
    )
    digits = digits_for(value for pair in pairs for value in (pair.ours, *(pair.paired.interval or ())))
    rows = [
        [
            f"{pair.first} - {pair.second}", signed(pair.paper, 1), signed(pair.ours, digits),
            difference(pair.paired, digits),
            "yes" if pair.is_clear else "no",
        ]
        for pair in pairs
    ]  # fmt: skip
    return [Paragraph(text), Table(["pair", "paper", "means here", "paired difference [95 %]", "excludes 0"], rows)]


def _how_to_read(results: Sequence[ArmResult]) -> str:
    text = (
        "Intervals are Student's t intervals over seeds. Differences are paired: they are taken seed by seed, over the "
        "seeds that both arms have. Means leave out diverged runs. "
    )
    if any(result.summary.n == 1 for result in results):
        text += "One seed (n = 1) has no deviation and no interval. "
    return text + "Each arm is compared with the baseline; intervals are not corrected for the number of comparisons."


def _settings(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Data, batch and schedule, from the configs of the runs; values that differ between runs are all listed."""
    configs = [run.config for run in runs if run.config is not None]

    def found(key: str) -> str:
        values = (config[key] for config in configs if key in config)
        lists = (value if isinstance(value, (list, tuple)) else [value] for value in values)
        return distinct(", ".join(map(str, entries)) for entries in lists)

    schedulers = found("SOLVER.LR_SCHEDULER_NAME")
    # A cosine has no steps, although its config has the default ones.
    steps = "" if schedulers == "WarmupCosineLR" else f"steps {found('SOLVER.STEPS')}, "
    facts = [
        ("Data", f"training {found('DATASETS.TRAIN')}, test {found('DATASETS.TEST')}"),
        ("Batch", f"{found('SOLVER.IMS_PER_BATCH')} images, shorter side {found('INPUT.MIN_SIZE_TRAIN')} pixels"),
        ("Schedule", f"{found('SOLVER.MAX_ITER')} iterations, {schedulers}, {steps}"
                     f"warm-up {found('SOLVER.WARMUP_ITERS')}"),
        ("Learning rate", found("SOLVER.BASE_LR")),
        ("Device", found("MODEL.DEVICE")),
    ]  # fmt: skip
    return [(label, text) for label, text in facts if "unknown" not in text]


def _overrides(study: Study) -> str:
    return ", ".join(f"{key} {config_value(value)}" for key, value in study.overrides.items())


def _short(metric: str) -> str:
    """The last part: "bbox/AP" gives "AP"."""
    return metric.rpartition("/")[2]


def _count(result: ArmResult) -> str:
    """Number of runs with a value, and how the other runs ended."""
    lost = Counter(
        "undefined" if run.state == DONE else run.state for run in result.runs if run.seed not in result.values
    )
    others = ", ".join(f"{count} {state}" for state, count in lost.items())
    return f"{result.summary.n} ({others})" if others else str(result.summary.n)


def _without_mean(result: ArmResult) -> str:
    diverged = result.count(DIVERGED)
    return f"diverged ({diverged} of {len(result.runs)})" if diverged else NOTHING


def _no_change(result: ArmResult) -> str:
    if result.difference is None:
        return "(baseline)"
    return "none" if any(run.config is not None for run in result.runs) else "unknown: no config.yaml"


def _row_label(result: ArmResult) -> str:
    lost = len(result.runs) - result.summary.n
    if not lost:
        return result.name
    diverged = result.count(DIVERGED)
    state = "diverged" if diverged == lost else "without a value"
    return f"{result.name} ({lost} of {len(result.runs)} {state})"


def _why_excluded(result: ArmResult) -> str:
    reasons = [] if result.summary.n else [_without_mean(result) if result.count(DIVERGED) else "no value here"]
    reasons.append("no value in the paper" if result.paper is None else f"{number(result.paper, 1)} in the paper")
    return f"{result.name} ({', '.join(reasons)})"


def _curves(results: Iterable[ArmResult], name: str) -> dict[str, list[list[tuple[int, float]]]]:
    """Arm -> curves of its runs; runs without points and arms without curves are left out."""
    curves = {result.name: [read_curve(run, name) for run in result.runs] for result in results}
    curves = {arm: [curve for curve in runs if curve] for arm, runs in curves.items()}
    return {arm: runs for arm, runs in curves.items() if runs}


def _time_range(runs: Sequence[Run]) -> str:
    times = sorted(datetime.fromisoformat(start.time) for run in runs for start in run.starts)
    total = f"{total_duration(sum(run.seconds for run in runs))} over all runs"
    if not times:
        return total
    days = dict.fromkeys(time.date().isoformat() for time in (times[0], times[-1]))
    return f"started {' to '.join(days)}; {total}"
