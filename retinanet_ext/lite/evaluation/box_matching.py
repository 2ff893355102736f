"""COCO's matching of predicted boxes with objects and its precision and recall, for all images at once.

The reference is pycocotools' ``COCOeval``; the numbers here equal its numbers bit for bit. ``COCOeval`` loops over
images, classes, sizes, thresholds and predictions. This module loops over the rank of predictions only: first the best
prediction of every image and class takes its object, at all sizes and thresholds, then the second best, and so on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# Matching runs in blocks of at most this many (group, object) pairs: about 40 bytes a pair persist, temporaries take
# several times that.
BLOCK_PAIRS = 2**16


@dataclass
class Objects:
    """The ground truth, N objects in columns.

    Attributes:
        image: (N,) int64, 0 to I-1; of predictions with equal scores, those of the lower image come first.
        label: (N,) int64, 0 to K-1.
        box: (N, 4) float64, XYWH in pixels.
        area: (N,) float64, in square pixels; may be the area of a mask.
        crowd: (N,) bool, True for a region of many objects; any number of predictions may match it without effect.
    """

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    area: np.ndarray
    crowd: np.ndarray


@dataclass
class Predicted:
    """N predictions in columns: ``image``, ``label`` and ``box`` as in :class:`Objects`; ``score`` (N,) float64."""

    image: np.ndarray
    label: np.ndarray
    box: np.ndarray
    score: np.ndarray

    def select(self, rows: np.ndarray) -> Predicted:
        return Predicted(self.image[rows], self.label[rows], self.box[rows], self.score[rows])


@dataclass
class _Groups:
    """Runs of rows with the same key: ascending keys, and for each key its first row and its number of rows."""

    keys: np.ndarray
    first: np.ndarray
    count: np.ndarray

    @classmethod
    def of(cls, sorted_keys: np.ndarray) -> _Groups:
        return cls(*np.unique(sorted_keys, return_index=True, return_counts=True))


def precision_and_recall(
    objects: Objects,
    predicted: Predicted,
    num_classes: int,
    *,
    iou_thresholds: np.ndarray,
    recall_points: np.ndarray,
    area_ranges: Sequence[tuple[float, float]],
    max_dets: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall after the COCO protocol.

    Args:
        objects, predicted: ground truth and predictions of the same images.
        num_classes: K.
        iou_thresholds: (T,), ascending, below 1.
        recall_points: (R,), ascending: the recalls at which precision is given.
        area_ranges: A pairs (smallest, largest) in square pixels, both inclusive: objects and unmatched predictions
            with an area outside do not count.
        max_dets: D limits, ascending, on the number of predictions that count per image and class.

    Returns:
        Precision (T, R, K, A) at the last of ``max_dets``, and recall (T, K, A, D); -1 where no object exists.
    """
    ranges = np.asarray(area_ranges, dtype=np.float64)
    num_images = 1 + max(objects.image.max(initial=0), predicted.image.max(initial=0))
    keys = predicted.label * num_images + predicted.image
    order = np.lexsort((-predicted.score, keys))
    groups = _Groups.of(keys[order])
    rank = np.arange(len(order)) - np.repeat(groups.first, groups.count)
    kept = rank < max_dets[-1]
    predicted, rank = predicted.select(order[kept]), rank[kept]
    groups = _Groups.of(keys[order[kept]])
    matched, ignored = _match(objects, predicted, groups, num_images, iou_thresholds, ranges)

    shape = len(iou_thresholds), num_classes, len(ranges)
    precision = np.full((len(recall_points), *shape), -1.0)
    recall = np.full((len(max_dets), *shape), -1.0)
    counts = _count_objects(objects, num_classes, ranges)
    bounds = np.searchsorted(predicted.label, np.arange(num_classes + 1))
    for k in np.flatnonzero(counts.any(axis=1)):
        rows = slice(bounds[k], bounds[k + 1])
        best_first = np.argsort(-predicted.score[rows], kind="stable")
        true = (matched[rows] & ~ignored[rows])[best_first]
        false = (~matched[rows] & ~ignored[rows])[best_first]
        for a in np.flatnonzero(counts[k]):
            for d, limit in enumerate(max_dets):
                recall[d, :, k, a] = true[rank[rows][best_first] < limit, a].sum(axis=0) / counts[k, a]
            for t in range(shape[0]):
                precision[:, t, k, a] = _precision(true[:, a, t], false[:, a, t], counts[k, a], recall_points)
    return np.moveaxis(precision, 0, 1), np.moveaxis(recall, 0, -1)


def _precision(true: np.ndarray, false: np.ndarray, count: int, recall_points: np.ndarray) -> np.ndarray:
    """The largest precision at or beyond each recall; 0 for a recall that is not reached.

    Args:
        true, false: (n,) bool, whether a prediction is a hit or a miss, best score first.
        count: number of objects.
        recall_points: (R,).
    """
    # Recall grows at hits only, and precision has its local maxima there.
    hits = np.flatnonzero(true)
    if not len(hits):
        return np.zeros(len(recall_points))
    number = np.arange(1.0, len(hits) + 1)
    misses = np.cumsum(false)[hits]
    precision = number / (misses + number + np.spacing(1))
    largest = np.maximum.accumulate(precision[::-1])[::-1]
    index = np.searchsorted(number / count, recall_points)
    return np.append(largest, 0.0)[index]


def _count_objects(objects: Objects, num_classes: int, ranges: np.ndarray) -> np.ndarray:
    """(K, A): the number of objects to be found, by class and range of areas."""
    counted = ~_ignored(objects, ranges)
    return np.stack([np.bincount(objects.label[column], minlength=num_classes) for column in counted.T], axis=1)


