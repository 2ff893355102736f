"""Everything that a run's report says about one evaluation of detections, computed within a time limit.

K classes, I images; arrays as in ``evaluation/image_matches.py``.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from retinanet_ext.evaluation.average_precision import average_precision, interpolated_precision, summarize
from retinanet_ext.evaluation.bootstrap import bootstrap, is_cheap
from retinanet_ext.evaluation.confusion_matrix import confusion_matrix
from retinanet_ext.evaluation.error_kinds import ErrorKinds, error_kinds
from retinanet_ext.evaluation.evaluated_dataset import EvaluatedDataset
from retinanet_ext.evaluation.image_counts import ImageCounts, image_counts
from retinanet_ext.evaluation.image_matches import Matches, match_dataset
from retinanet_ext.evaluation.operating_thresholds import OperatingThresholds, find_thresholds
from retinanet_ext.evaluation.score_calibration import Calibration, calibration
from retinanet_ext.evaluation.score_curves import ScoreCurve, score_curves

IOU = 0  # index of the IoU threshold 0.5, at which errors and thresholds are stated
# A detection of a class without threshold counts from this score on.
DEFAULT_THRESHOLD = 0.5


class Clock:
    """Tells when the time for the report is used up."""

    def __init__(self, seconds: float | None):
        """`seconds`: None for no limit."""
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def is_over(self) -> bool:
        return self._end is not None and time.monotonic() > self._end


@dataclass(frozen=True)
class TaskStatistics:
    """The metrics of one task (``bbox``, ``segm``, ``keypoints``), and what its curves show.

    Attributes:
        metrics: AP, AP50, ..., AP-<class>, 0 to 100, NaN where undefined.
        intervals: metric -> (low, high), 95 %; without those that were left out.
        precisions: ``(K, 101)``, at recall 0, 0.01, ..., 1.
    """

    task: str
    matches: Matches
    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    curves: Sequence[ScoreCurve]
    precisions: np.ndarray


@dataclass(frozen=True)
class DetectionStatistics:
    """All of one dataset; the errors are those of the first task.

    Attributes:
        left_out: sentences about what was not computed, and why.
    """

    data: EvaluatedDataset
    tasks: Sequence[TaskStatistics]
    thresholds: OperatingThresholds | None = None
    calibration: Calibration | None = None
    confusion: np.ndarray | None = None
    errors: ErrorKinds | None = None
    counts: ImageCounts | None = None
    left_out: Sequence[str] = field(default_factory=list)

    @property
    def score_thresholds(self) -> list[float]:
        """The score from which a detection of each of the K classes counts."""
        return self.thresholds.vector(DEFAULT_THRESHOLD)


def compute_statistics(data: EvaluatedDataset, stored: Mapping, clock: Clock) -> DetectionStatistics:
    """
    Args:
        data: ground truth and predictions.
        stored: ``intervals`` of results.json for this dataset: task -> metric -> [low, high].
        clock: what begins after its end is left out.
    """
    left_out: list[str] = []
    tasks = []
    for task in data.tasks:
        if clock.is_over:
            left_out.append(f"{task}: curves and intervals, because the time for this page was used up")
            continue
        tasks.append(_task_statistics(data, task, stored.get(task) or {}, clock, left_out))
    if not tasks:
        return DetectionStatistics(data, [], left_out=left_out)
    matches = tasks[0].matches
    thresholds = find_thresholds(matches, dataset=data.name, category_ids=list(data.truth.category_ids.values()))
    scores = thresholds.vector(DEFAULT_THRESHOLD)
    parts = {
        "calibration": lambda: calibration(matches),
        "counts": lambda: image_counts(matches, scores),
        "confusion": lambda: confusion_matrix(data, matches, scores),
        "errors": lambda: error_kinds(data, matches),
    }
    found = {}
    for name, compute in parts.items():
        if clock.is_over:
            left_out.append(f"{name}, because the time for this page was used up")
        else:
            found[name] = compute()
    return DetectionStatistics(data, tasks, thresholds, **found, left_out=left_out)


def _task_statistics(data, task, stored, clock, left_out) -> TaskStatistics:
    matches = match_dataset(data, task)
    metrics = summarize(average_precision(matches), matches.area_ranges, matches.class_names)
    intervals = {name: (float(ends[0]), float(ends[1])) for name, ends in stored.items() if None not in ends}
    if not intervals:
        if is_cheap(matches) and not clock.is_over:
            found = bootstrap(matches)
            intervals = {name: (i.low, i.high) for name, i in found.items() if np.isfinite((i.low, i.high)).all()}
        else:
            left_out.append(f"{task}: the intervals, because resampling {len(matches.image_ids):,} images takes long")
    metrics = {name: float(value) for name, value in metrics.items()}
    curves, precisions = score_curves(matches), interpolated_precision(matches)
    return TaskStatistics(task, matches, metrics, intervals, curves, precisions)
