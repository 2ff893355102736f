"""``report.html``: one page that explains a run."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retinanet_ext.machine.atomic_file import write_atomically
from retinanet_ext.report.document import (
    Block,
    Bullets,
    Contents,
    Details,
    Facts,
    Heading,
    Headline,
    Paragraph,
    Table,
    Warning,
)
from retinanet_ext.report.formats import NOTHING
from retinanet_ext.report.html_page import to_html

from .detection_sections import TASK_NAMES, detection_sections
from .detection_statistics import Clock, DetectionStatistics, compute_statistics
from .run_course import course_sections
from .run_data import data_section
from .run_findings import findings
from .run_folder import RunFolder, read_run_folder
from .run_ground_truth import find_datasets
from .run_origin import origin_sections
from .verification_sections import verification_sections
from .worst_images import worst_images_section

REPORT_FILE = "report.html"
_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_INTERVALS = (
    "In brackets: 95 % intervals by bootstrap over the images, which say how much the value would vary with other "
    "images of this kind; not how much it would with another seed of training."
)


def write_run_report(run_folder: str | Path, output: str | Path | None = None, *, seconds: float | None = None) -> Path:
    """Write the page of a run.

    Args:
        run_folder: the OUTPUT_DIR of a run of this package or of Detectron2, also of one that never ended.
        output: the file to write; None: ``report.html`` in the folder.
        seconds: after this time nothing further is computed, and the page says what it lacks; None: no limit.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: the folder holds no file of a run.
        OSError: the page cannot be written.
    """
    clock = Clock(seconds)
    run = read_run_folder(run_folder)
    datasets, problems = find_datasets(run)
    statistics = [compute_statistics(data, _entries(run, data.name).get("intervals") or {}, clock) for data in datasets]
    blocks = _blocks(run, statistics, problems, clock)
    path = Path(output) if output is not None else run.path / REPORT_FILE
    write_atomically(path, to_html(f"Report of the run {run.path.resolve().name}", blocks))
    return path


def _entries(run: RunFolder, name: str) -> Mapping[str, Any]:
    return run.results.get(name) or run.results.get("") or {}


def _blocks(
    run: RunFolder, statistics: Sequence[DetectionStatistics], problems: list[str], clock: Clock
) -> list[Block]:
    body: list[Block] = [*_metrics(run, statistics)]
    for of_dataset in statistics:
        suffix = f": {of_dataset.data.name}" if len(statistics) > 1 else ""
        body += detection_sections(of_dataset, suffix)
        body += worst_images_section(of_dataset, suffix, clock)
    body += verification_sections(run, problems)
    body += [
        *course_sections(run),
        *data_section(run, [of_dataset.data for of_dataset in statistics]),
        *origin_sections(run),
    ]
    left_out = [text for of_dataset in statistics for text in of_dataset.left_out]
    top: list[Block] = [Headline(headline(run, statistics)), Facts(_facts(run))]
    sentences = findings(run, statistics)
    if sentences:
        top += [Heading("What stands out"), Bullets(sentences)]
    if run.problems or problems:
        top.append(Warning("Some files could not be used", [*run.problems, *problems]))
    if left_out:
        more = "“retinanet-ext report” without --seconds computes everything."
        top.append(Warning("Left out, to bound the time", [*left_out, more]))
    sections = [block.text for block in body if isinstance(block, Heading)]
    return [*top, Contents(sections), *body]


def headline(run: RunFolder, statistics: Sequence[DetectionStatistics]) -> list[tuple[str, str, str]]:
    """What the run reached: the main metric of each task of its first dataset, with the interval."""
    entries = next(iter(run.results.values()), {})
    items = []
    for task, name in TASK_NAMES.items():
        metrics, intervals = _metrics_of(task, entries, statistics[:1])
        if metrics is None:
            continue
        for metric in ("AP", "AP50") if task == "bbox" else ("AP",):
            ends = intervals.get(metric) if _is_defined(metrics.get(metric)) else None
            note = "" if ends is None else f"95 % interval {ends[0]:.1f} to {ends[1]:.1f}"
            items.append((f"{metric} of {name}", _value(metrics.get(metric)), note))
    verification = entries.get("verification")
    if isinstance(verification, dict):
        error = verification.get("accuracy_error")
        note = f"± {error:.2f}, standard error over folds" if isinstance(error, (int, float)) else ""
        items.append(("Accuracy of verification", f"{_value(verification.get('accuracy'))} %", note))
        items.append(("VAL at FAR 0.001", f"{_value(verification.get('VAL@FAR=0.001'))} %", "same pairs accepted"))
    if not items:
        items.append(("Evaluation", "none", "the folder holds no result of one"))
    done = run.history.last_iteration
    if done is not None:
        state = "finished" if run.is_finished else "not finished"
        items.append(("Iterations", f"{done + 1:,}", f"of {run.max_iter:,}, {state}" if run.max_iter else state))
    return items


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    config = run.config or {}
    weights = config.get("MODEL.WEIGHTS")
    facts = [
        ("Model", str(config.get("MODEL.META_ARCHITECTURE", "unknown"))),
        ("Started from", "random weights" if weights == "" else str(weights) if weights else "unknown"),
        ("Trained on", ", ".join(map(str, config.get("DATASETS.TRAIN") or ())) or NOTHING),
        ("Evaluated on", ", ".join(map(str, config.get("DATASETS.TEST") or ())) or NOTHING),
        ("Started", str(run.record.get("started", "unknown"))),
    ]
    return facts


def _metrics(run: RunFolder, statistics: Sequence[DetectionStatistics]) -> list[Block]:
    blocks: list[Block] = []
    by_name = {of_dataset.data.name: of_dataset for of_dataset in statistics}
    names = list(dict.fromkeys([*run.results, *by_name]))
    if "" in names and len(names) == 2:  # results without a name belong to the only dataset
        names.remove("")
    for name in names:
        of_dataset = [by_name[name]] if name in by_name else []
        entries = _entries(run, name)
        rows, reasons = _metric_rows(entries, of_dataset)
        if rows:
            blocks += [Paragraph(f"On {name}:" if name else "Values, 0 to 100:"), Table(("entry", *_METRICS), rows)]
        blocks += [Bullets(reasons)] if reasons else []
        blocks += _other_entries(entries)
    if not blocks:
        text = "There are no metrics: results.json is missing, and metrics.json has no evaluation."
        return [Heading("Metrics"), Paragraph(text)]
    has_intervals = any(task.intervals for of_dataset in statistics for task in of_dataset.tasks)
    return [Heading("Metrics"), *blocks, *([Paragraph(_INTERVALS)] if has_intervals else [])]


def _metric_rows(entries, statistics) -> tuple[list[Sequence[str]], list[str]]:
    rows, reasons = [], []
    tasks = list(dict.fromkeys([*entries, *(task.task for one in statistics for task in one.tasks)]))
    for task in (task for task in tasks if task.partition("_")[0] in TASK_NAMES):
        metrics, intervals = _metrics_of(task, entries, statistics)
        if metrics is None or not set(_METRICS) & set(metrics):
            continue
        ranges = {name: _range(intervals.get(name)) for name in _METRICS if _is_defined(metrics.get(name))}
        cells = [f"{_value(metrics.get(name))} {ranges.get(name, '')}".strip() for name in _METRICS]
        rows.append((_entry_name(task), *cells))
        known = (entries.get("reasons") or {}).get(task) or {}
        reasons += _undefined(_entry_name(task), known)
    return rows, reasons


def _undefined(entry: str, reasons: Mapping[str, str]) -> list[str]:
    """A sentence for each reason, with all metrics that are undefined for it."""
    by_reason = defaultdict(list)
    for name, text in reasons.items():
        if name in _METRICS:
            by_reason[text].append(name)
    verb = {text: "is" if len(names) == 1 else "are" for text, names in by_reason.items()}
    return [f"{', '.join(names)} of {entry} {verb[text]} undefined: {text}" for text, names in by_reason.items()]


def _is_defined(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _entry_name(task: str) -> str:
    base, _, suffix = task.partition("_")
    return f"{TASK_NAMES[base]}, {suffix}" if suffix else TASK_NAMES[base]


def _metrics_of(task, entries, statistics):
    """Metrics and intervals of a task: those of results.json come before those computed from the files; None: none."""
    computed = next((found for one in statistics for found in one.tasks if found.task == task), None)
    stored = entries.get(task)
    stored = stored if isinstance(stored, dict) and stored else None
    intervals = dict(computed.intervals) if computed is not None else {}
    of_results = (entries.get("intervals") or {}).get(task) or {}
    intervals = {**intervals, **{name: ends for name, ends in of_results.items() if ends and None not in ends}}
    if stored is None and computed is None:
        return None, {}
    return {**(computed.metrics if computed is not None else {}), **(stored or {})}, intervals


def _other_entries(entries: Mapping[str, Any]) -> list[Block]:
    """Verification, and entries of a user's own evaluators, as they are."""
    blocks: list[Block] = []
    known = {"data", "intervals", "reasons"}
    for task, metrics in entries.items():
        if task in known or task.partition("_")[0] in TASK_NAMES or not isinstance(metrics, dict):
            continue
        rows = [(name, _value(value, 2)) for name, value in metrics.items() if not isinstance(value, (dict, list))]
        if rows:
            blocks.append(Details(f"All values of {task}", [Table((task, "value"), rows)]))
    return blocks


def _value(value: Any, digits: int = 1) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        return NOTHING if value is None or value != value else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def _range(ends) -> str:
    return "" if ends is None else f"[{ends[0]:.1f},\u00a0{ends[1]:.1f}]"
