"""Do scores mean what they say? Reliability diagram and expected calibration error of detections."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .image_matches import Matches


@dataclass(frozen=True)
class Calibration:
    """The M bins of a reliability diagram.

    Args:
        edges: ``(M + 1,)``, of the scores, 0 to 1. A bin holds its upper edge, the first also the lower one.
        counts: int64 ``(M,)``, predictions.
        mean_scores: ``(M,)``, NaN in an empty bin.
        precisions: ``(M,)``, share of hits, NaN in an empty bin.
        ece: expected calibration error, 0 to 1; NaN without predictions.
    """

    edges: np.ndarray
    counts: np.ndarray
    mean_scores: np.ndarray
    precisions: np.ndarray
    ece: float


def calibration(matches: Matches, bins: int = 10, iou_index: int = 0, classes: list[int] | None = None) -> Calibration:
    """Compare scores with the precision in bins of equal width.

    ECE = sum over bins of |precision - mean score| n_bin / n (Naeini et al., "Obtaining Well Calibrated Probabilities
    Using Bayesian Binning", 2015; for detections with precision in place of accuracy: Küppers et al., "Multivariate
    Confidence Calibration for Object Detection", 2020). Only predictions that a run keeps are seen, so that objects
    below its score threshold do not count.

    Args:
        matches: predictions that are neither hit nor false alarm are left out.
        bins: number of bins, M.
        iou_index: index of the IoU threshold.
        classes: indices of the classes to take; None: all.

    Raises:
        ValueError: no bins.
    """
    if bins < 1:
        raise ValueError(f"{bins} bins; legal: 1 or more")
    chosen = matches.classes if classes is None else [matches.classes[k] for k in classes]
    kept = [~one.ignored[0, iou_index] for one in chosen]
    scores = np.concatenate([np.zeros(0), *(one.scores[keep] for one, keep in zip(chosen, kept))])
    hits = np.concatenate([np.zeros(0), *(one.hits[0, iou_index][keep] for one, keep in zip(chosen, kept))])
    edges = np.linspace(0, 1, bins + 1)
    numbers = np.clip(np.searchsorted(edges, scores, side="left") - 1, 0, bins - 1)
    counts = np.bincount(numbers, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_scores = np.bincount(numbers, scores, minlength=bins) / counts
        precisions = np.bincount(numbers, hits, minlength=bins) / counts
    gaps = np.abs(np.nan_to_num(precisions) - np.nan_to_num(mean_scores))
    ece = float((gaps * counts).sum() / counts.sum()) if counts.sum() else float("nan")
    return Calibration(edges, counts, mean_scores, precisions, ece)
