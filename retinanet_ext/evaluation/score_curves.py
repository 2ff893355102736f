"""Precision, recall and F1 of a class as functions of the score threshold, at one IoU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .image_matches import ClassMatches, Matches


@dataclass(frozen=True)
class ScoreCurve:
    """What is right and wrong among the predictions with a score of at least each threshold.

    Args:
        scores: ``(S,)``, the distinct scores, descending. Predictions that are neither right nor wrong are left out.
        tp: int64 ``(S,)``, hits.
        fp: int64 ``(S,)``, false alarms.
        num_objects: to be found.
    """

    scores: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    num_objects: int

    @property
    def precision(self) -> np.ndarray:
        """``(S,)``, 0 to 1."""
        return self.tp / np.maximum(self.tp + self.fp, 1)

    @property
    def recall(self) -> np.ndarray:
        """``(S,)``, 0 to 1; NaN without objects."""
        return self.tp / self.num_objects if self.num_objects else np.full(len(self.scores), np.nan)

    @property
    def f1(self) -> np.ndarray:
        """``(S,)``, 0 to 1: harmonic mean of precision and recall, 2 tp / (tp + fp + objects); NaN without objects."""
        if not self.num_objects:
            return np.full(len(self.scores), np.nan)
        return 2 * self.tp / (self.tp + self.fp + self.num_objects)


def score_curve(one: ClassMatches, iou_index: int = 0) -> ScoreCurve:
    """The curve of one class, objects of all sizes; `iou_index` is an index of the IoU thresholds."""
    counts = ~one.ignored[0, iou_index]
    scores, hits = one.scores[counts], one.hits[0, iou_index][counts]
    tp = np.cumsum(hits, dtype=np.int64)
    fp = np.arange(1, len(scores) + 1) - tp
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else np.zeros(0, np.int64)
    return ScoreCurve(scores[last], tp[last], fp[last], int(one.counted[0].sum()))


def score_curves(matches: Matches, iou_index: int = 0) -> list[ScoreCurve]:
    """The curves of the K classes."""
    return [score_curve(one, iou_index) for one in matches.classes]
