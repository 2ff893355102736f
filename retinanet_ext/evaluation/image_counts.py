"""Hits, false alarms and missed objects of each image, at a score threshold for each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .image_matches import Matches


@dataclass(frozen=True)
class ImageCounts:
    """Of I images, in the order of ``Matches.image_ids``; int64 ``(I,)`` each.

    Args:
        tp: hits.
        fp: false alarms.
        fn: missed objects.
    """

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray

    @property
    def f1(self) -> np.ndarray:
        """``(I,)``, 0 to 1: 2 tp / (2 tp + fp + fn); 1 where nothing is to be found and nothing was."""
        total = 2 * self.tp + self.fp + self.fn
        return np.where(total > 0, 2 * self.tp / np.maximum(total, 1), 1.0)

    @property
    def errors(self) -> np.ndarray:
        """int64 ``(I,)``: false alarms and missed objects."""
        return self.fp + self.fn


def image_counts(matches: Matches, thresholds: Sequence[float], iou_index: int = 0) -> ImageCounts:
    """Counts with the `thresholds` of the K classes: predictions with at least that score count."""
    num_images = len(matches.image_ids)
    tp, fp, objects = (np.zeros(num_images, np.int64) for _ in range(3))
    for one, threshold in zip(matches.classes, thresholds, strict=True):
        shown = one.scores >= threshold
        hits, ignored = one.hits[0, iou_index], one.ignored[0, iou_index]
        tp += np.bincount(one.images[shown & hits], minlength=num_images)
        fp += np.bincount(one.images[shown & ~hits & ~ignored], minlength=num_images)
        objects += np.bincount(one.object_images[one.counted[0]], minlength=num_images)
    return ImageCounts(tp, fp, objects - tp)


def worst_images(counts: ImageCounts, number: int) -> list[int]:
    """Indices of up to `number` images with errors, the lowest F1 first; of equal F1 the one with more errors."""
    order = np.lexsort((-counts.errors, counts.f1))
    return [int(index) for index in order[:number] if counts.errors[index]]
