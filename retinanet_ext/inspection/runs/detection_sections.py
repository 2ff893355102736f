"""The sections of a run's report on one evaluation of detections.

K classes. Curves, thresholds and errors are those of the first task (boxes), at IoU 0.5.
"""

from collections.abc import Sequence

import numpy as np

from retinanet_ext.report.document import Beside, Block, Details, Figure, Heading, Paragraph, Table
from retinanet_ext.report.evaluation_plots import (
    draw_confusion,
    draw_costs,
    draw_f1,
    draw_intervals,
    draw_precision_recall,
    draw_reliability,
)
from retinanet_ext.report.formats import NOTHING

from .detection_statistics import DetectionStatistics

TASK_NAMES = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}
SIZES = {"APs": "small, below 32² pixels", "APm": "medium, 32² to 96²", "APl": "large, above 96²"}
_MATRIX_CLASSES = 20  # more classes: only the largest confusions
_WIDE_CLASSES = 8  # more classes: the matrix keeps its size, and is scrolled on a phone
_SHOWN_CONFUSIONS = 12
_SHOWN_CLASSES = 12  # longer tables are folded

KIND_NAMES = {
    "classification": "class", "localisation": "location", "both": "class and location", "duplicate": "duplicate",
    "background": "background", "missed": "missed",
}  # fmt: skip
_KINDS = (
    "What AP50 would gain if all errors of one kind were corrected. Class: a wrong class at IoU of at least 0.5. "
    "Location: the right class at IoU 0.1 to 0.5. Both: a wrong class at IoU 0.1 to 0.5. Duplicate: the object was "
    "found by a better detection. Background: no object at IoU of 0.1. Missed: an object that no detection found or "
    "nearly found. Source: TIDE (Bolya et al., 2020)."
)
_CALIBRATION = (
    "How often detections of a score are right (right class, IoU of at least 0.5). ECE, the expected calibration "
    "error, is the mean distance between score and share that is right, weighted by the detections of each bin "
    "(Guo et al., 2017)."
)

_NOT_FOUND = "Not found: no detection of any score has the class of the object and an IoU of at least 0.5 with it."


def detection_sections(statistics: DetectionStatistics, suffix: str) -> list[Block]:
    """`suffix`: ends each heading; names the dataset if there are several."""
    if not statistics.tasks:
        return []
    return [
        *_curves(statistics, suffix),
        *_thresholds(statistics, suffix),
        *_calibration(statistics, suffix),
        *_confusion(statistics, suffix),
        *_errors(statistics, suffix),
        *_sizes(statistics, suffix),
        *_classes(statistics, suffix),
    ]


def _curves(statistics, suffix):
    names = statistics.data.class_names
    blocks: list[Block] = [Heading(f"Precision, recall and F1{suffix}")]
    for task in statistics.tasks:
        if np.isnan(task.precisions).all():
            continue
        at = f"{TASK_NAMES[task.task]} at {_overlap(task.task)} 0.5"
        caption = f"Precision and recall of {at}; the score falls to the right"
        blocks.append(Figure(f"{task.task}_pr{suffix}.svg", caption, draw_precision_recall(task.precisions, names)))
    first = statistics.tasks[0]
    curves = [(curve.scores, curve.f1) for curve in first.curves]
    if any(len(scores) and not np.isnan(f1).all() for scores, f1 in curves):
        caption = f"F1 of {TASK_NAMES[first.task]} over the score from which detections count, at IoU 0.5"
        blocks.append(Figure(f"f1{suffix}.svg", caption, draw_f1(curves, names)))
    if len(blocks) == 1:
        blocks.append(Paragraph("There is no curve: no detection, or no object."))
    elif len(names) > 5:
        blocks.append(Paragraph("The two best and the two worst classes are named, the others are grey."))
    return blocks


def _overlap(task):
    return "OKS" if task == "keypoints" else "IoU"