def _ignored(objects: Objects, ranges: np.ndarray) -> np.ndarray:
    """(N, A) bool: objects that need not be found."""
    return objects.crowd[:, None] | _outside(objects.area, ranges)


def _outside(area: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    return (area[:, None] < ranges[:, 0]) | (area[:, None] > ranges[:, 1])


# ---- matching


def _match(
    objects: Objects,
    predicted: Predicted,
    groups: _Groups,
    num_images: int,
    thresholds: np.ndarray,
    ranges: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Match at every range of areas and threshold; ``predicted`` is sorted into ``groups``, best score first.

    Returns:
        Two arrays (N, A, T) bool: whether a prediction has an object, and whether it does not count.
    """
    matched = np.zeros((len(predicted.score), len(ranges), len(thresholds)), dtype=bool)
    outside = _outside(predicted.box[:, 2] * predicted.box[:, 3], ranges)
    ignored = np.repeat(outside[:, :, None], len(thresholds), axis=2)

    object_keys = objects.label * num_images + objects.image
    order = np.argsort(object_keys, kind="stable")
    object_groups = _Groups.of(object_keys[order])
    object_ignored = _ignored(objects, ranges)
    _, group, object_group = np.intersect1d(groups.keys, object_groups.keys, assume_unique=True, return_indices=True)
    first, count = object_groups.first[object_group], object_groups.count[object_group]
    for block, width in _blocks(groups.count[group], count):
        column = np.arange(width)
        real = column < count[block, None]
        rows = order[np.where(real, first[block, None] + column, 0)]
        _match_block(
            predicted.box,
            groups.first[group[block]],
            groups.count[group[block]],
            objects.box[rows],
            objects.crowd[rows],
            real,
            object_ignored[rows],
            thresholds,
            matched,
            ignored,
        )
    return matched, ignored


def _blocks(num_predictions: np.ndarray, num_objects: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Indices of the groups in each block, most predictions first, and the number of objects they are padded to.

    Groups of 1, 2, 3 to 4, 5 to 8 ... objects go into separate blocks, which keeps the padding small.
    """
    widths = 2 ** np.ceil(np.log2(num_objects)).astype(np.int64)
    for width in np.unique(widths).tolist():
        members = np.flatnonzero(widths == width)
        members = members[np.argsort(-num_predictions[members], kind="stable")]
        size = max(1, BLOCK_PAIRS // width)
        for start in range(0, len(members), size):
            yield members[start : start + size], width


def _match_block(
    boxes: np.ndarray,
    first: np.ndarray,
    count: np.ndarray,
    object_boxes: np.ndarray,
    crowd: np.ndarray,
    real: np.ndarray,
    object_ignored: np.ndarray,
    thresholds: np.ndarray,
    matched: np.ndarray,
    ignored: np.ndarray,
) -> None:
    """Match G groups of at most W objects; fills in the rows of their predictions in ``matched`` and ``ignored``.

    A prediction chooses among the free objects that overlap it enough. It takes the object with the largest overlap,
    the last one if several overlap equally. It takes an ignored object only if no other object qualifies.

    Args:
        boxes: (N, 4), all predictions.
        first, count: (G,), rows of each group's predictions; ``count`` descends.
        object_boxes, crowd, real: (G, W, 4), (G, W), (G, W): objects; ``real`` is False for padding.
        object_ignored: (G, W, A).
        thresholds: (T,).
        matched, ignored: (N, A, T).
    """
    width = real.shape[1]
    object_ignored = object_ignored.transpose(0, 2, 1)
    free = np.repeat(np.repeat(real[:, None, None], object_ignored.shape[1], axis=1), len(thresholds), axis=2)
    for rank in range(count[0]):
        active = np.searchsorted(-count, -rank)  # groups that have a prediction of this rank
        iou = _iou(boxes[first[:active] + rank][:, None], object_boxes[:active], crowd[:active])
        near = np.flatnonzero((iou >= thresholds[0]).any(axis=1))
        if not len(near):
            continue
        # Integers, which do not round. Preferred are objects not ignored, then larger overlap, then later objects.
        overlap_rank = np.argsort(np.argsort(iou[near], axis=1, kind="stable"), axis=1).astype(np.int32)
        preference = 1 + overlap_rank[:, None] + width * ~object_ignored[near]  # (near, A, W)
        candidate = free[near] & (iou[near, None, None] >= thresholds[:, None])  # (near, A, T, W)
        preference = preference[:, :, None] * candidate
        chosen = preference.argmax(axis=3)
        found, size, threshold = np.nonzero(candidate.any(axis=3))
        taken = chosen[found, size, threshold]
        group = near[found]
        row = first[group] + rank
        free[group, size, threshold, taken] = crowd[group, taken]
        matched[row, size, threshold] = True
        ignored[row, size, threshold] = object_ignored[group, size, taken]


def _iou(box: np.ndarray, objects: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Intersection over union of XYWH boxes (..., 4); for a crowd, the fraction of ``box`` that is inside.

    Operations and their order are those of pycocotools, so that overlaps exactly at a threshold are equal.
    """
    corner, object_corner = box[..., :2], objects[..., :2]
    sides = np.minimum(corner + box[..., 2:], object_corner + objects[..., 2:]) - np.maximum(corner, object_corner)
    intersection = sides[..., 0] * sides[..., 1]
    area = box[..., 2] * box[..., 3]
    union = np.where(crowd, area, area + objects[..., 2] * objects[..., 3] - intersection)
    overlaps = (sides > 0).all(axis=-1)
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=overlaps)
