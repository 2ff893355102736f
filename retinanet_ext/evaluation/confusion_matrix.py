"""Which classes are taken for which others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from .evaluated_dataset import EvaluatedDataset
from .image_matches import Matches
from .similarities import image_similarities


def confusion_matrix(
    data: EvaluatedDataset, matches: Matches, thresholds: Sequence[float], iou_index: int = 0
) -> np.ndarray:
    """Counts of objects by true and predicted class.

    Only predictions with at least the threshold of their class count. Within a class they are matched as for AP, so
    that the diagonal has the hits of that class. Each of the other predictions, best score first, takes the free object
    of another class with which it overlaps most, if the overlap reaches the IoU threshold. What is left over is a
    false alarm, or a missed object. Predictions that match a crowd are left out.

    Args:
        data: what `matches` are of.
        matches: at the IoU thresholds.
        thresholds: score of each of the K classes.
        iou_index: index of the IoU threshold.

    Returns:
        int64 ``(K + 1, K + 1)``: row: true class, last the background (false alarms); column: predicted class, last the
        background (missed objects).
    """
    num_classes = len(matches.classes)
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    alarms, missed = defaultdict(list), defaultdict(list)
    for k, (one, threshold) in enumerate(zip(matches.classes, thresholds, strict=True)):
        shown = one.scores >= threshold
        hits = shown & one.hits[0, iou_index]
        matrix[k, k] = hits.sum()
        for row in np.flatnonzero(shown & ~one.hits[0, iou_index] & ~one.ignored[0, iou_index]):
            alarms[int(one.images[row])].append((one.scores[row], k, int(one.indices[row])))
        free = one.counted[0].copy()
        free[one.objects[iou_index][hits]] = False
        for g in np.flatnonzero(free):
            missed[int(one.object_images[g])].append((k, int(one.object_annotations[g])))
    for image in sorted(alarms.keys() | missed.keys()):
        _count_others(matrix, data, matches, image, alarms[image], missed[image], iou_index)
    return matrix


def _count_others(matrix, data, matches, image, alarms, missed, iou_index) -> None:
    background = len(matrix) - 1
    alarms = sorted(alarms, key=lambda alarm: -alarm[0])
    overlap = image_similarities(
        data, matches, matches.image_ids[image], [index for *_, index in alarms], [number for _, number in missed]
    )
    classes = np.array([k for k, _ in missed], np.int64)
    for row, (_, k, _) in enumerate(alarms):
        legal = np.where(classes == k, -1.0, overlap[row]) if len(missed) else np.zeros(0)
        best = int(legal.argmax()) if len(legal) else -1
        if best >= 0 and legal[best] >= matches.iou_thresholds[iou_index]:
            matrix[classes[best], k] += 1
            overlap[:, best] = -1
            classes[best] = background
        else:
            matrix[background, k] += 1
    for k in classes[classes != background]:
        matrix[k, background] += 1