def _thresholds(statistics, suffix):
    thresholds = statistics.thresholds
    rows = [
        (
            entry.name,
            _rate(entry.threshold, 3),
            _percent(entry.precision),
            _percent(entry.recall),
            _rate(entry.f1, 3),
            f"{entry.tp:,}",
            f"{entry.fp:,}",
            f"{entry.fn:,}",
            entry.reason,
        )
        for entry in thresholds.classes
    ]
    header = ("class", "score threshold", "precision (%)", "recall (%)", "F1", "right", "wrong", "missed", "remark")
    if not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    text = (
        f"The score threshold of each class by the rule “{thresholds.rule}” at IoU {thresholds.iou:g}, from these "
        f"{thresholds.images:,} images, so precision and recall on new images will be a little lower. "
        "“retinanet-ext predict --thresholds model” uses those that are stored with the model."
    )
    numbers = range(1, 8)
    return [
        Heading(f"Operating thresholds{suffix}"),
        Paragraph(text),
        *_folded(Table(header, rows, numbers), "classes"),
    ]


def _calibration(statistics, suffix):
    found = statistics.calibration
    if found is None or not found.counts.sum():
        return []
    drawing = draw_reliability(found.edges, found.mean_scores, found.precisions, found.counts)
    caption = f"Reliability of the scores; ECE {100 * found.ece:.1f} % over {int(found.counts.sum()):,} detections"
    figure = Figure(f"reliability{suffix}.svg", caption, drawing)
    return [Heading(f"Calibration{suffix}"), Beside([figure, Paragraph(_CALIBRATION)])]


def _confusion(statistics, suffix):
    matrix = statistics.confusion
    if matrix is None:
        return []
    names = statistics.data.class_names
    text = "Detections above the score thresholds of their classes, at IoU 0.5: what was there, and what was predicted."
    blocks: list[Block] = [Heading(f"Confusion{suffix}"), Paragraph(text)]
    rows = largest_confusions(matrix, names)
    header = ("true", "predicted", "times", "of the true class (%)")
    tables: list[Block] = [Table(header, rows, numbers=(2, 3))] if rows else []
    if len(names) > _MATRIX_CLASSES:
        blocks += [Paragraph(f"The {len(rows)} largest confusions between classes:"), *tables] if rows else []
        return [*blocks, _found_and_missed(matrix, names)]
    drawing = draw_confusion(matrix, [*names, "background"], [*names, "missed"])
    caption = "Confusion matrix; numbers are counts, colour is the share of the row"
    figure = Figure(f"confusion{suffix}.svg", caption, drawing, wide=len(names) > _WIDE_CLASSES)
    if figure.wide or not rows:
        return [*blocks, figure, *([Details("The largest confusions between classes", tables)] if rows else [])]
    return [*blocks, Beside([figure, *tables])]


