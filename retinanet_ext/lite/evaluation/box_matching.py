"""COCO's matching of predicted boxes with objects and its precision and recall, for all images at once.

The protocol is that of pycocotools' ``COCOeval``, which is the reference: the same numbers, bit for bit. It goes over
images, classes, sizes, thresholds and predictions one by one. Here the loop is over the rank of a prediction only: the
best prediction of every image and class takes its object, at all sizes and thresholds, then every second best, and so
on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# Groups are matched in blocks, of at most so many pairs of a group and an object: 40 bytes a pair are kept, and some
# times more are used in passing.
BLOCK_PAIRS = 2**16


@dataclass
class Objects:
    """The ground truth, N objects in columns.

    Attributes:
        image: (N,) int64, 0 to I-1 in the order that decides between predictions of equal score.
        label: (N,) int64, 0 to K-1.
        box: (N, 4) float64, XYWH in pixels.
        area: (N,) float64, in square pixels; may be that of a mask.
        crowd: (N,) bool: regions of many objects, which predictions may hit any number of times without effect.
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
    """Runs of rows that share a key: ``keys`` ascending, and for each its first row and how many there are."""

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
        objects, predicted: what to compare, of the same images.
        num_classes: K.
        iou_thresholds: (T,), ascending, below 1.
        recall_points: (R,), ascending: where precision is given.
        area_ranges: A pairs (smallest, largest) in square pixels, both inclusive: objects and unmatched predictions
            outside do not count.
        max_dets: D numbers, ascending: so many predictions of an image and class count.

    Returns:
        Precision (T, R, K, A) at the last of ``max_dets``, and recall (T, K, A, D); -1 where there is no object.
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
    """The largest precision at, or beyond, each recall; 0 where that is not reached.

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
    position = np.searchsorted(number / count, recall_points)
    return np.append(largest, 0.0)[position]


def _count_objects(objects: Objects, num_classes: int, ranges: np.ndarray) -> np.ndarray:
    """(K, A): how many objects of a class are to be found in each range of areas."""
    counted = ~_ignored(objects, ranges)
    return np.stack([np.bincount(objects.label[column], minlength=num_classes) for column in counted.T], axis=1)


def _ignored(objects: Objects, ranges: np.ndarray) -> np.ndarray:
    """(N, A): objects that need not be found."""
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
    """For every prediction, range of areas and threshold: (N, A, T) bool, whether it has an object, and whether it is
    to be left out. ``predicted`` lies in ``groups``, best score first."""
    matched = np.zeros((len(predicted.score), len(ranges), len(thresholds)), dtype=bool)
    outside = _outside(predicted.box[:, 2] * predicted.box[:, 3], ranges)
    ignored = np.repeat(outside[:, :, None], len(thresholds), axis=2)

    object_keys = objects.label * num_images + objects.image
    order = np.argsort(object_keys, kind="stable")
    object_groups = _Groups.of(object_keys[order])
    object_ignored = _ignored(objects, ranges)
    _, ours, theirs = np.intersect1d(groups.keys, object_groups.keys, assume_unique=True, return_indices=True)
    first, count = object_groups.first[theirs], object_groups.count[theirs]
    for block, width in _blocks(groups.count[ours], count):
        column = np.arange(width)
        real = column < count[block, None]
        rows = order[np.where(real, first[block, None] + column, 0)]
        _match_block(
            predicted.box,
            groups.first[ours[block]],
            groups.count[ours[block]],
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
    """Indices of groups to match together, those with most predictions first, and how many objects one may have.

    Groups of 1, 2, 3 to 4, 5 to 8 ... objects are kept apart, since a block is padded to the largest one.
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

    A prediction takes, of the objects that are free and overlap enough, the one of largest overlap, the last one of
    several; objects that are to be ignored only where there is no other.

    Args:
        boxes: (N, 4), all predictions.
        first, count: (G,), rows of each group's predictions; ``count`` descends.
        object_boxes, crowd, real: (G, W, 4), (G, W), (G, W): objects, and whether they are more than padding.
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
        # By integers, which do not round: larger overlap is better, a later object, one that is not ignored.
        place = np.argsort(np.argsort(iou[near], axis=1, kind="stable"), axis=1).astype(np.int32)
        preference = 1 + place[:, None] + width * ~object_ignored[near]  # (near, A, W)
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
    """Intersection over union of XYWH boxes (..., 4); of a crowd, the share of ``box`` that is inside.

    The operations, and their order, are those of pycocotools: what is exactly at a threshold there must be so here.
    """
    corner, object_corner = box[..., :2], objects[..., :2]
    sides = np.minimum(corner + box[..., 2:], object_corner + objects[..., 2:]) - np.maximum(corner, object_corner)
    intersection = sides[..., 0] * sides[..., 1]
    area = box[..., 2] * box[..., 3]
    union = np.where(crowd, area, area + objects[..., 2] * objects[..., 3] - intersection)
    overlaps = (sides > 0).all(axis=-1)
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=overlaps)
