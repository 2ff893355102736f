"""The score from which detections of each class are worth showing: best F1, or a precision that is asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from retinanet_ext.machine.atomic_file import write_atomically

from .image_matches import Matches
from .score_curves import ScoreCurve, score_curve

THRESHOLDS_FILE = "operating_thresholds.json"
ENTRY = "operating_thresholds"  # of a checkpoint
OPERATING_IOU = 0.5
_VERSION = 1


@dataclass(frozen=True)
class ClassThreshold:
    """The operating threshold of one class, and what it gives on the data it was found on.

    Args:
        name: of the class.
        category_id: in the dataset.
        threshold: detections with at least this score count; None: there is none, see `reason`.
        precision, recall, f1: 0 to 1, at the threshold; None without threshold.
        tp, fp, fn: hits, false alarms and missed objects at the threshold; without threshold 0, 0 and all objects.
        reason: why there is no threshold; empty if there is one.
    """

    name: str
    category_id: int
    threshold: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    tp: int
    fp: int
    fn: int
    reason: str = ""


@dataclass(frozen=True)
class OperatingThresholds:
    """The thresholds of all K classes, in the order of class ids.

    Args:
        dataset: name of the data they were found on.
        task: `bbox`, `segm` or `keypoints`.
        iou: from which a prediction is a hit (OKS for keypoints).
        target_precision: asked for; None: the best F1.
        images: number of images.
        classes: K.
    """

    dataset: str
    task: str
    iou: float
    target_precision: float | None
    images: int
    classes: tuple[ClassThreshold, ...]

    @property
    def rule(self) -> str:
        return "best F1" if self.target_precision is None else f"precision of at least {self.target_precision:g}"

    def vector(self, default: float) -> list[float]:
        """K thresholds, `default` for classes without."""
        return [default if one.threshold is None else one.threshold for one in self.classes]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and for a checkpoint."""
        return {"version": _VERSION, **asdict(self), "classes": [asdict(one) for one in self.classes]}

    @classmethod
    def of_dict(cls, content: Any, source: str) -> OperatingThresholds:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: not what :meth:`to_dict` gives; the message names `source`.
        """
        try:
            if content["version"] != _VERSION:
                raise ValueError(f"version {content['version']!r}")
            names = [field.name for field in fields(ClassThreshold)]
            classes = tuple(ClassThreshold(**{name: one[name] for name in names}) for one in content["classes"])
            found = cls(**{field.name: content[field.name] for field in fields(cls)} | {"classes": classes})
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(
                f"{source} does not hold operating thresholds ({type(error).__name__}: {error}); `retinanet-ext "
                "thresholds RUN` makes them"
            ) from error
        for one in found.classes:
            check_threshold(one.threshold, f"{source}: class {one.name!r}", none=True)
        return found


def check_threshold(value: Any, where: str, *, none: bool = False) -> None:
    """Refuse what is no score.

    Raises:
        ValueError: not a number of 0 to 1 (or None, if `none`).
    """
    if value is None and none:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 <= value <= 1):
        raise ValueError(f"{where} has the score threshold {value!r}; legal: 0 to 1")


def find_thresholds(
    matches: Matches,
    *,
    dataset: str = "",
    category_ids: Sequence[int] | Mapping[int, int] | None = None,
    target_precision: float | None = None,
    iou_index: int = 0,
) -> OperatingThresholds:
    """The threshold of each class with the best F1, or with the most hits at a target precision.

    A threshold lies half-way between the score that it accepts last and the next lower one, so that tiny differences
    between machines change nothing.

    Args:
        matches: the first IoU threshold is used; COCO's is 0.5.
        dataset: name of the data.
        category_ids: of the K classes, or by class id; None: 1 to K.
        target_precision: above 0, up to 1; None: best F1.
        iou_index: index of the IoU threshold.

    Raises:
        ValueError: an illegal target.
    """
    if target_precision is not None and not 0 < target_precision <= 1:
        raise ValueError(f"a target precision of {target_precision}; legal: above 0, up to 1")
    if isinstance(category_ids, Mapping):
        category_ids = list(category_ids.values())
    ids = category_ids or range(1, len(matches.classes) + 1)
    classes = tuple(
        _of_class(name, category_id, score_curve(one, iou_index), target_precision)
        for name, category_id, one in zip(matches.class_names, ids, matches.classes, strict=True)
    )
    iou = float(matches.iou_thresholds[iou_index])
    return OperatingThresholds(dataset, matches.task, iou, target_precision, len(matches.image_ids), classes)


def _of_class(name, category_id, curve: ScoreCurve, target) -> ClassThreshold:
    best, reason = None, ""
    if not curve.num_objects:
        reason = "no object of this class in the images"
    elif not len(curve.scores) or not curve.tp[-1]:
        reason = "no prediction of this class hits an object"
    elif target is None:
        best = int(np.argmax(curve.f1))
    else:
        reached = np.flatnonzero((curve.precision >= target) & (curve.tp > 0))
        if len(reached):
            best = int(reached[np.argmax(curve.tp[reached])])  # of equal numbers of hits the highest score
        else:
            reason = f"no threshold reaches the precision {target:g}; the highest is {curve.precision.max():.3g}"
    if best is None:
        return ClassThreshold(name, category_id, None, None, None, None, 0, 0, curve.num_objects, reason)
    following = curve.scores[min(best + 1, len(curve.scores) - 1)]
    tp, fp = int(curve.tp[best]), int(curve.fp[best])
    rates = (float(values[best]) for values in (curve.precision, curve.recall, curve.f1))
    threshold = float(curve.scores[best] + following) / 2
    return ClassThreshold(name, category_id, threshold, *rates, tp, fp, curve.num_objects - tp)


def write_thresholds(path: str | os.PathLike, thresholds: OperatingThresholds) -> None:
    """Write them as JSON."""
    write_atomically(path, json.dumps(thresholds.to_dict(), indent=1, allow_nan=False) + "\n")


def read_thresholds(path: str | os.PathLike) -> OperatingThresholds:
    """Read what :func:`write_thresholds` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another content.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; `retinanet-ext thresholds RUN` makes it")
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    return OperatingThresholds.of_dict(content, str(path))
