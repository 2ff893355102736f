"""COCO's average precision from stored matches, for images that count any number of times."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from .coco_metrics import IOU_50, IOU_75
from .image_matches import ClassMatches, Matches

RECALLS = np.linspace(0, 1, 101)
_BATCH_NUMBERS = 4_000_000  # weights of predictions that are in memory at a time
_MAX_BATCH = 1024
_EPSILON = np.spacing(1)  # pycocotools adds it to each divisor


def average_precision(matches: Matches, weights: np.ndarray | None = None) -> np.ndarray:
    """AP of each IoU threshold, class and area range, 0 to 1; NaN where no object is to be found.

    An image with weight 2 counts as two copies of it. Among equal scores of several images, copies follow each other.

    Args:
        matches: of I images, with T thresholds, K classes, A ranges.
        weights: how often each image counts, int, not negative, ``(I,)`` or ``(B, I)``; None: once.

    Returns:
        ``(T, K, A)``, or ``(B, T, K, A)``.
    """
    rows = np.ones((1, len(matches.image_ids)), np.int64) if weights is None else np.atleast_2d(weights)
    shape = (len(rows), len(matches.iou_thresholds), len(matches.classes), len(matches.area_ranges))
    values = np.full(shape, np.nan)
    for k, one in enumerate(matches.classes):
        batch = int(np.clip(_BATCH_NUMBERS // max(1, len(one.scores)), 1, _MAX_BATCH))
        for start in range(0, len(rows), batch):
            part = slice(start, start + batch)
            values[part, :, k] = _of_class(one, rows[part])
    return values if weights is not None and np.ndim(weights) == 2 else values[0]


def interpolated_precision(matches: Matches, iou_index: int = 0) -> np.ndarray:
    """COCO's precision at the recalls 0, 0.01 ... 1, ``(K, 101)``, 0 to 1; NaN for classes without objects."""
    curves = np.full((len(matches.classes), len(RECALLS)), np.nan)
    for k, one in enumerate(matches.classes):
        total = one.counted[0].sum()
        if total:
            hits, best = next(_at_hits(one, 0, np.ones((1, len(one.scores)), np.int64), [iou_index]))
            curves[k] = np.append(best[0], 0.0)[np.searchsorted(hits[0] / total, RECALLS)]
    return curves


def summarize(values: np.ndarray, area_ranges: Sequence[str], class_names: Sequence[str]) -> dict[str, np.ndarray]:
    """COCO's metrics from the AP of all ten thresholds.

    Args:
        values: ``(..., T, K, A)``, 0 to 1.
        area_ranges: names of the A ranges.
        class_names: of the K classes.

    Returns:
        AP, AP50, AP75, then AP and the letter of each size, then `AP-<class>` if there are several classes: ``(...)``,
        0 to 100, NaN where undefined.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Mean of empty slice")
        every = values[..., 0]
        found = {"AP": np.nanmean(every, axis=(-1, -2))}
        for name, index in (("AP50", IOU_50), ("AP75", IOU_75)):
            found[name] = np.nanmean(every[..., index, :], axis=-1)
        for index, size in enumerate(area_ranges[1:], start=1):
            found[f"AP{size}"] = np.nanmean(values[..., index], axis=(-1, -2))
        if len(class_names) > 1:
            found |= {f"AP-{name}": every[..., k].mean(axis=-1) for k, name in enumerate(class_names)}
    return {name: 100 * value for name, value in found.items()}


def _of_class(one: ClassMatches, weights: np.ndarray) -> np.ndarray:
    """(B, T, A) AP of one class."""
    num_thresholds = one.hits.shape[1]
    values = np.full((len(weights), num_thresholds, len(one.counted)), np.nan)
    of_predictions = None
    for a, counted in enumerate(one.counted):
        totals = weights[:, one.object_images[counted]].sum(axis=1, dtype=np.int64)
        if not totals.any():
            continue
        if of_predictions is None:
            of_predictions = weights[:, one.images].astype(np.int64)
        divisors = np.maximum(totals, 1)[:, None]
        for t, (hits, best) in enumerate(_at_hits(one, a, of_predictions, range(num_thresholds))):
            # Each of COCO's recalls belongs to the first hit that reaches it.
            reached = np.searchsorted(RECALLS, hits / divisors, side="right")
            area = (best * np.diff(reached, axis=1, prepend=0)).sum(axis=1)
            values[:, t, a] = np.where(totals > 0, area / len(RECALLS), np.nan)
    return values


def _at_hits(
    one: ClassMatches, a: int, weights: np.ndarray, thresholds: Sequence[int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each threshold: the number of hits so far, and the best precision from here on, (B, H) at each of H hits.

    Only hits raise the recall, so the rest is computed at hits only. What counts at the last threshold is counted once;
    the other thresholds differ from it at few places.

    Args:
        weights: (B, D) int64.
    """
    base = ~one.ignored[a, -1]
    counts = np.cumsum(weights * base, axis=1)
    for t in thresholds:
        hits = np.flatnonzero(one.hits[a, t])
        hits_so_far = np.cumsum(weights[:, hits], axis=1)
        total = counts[:, hits]
        changed = np.flatnonzero(one.ignored[a, t] == base)
        if len(changed):
            signs = np.where(base[changed], -1, 1)
            changes = np.cumsum(weights[:, changed] * signs, axis=1)
            changes = np.concatenate([np.zeros((len(weights), 1), np.int64), changes], axis=1)
            total = total + changes[:, np.searchsorted(changed, hits, side="right")]
        precision = hits_so_far / (total + _EPSILON)
        yield hits_so_far, np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
