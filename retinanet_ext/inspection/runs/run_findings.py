"""What stands out in a run: at most five sentences, made from its numbers, the weightiest first."""

from collections.abc import Iterator, Sequence

import numpy as np

from .detection_sections import KIND_NAMES, TASK_NAMES, objects_by_size
from .detection_statistics import DetectionStatistics
from .run_course import data_share
from .run_folder import RunFolder
from .run_origin import bad_images, incident_folders

_MOST = 5
_HARDLY = 2.0  # AP50 below this: what one would say of single errors means nothing
_SIZE_NAMES = {"s": "small (below 32² pixels)", "m": "medium (32² to 96²)", "l": "large (above 96²)"}

Finding = tuple[float, str]
"""Weight, 0 to 1, and the sentence."""


def findings(run: RunFolder, statistics: Sequence[DetectionStatistics]) -> list[str]:
    found = [*_about_the_course(run), *_about_results(run)]
    for of_dataset in statistics:
        prefix = f"{of_dataset.data.name}: " if len(statistics) > 1 else ""
        found += [(weight, prefix + text) for weight, text in _about_detections(of_dataset)]
    found.sort(key=lambda finding: -finding[0])
    return [text for _, text in found[:_MOST]]


def _about_the_course(run: RunFolder) -> Iterator[Finding]:
    history = run.history
    if run.is_trained and not run.is_finished:
        planned = f" of {run.max_iter:,}" if run.max_iter else ""
        yield 1.0, f"Training has not ended: {history.last_iteration + 1:,}{planned} iterations are logged."
    broken = [name for name in history.losses() if name in history.not_finite]
    broken += [name for name in history.not_finite if "loss" in name and name not in broken]
    if broken:
        yield 0.95, f"{', '.join(broken)} was not finite at iteration {history.not_finite[broken[0]][0]:,}."
    incidents = incident_folders(run)
    if incidents:
        yield (
            0.9,
            f"{len(incidents)} step(s) had a loss or gradient that was not finite; the first is {incidents[0].name}.",
        )
    errors = sum(message.count for message in run.log.messages if message.level != "WARNING")
    if errors:
        yield 0.85, f"The log has {errors} error(s)."
    if bad_images(run):
        yield 0.5, f"{len(bad_images(run))} image(s) could not be read during training."
    share = data_share(run)
    if share is not None and share > 0.3:
        yield 0.3 + 0.4 * share, f"Training waits for data {share:.0%} of its time: raise DATALOADER.NUM_WORKERS."
    yield from _about_the_end(run)


def _about_the_end(run: RunFolder) -> Iterator[Finding]:
    """Whether the loss still fell at the end, or the metric had its best value much earlier."""
    losses = [value for _, value in run.history.series.get("total_loss", ())]
    if len(losses) >= 20:
        fifth = len(losses) // 5
        before, last = np.median(losses[-2 * fifth : -fifth]), np.median(losses[-fifth:])
        if before > 0 and last < 0.93 * before:
            yield (
                0.35,
                (
                    f"The loss still fell by {1 - last / before:.0%} over the last fifth of training, so that a "
                    "longer run may reach more."
                ),
            )
    for name in ("bbox/AP", "verification/accuracy"):
        points = run.history.series.get(name, ())
        if len(points) < 3:
            continue
        iteration, best = max(points, key=lambda point: point[1])
        if best - points[-1][1] > max(1.0, 0.03 * best):
            yield (
                0.6,
                (
                    f"{name} was best at iteration {iteration:,} with {best:.1f}, and {points[-1][1]:.1f} at the end: "
                    "model_best.pth holds the best checkpoint, if TEST.BEST_METRIC names this metric."
                ),
            )


def _about_results(run: RunFolder) -> Iterator[Finding]:
    for name, entries in run.results.items():
        prefix = f"{name}: " if len(run.results) > 1 else ""
        reasons = entries.get("reasons") or {}
        for task, by_metric in reasons.items():
            if isinstance(by_metric, dict) and by_metric.get("AP"):
                yield 0.98, f"{prefix}AP of {TASK_NAMES.get(task, task)} is undefined: {by_metric['AP']}"
        yield from ((weight, prefix + text) for weight, text in _beside_the_model(entries))
        yield from ((weight, prefix + text) for weight, text in _about_verification(entries.get("verification")))
        counts = entries.get("data") or {}
        left_out = [(counts.get("images_left_out"), "image(s)"), (counts.get("annotations_left_out"), "annotation(s)")]
        parts = [f"{count:,} {what}" for count, what in left_out if isinstance(count, int) and count]
        if parts:
            yield 0.4, f"{prefix}The policies of the config left {' and '.join(parts)} out of the evaluation."


def _about_verification(metrics) -> Iterator[Finding]:
    if not isinstance(metrics, dict):
        return
    vals = [metrics.get(f"VAL@FAR={far}") for far in ("0.01", "0.001")]
    if None not in vals and vals[0] - vals[1] > 10:
        yield (
            0.45,
            (
                f"{vals[0]:.0f} % of the same pairs are accepted where 1 in 100 different pairs is, but only "
                f"{vals[1]:.0f} % where 1 in 1,000 is."
            ),
        )
    if metrics.get("pairs_left_out"):
        yield 0.7, f"{metrics['pairs_left_out']:,} pairs were left out, because an image is missing."


