"""What kinds of errors a detector makes, and how much AP50 each costs (Bolya et al., "TIDE", ECCV 2020)."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np

from .average_precision import RECALLS
from .evaluated_dataset import EvaluatedDataset
from .image_matches import Matches
from .similarities import image_similarities

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
_BACKGROUND_IOU = 0.1
_FIXED_BY_REMOVAL = ("both", "duplicate", "background")


@dataclass(frozen=True)
class ErrorKinds:
    """Errors by kind.

    Args:
        ap50: of the predictions as they are, 0 to 100; NaN without objects.
        counts: number of errors of each kind.
        ap50_fixed: AP50 if the errors of this kind alone were fixed, 0 to 100.
    """

    ap50: float
    counts: dict[str, int]
    ap50_fixed: dict[str, float]

    def cost(self, kind: str) -> float:
        """Points of AP50 that fixing this kind would gain."""
        return self.ap50_fixed[kind] - self.ap50


@dataclass
class _Prediction:
    """One prediction that is a hit or a false alarm; `target` is (class, object), None for what cannot be fixed so."""

    score: float
    k: int
    image: int
    index: int
    hit: bool
    target: tuple[int, int] | None
    kind: str = ""


@dataclass
class _Image:
    alarms: list[_Prediction] = field(default_factory=list)
    objects: list[tuple[int, int]] = field(default_factory=list)  # (class, object)


def error_kinds(data: EvaluatedDataset, matches: Matches) -> ErrorKinds:
    """Sort the errors at IoU 0.5 by kind, and evaluate again with each kind fixed.

    A false alarm is the first that applies, of its largest IoU with objects (crowds left out): *localisation* (0.1 to
    0.5 with its class), *classification* (0.5 or more with another class), *duplicate* (0.5 or more with its class,
    where a better prediction was matched), *background* (up to 0.1 with all), *both* (the rest: 0.1 to 0.5 with another
    class). *Missed* are objects without match that are no localisation or classification error either.

    Fixed means: class or box are those of the object, and of several predictions of one object the best score stays;
    both, duplicate, background: the prediction is removed; missed: the object is removed.

    Args:
        data: what `matches` are of.
        matches: the first IoU threshold must be 0.5.

    Raises:
        ValueError: another IoU threshold.
    """
    if matches.iou_thresholds[0] != 0.5:
        raise ValueError(f"errors are sorted at an IoU of 0.5; the matches start at {matches.iou_thresholds[0]:g}")
    predictions, images = _collect(matches)
    for image in sorted(images):
        _sort_alarms(data, matches, image, images[image])
    totals = np.array([one.counted[0].sum() for one in matches.classes])
    covered = {p.target for p in predictions if p.target is not None}
    missed = np.array([
        sum(bool(one.counted[0][g]) and (k, g) not in covered for g in range(len(one.counted[0])))
        for k, one in enumerate(matches.classes)
    ])  # fmt: skip
    counts = Counter(p.kind for p in predictions if not p.hit)
    counts["missed"] = int(missed.sum())
    fixed = {kind: _mean_ap(_fixed(predictions, kind), totals) for kind in KINDS[:-1]}
    fixed["missed"] = _mean_ap(predictions, totals - missed, nothing=100.0 if totals.any() else float("nan"))
    return ErrorKinds(_mean_ap(predictions, totals), {kind: counts[kind] for kind in KINDS}, fixed)


def _collect(matches):
    predictions, images = [], defaultdict(_Image)
    for k, one in enumerate(matches.classes):
        for row in np.flatnonzero(~one.ignored[0, 0]):
            hit = bool(one.hits[0, 0, row])
            target = (k, int(one.objects[0, row])) if hit else None
            found = _Prediction(float(one.scores[row]), k, int(one.images[row]), int(one.indices[row]), hit, target)
            predictions.append(found)
            if not hit:
                images[found.image].alarms.append(found)
        for g in np.flatnonzero(one.counted[0]):
            images[int(one.object_images[g])].objects.append((k, int(g)))
    return predictions, images


def _sort_alarms(data, matches, image: int, of_image: _Image) -> None:
    """Set the kind of each false alarm of an image and, if it can be fixed, its object."""
    if not of_image.alarms:
        return
    numbers = [int(matches.classes[k].object_annotations[g]) for k, g in of_image.objects]
    indices = [alarm.index for alarm in of_image.alarms]
    overlap = image_similarities(data, matches, matches.image_ids[image], indices, numbers)
    classes = np.array([k for k, _ in of_image.objects], np.int64)
    for row, alarm in enumerate(of_image.alarms):
        same, other = np.where(classes == alarm.k, overlap[row], -1), np.where(classes != alarm.k, overlap[row], -1)
        best_same, best_other = same.max(initial=-1), other.max(initial=-1)
        if _BACKGROUND_IOU <= best_same < 0.5:
            alarm.kind, alarm.target = "localisation", of_image.objects[int(same.argmax())]
        elif best_other >= 0.5:
            alarm.kind, alarm.target = "classification", of_image.objects[int(other.argmax())]
        elif best_same >= 0.5:
            alarm.kind = "duplicate"
        else:
            alarm.kind = "background" if best_other <= _BACKGROUND_IOU else "both"


def _fixed(predictions: list[_Prediction], kind: str) -> list[_Prediction]:
    """The predictions with the errors of one kind fixed."""
    if kind in _FIXED_BY_REMOVAL:
        return [p for p in predictions if p.kind != kind]
    kept, best = [], {}
    for prediction in predictions:
        if not prediction.hit and prediction.kind != kind:
            kept.append(prediction)
        elif prediction.target not in best or prediction.score > best[prediction.target].score:
            best[prediction.target] = prediction
    for target, prediction in best.items():
        kept.append(_Prediction(prediction.score, target[0], prediction.image, prediction.index, True, target))
    return kept


def _mean_ap(predictions: list[_Prediction], totals: np.ndarray, nothing: float = float("nan")) -> float:
    """Mean of COCO's AP over the classes with objects, 0 to 100."""
    order = sorted(predictions, key=lambda p: (p.k, -p.score, p.image, p.index))
    classes, hits = np.array([p.k for p in order], np.int64), np.array([p.hit for p in order], np.int64)
    values = []
    for k in np.flatnonzero(totals):
        of_class = hits[slice(*np.searchsorted(classes, [k, k + 1]))]
        so_far = np.cumsum(of_class)
        precision = so_far / (np.arange(1, len(of_class) + 1) + np.spacing(1))
        best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        values.append(best[np.searchsorted(so_far / totals[k], RECALLS)].mean())
    return 100 * float(np.mean(values)) if values else nothing