def largest_confusions(matrix: np.ndarray, names: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """True class, predicted class, times, and share of the true class in percent; between classes only.

    ``matrix``: ``(K + 1, K + 1)`` counts, the last row background, the last column missed.
    """
    between = matrix[:-1, :-1].copy()
    np.fill_diagonal(between, 0)
    order = np.argsort(-between, axis=None, kind="stable")[:_SHOWN_CONFUSIONS]
    totals = matrix[:-1].sum(axis=1)
    found = [np.unravel_index(index, between.shape) for index in order]
    return [
        (names[row], names[column], f"{between[row, column]:,}", f"{100 * between[row, column] / totals[row]:.1f}")
        for row, column in found
        if between[row, column]
    ]


def _found_and_missed(matrix, names):
    rows = []
    for index, name in enumerate(names):
        right, total = matrix[index, index], matrix[index].sum()
        other = total - right - matrix[index, -1]
        rows.append((name, *(f"{v:,}" for v in (total, right, other, matrix[index, -1], matrix[-1, index]))))
    header = ("class", "objects", "right", "as another class", "missed", "found in the background")
    return Details(f"All {len(names)} classes", [Table(header, rows)])


def _errors(statistics, suffix):
    errors = statistics.errors
    if errors is None:
        return []
    kinds = list(KIND_NAMES)
    costs = [max(0.0, float(errors.cost(kind))) for kind in kinds]
    labels = [KIND_NAMES[kind] for kind in kinds]
    drawing = draw_costs(labels, [0.0 if np.isnan(cost) else cost for cost in costs], "points of AP50")
    rows = [
        (KIND_NAMES[kind], f"{errors.counts[kind]:,}", _number(cost), _number(errors.ap50_fixed[kind]))
        for kind, cost in zip(kinds, costs)
    ]
    header = ("kind", "errors", "costs (points of AP50)", "AP50 without them")
    caption = (
        f"AP50 of {TASK_NAMES[statistics.tasks[0].task]} that each kind of error costs; AP50 is {_number(errors.ap50)}"
    )
    return [
        Heading(f"Errors by kind{suffix}"),
        Beside([Figure(f"errors{suffix}.svg", caption, drawing), Table(header, rows)]),
        Paragraph(_KINDS),
    ]


def _sizes(statistics, suffix):
    task = statistics.tasks[0]
    objects, missed = objects_by_size(statistics)
    rows, drawn = [], []
    for name, label in SIZES.items():
        value, interval = task.metrics.get(name, np.nan), task.intervals.get(name)
        letter = name[-1]
        if letter not in objects:
            continue
        share = f"{100 * missed[letter] / objects[letter]:.1f}" if objects[letter] else NOTHING
        rows.append((label, f"{objects[letter]:,}", _number(value), _interval(interval), share))
        if not np.isnan(value):
            drawn.append((label, value, interval))
    header = ("size", "objects", "AP", "95 % interval", "not found (%)")
    blocks: list[Block] = [Heading(f"AP by size{suffix}")]
    if drawn:
        labels, values, intervals = zip(*drawn)
        caption = f"AP of {TASK_NAMES[task.task]} by the area of the object, with 95 % intervals"
        figure = Figure(f"sizes{suffix}.svg", caption, draw_intervals(labels, values, intervals, "AP"))
        return [*blocks, Beside([figure, Table(header, rows)]), Paragraph(_NOT_FOUND)]
    return [*blocks, Table(header, rows), Paragraph(_NOT_FOUND)]


def objects_by_size(statistics: DetectionStatistics) -> tuple[dict[str, int], dict[str, int]]:
    """Size (``s``, ``m``, ``l``) -> number of objects, and of those that no detection of any score finds at IoU 0.5."""
    matches = statistics.tasks[0].matches
    ranges = {letter: index for index, letter in enumerate(matches.area_ranges) if letter != "all"}
    objects, missed = dict.fromkeys(ranges, 0), dict.fromkeys(ranges, 0)
    for found in matches.classes:
        is_found = np.zeros(len(found.object_images), bool)
        matched = found.objects[0]
        is_found[matched[matched >= 0]] = True
        for letter, index in ranges.items():
            objects[letter] += int(found.counted[index].sum())
            missed[letter] += int((found.counted[index] & ~is_found).sum())
    return objects, missed


def _classes(statistics, suffix):
    names = statistics.data.class_names
    if len(names) < 2:
        return []
    header, columns = ["class", "objects"], []
    for task in statistics.tasks:
        header += [f"AP of {TASK_NAMES[task.task]}", "95 % interval"]
        columns.append(task)
    counts = [int(found.counted[0].sum()) for found in statistics.tasks[0].matches.classes]
    rows = []
    for name, count in zip(names, counts):
        row = [name, f"{count:,}"]
        for task in columns:
            row += [_number(task.metrics.get(f"AP-{name}", np.nan)), _interval(task.intervals.get(f"AP-{name}"))]
        rows.append(row)
    return [Heading(f"AP by class{suffix}"), *_folded(Table(header, rows), "classes")]


def _folded(table: Table, what: str) -> list[Block]:
    if len(table.rows) <= _SHOWN_CLASSES:
        return [table]
    return [Details(f"All {len(table.rows)} {what}", [table])]


def _number(value) -> str:
    return NOTHING if value is None or np.isnan(value) else f"{value:.1f}"


def _interval(ends) -> str:
    return NOTHING if ends is None else f"{ends[0]:.1f} to {ends[1]:.1f}"


def _rate(value, digits) -> str:
    return NOTHING if value is None or np.isnan(value) else f"{value:.{digits}f}"


def _percent(value) -> str:
    return NOTHING if value is None or np.isnan(value) else f"{100 * value:.1f}"