def _beside_the_model(entries) -> Iterator[Finding]:
    """EMA weights and test-time augmentation against the plain model."""
    for suffix, what in (("_EMA", "averaged weights (EMA)"), ("_TTA", "test-time augmentation")):
        plain, other = entries.get("bbox"), entries.get(f"bbox{suffix}")
        values = [entry.get("AP") if isinstance(entry, dict) else None for entry in (plain, other)]
        if None not in values and abs(values[1] - values[0]) >= 0.5:
            change = "higher" if values[1] > values[0] else "lower"
            yield 0.3, f"With {what} AP of boxes is {abs(values[1] - values[0]):.1f} points {change}."


def _about_detections(statistics: DetectionStatistics) -> Iterator[Finding]:
    if not statistics.tasks:
        return
    task = statistics.tasks[0]
    if task.metrics.get("AP50", np.nan) < _HARDLY:
        objects, missed = objects_by_size(statistics)
        share = sum(missed.values()) / max(1, sum(objects.values()))
        yield (
            0.97,
            (
                f"AP50 of {TASK_NAMES[task.task]} is {task.metrics['AP50']:.1f}: the model has hardly learned to "
                f"detect. {share:.0%} of the objects are found by no detection of any score."
            ),
        )
        return
    interval = task.intervals.get("AP")
    if interval is not None and interval[1] - interval[0] > max(4.0, 0.2 * task.metrics["AP"]):
        images = len(statistics.data.image_ids)
        half = (interval[1] - interval[0]) / 2
        yield 0.45, f"AP is known to about ± {half:.1f} only, because the evaluation has {images:,} images."
    yield from _about_errors(statistics)
    yield from _about_sizes(statistics)
    yield from _about_classes(statistics)
    yield from _about_scores(statistics)


def _about_errors(statistics) -> Iterator[Finding]:
    errors = statistics.errors
    if errors is None or np.isnan(errors.ap50) or errors.ap50 > 99:
        return
    costs = {kind: float(errors.cost(kind)) for kind in KIND_NAMES}
    kind = max(costs, key=costs.get)
    if costs[kind] > 1:
        lost = 100 - errors.ap50
        what = {"missed": "Missed objects", "background": "Detections of the background"}.get(
            kind, f"Errors of kind “{KIND_NAMES[kind]}”"
        )
        yield (
            0.8,
            (
                f"{what} cost the most: {costs[kind]:.1f} points of AP50, of the {lost:.1f} that are missing to 100 "
                f"({errors.counts[kind]:,} errors)."
            ),
        )


def _about_sizes(statistics) -> Iterator[Finding]:
    objects, missed = objects_by_size(statistics)
    total, total_missed = sum(objects.values()), sum(missed.values())
    if not total or total_missed < 5:
        return
    size = max(missed, key=missed.get)
    share_missed, share = missed[size] / total_missed, objects[size] / total
    if share_missed > share + 0.1:
        yield (
            0.7,
            (
                f"{share_missed:.0%} of the {total_missed:,} objects that no detection finds are {_SIZE_NAMES[size]}, "
                f"which are {share:.0%} of all objects."
            ),
        )


def _about_classes(statistics) -> Iterator[Finding]:
    task, names = statistics.tasks[0], statistics.data.class_names
    values = {name: task.metrics.get(f"AP-{name}", np.nan) for name in names}
    values = {name: value for name, value in values.items() if not np.isnan(value)}
    if len(values) >= 2:
        worst = min(values, key=values.get)
        if values[worst] < 0.6 * task.metrics["AP"]:
            count = int(task.matches.classes[names.index(worst)].counted[0].sum())
            yield (
                0.55,
                (
                    f"The weakest class is {worst} with AP {values[worst]:.1f} ({count:,} objects); the mean is "
                    f"{task.metrics['AP']:.1f}."
                ),
            )
    if statistics.confusion is None or len(names) < 2:
        return
    between = statistics.confusion[:-1, :-1].astype(float)
    np.fill_diagonal(between, 0)
    shares = between / np.maximum(statistics.confusion[:-1].sum(axis=1, keepdims=True), 1)
    row, column = np.unravel_index(shares.argmax(), shares.shape)
    if shares[row, column] > 0.1 and between[row, column] >= 3:
        yield 0.5, f"{shares[row, column]:.0%} of the objects of class {names[row]} are taken for {names[column]}."


def _about_scores(statistics) -> Iterator[Finding]:
    found = statistics.calibration
    if found is None or found.counts.sum() < 50 or found.ece < 0.1:
        return
    used = found.counts > 0
    gap = np.average((found.mean_scores - found.precisions)[used], weights=found.counts[used])
    direction = "higher" if gap > 0 else "lower"
    yield (
        0.4,
        (
            f"Scores are {direction} than the share of detections that are right, by {100 * found.ece:.0f} points on "
            "average (ECE), so a score is no probability."
        ),
    )
