"""Confidence intervals of COCO's metrics, by drawing images with replacement (Efron's bootstrap, percentile method)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .average_precision import average_precision, summarize
from .image_matches import Matches

SAMPLES, CONFIDENCE = 1000, 0.95
# Below this product of predictions and resamples, intervals take up to about ten seconds.
_CHEAP = 100_000_000


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval, in the unit of the metric.

    Args:
        value: of the dataset itself; NaN where undefined.
        low, high: NaN if no resample has a value.
        samples: number of resamples that have one; an image set without objects of a class has none of its AP.
    """

    value: float
    low: float
    high: float
    samples: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def draw_weights(num_images: int, samples: int, seed: int) -> np.ndarray:
    """How often each image is in each resample: int64 ``(samples, I)``; each row adds up to I."""
    if samples < 1:
        raise ValueError(f"{samples} resamples; legal: 1 or more")
    return np.random.default_rng(seed).multinomial(num_images, np.full(num_images, 1 / num_images), size=samples)


def bootstrap(
    matches: Matches, samples: int = SAMPLES, seed: int = 0, confidence: float = CONFIDENCE
) -> dict[str, Interval]:
    """Intervals of the metrics of :func:`summarize`, which are in 0 to 100.

    Args:
        matches: at COCO's ten thresholds.
        samples: number of resamples.
        seed: of the draw; the same seed and images give the same intervals.
        confidence: of each interval, above 0 and below 1.
    """
    of_all = summarize(average_precision(matches), matches.area_ranges, matches.class_names)
    weights = draw_weights(len(matches.image_ids), samples, seed)
    resampled = summarize(average_precision(matches, weights), matches.area_ranges, matches.class_names)
    return {name: percentile_interval(of_all[name], resampled[name], confidence) for name in of_all}


def percentile_interval(value: float, resampled: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """The middle share `confidence` of the resamples ``(samples,)`` that are not NaN."""
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence of {confidence}; legal: above 0, below 1")
    defined = resampled[~np.isnan(resampled)]
    if not len(defined):
        return Interval(float(value), float("nan"), float("nan"), 0)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(value), float(low), float(high), len(defined))


def is_cheap(matches: Matches, samples: int = SAMPLES) -> bool:
    """Whether :func:`bootstrap` takes seconds, not minutes."""
    return samples * sum(len(one.scores) + len(one.object_images) for one in matches.classes) < _CHEAP
