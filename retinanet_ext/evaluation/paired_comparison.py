"""Two sets of predictions for the same images: differences with their intervals, and the images that changed most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .average_precision import average_precision, summarize
from .bootstrap import CONFIDENCE, SAMPLES, Interval, draw_weights, percentile_interval
from .evaluated_dataset import EvaluatedDataset
from .image_counts import ImageCounts, image_counts
from .image_matches import Matches, match_dataset
from .operating_thresholds import find_thresholds

DEFAULT_THRESHOLD = 0.5  # of classes without an operating threshold
_SHOWN = 5
_FIELDS = ("category_id", "bbox", "area", "iscrowd", "segmentation", "keypoints")


@dataclass(frozen=True)
class Difference:
    """A metric of both, in 0 to 100.

    Args:
        first, second: NaN where undefined.
        change: second - first, with its paired interval: both are resampled with the same images.
        share_better: share of the resamples in which the second is better, equal ones counted half; NaN if undefined.
    """

    first: float
    second: float
    change: Interval
    share_better: float


@dataclass(frozen=True)
class ImageChange:
    """One image. F1, 0 to 1, counts, of the first and the second at the operating threshold of each class of each."""

    image_id: Any
    f1: tuple[float, float]
    tp: tuple[int, int]
    fp: tuple[int, int]
    fn: tuple[int, int]


@dataclass(frozen=True)
class Comparison:
    """See :func:`compare`.

    Args:
        dataset: its name.
        task: `bbox`, `segm` or `keypoints`.
        num_images: number of images.
        metrics: AP, AP50, AP75, those of sizes, then `AP-<class>`.
        images: that changed most; the largest change of F1 first, and of equal ones the largest change of errors.
        num_changed: number of images with other counts.
        thresholds: operating thresholds of the K classes, of the first and the second.
    """

    dataset: str
    task: str
    num_images: int
    metrics: dict[str, Difference]
    images: list[ImageChange]
    num_changed: int
    thresholds: tuple[list[float], list[float]]


def compare(
    first: EvaluatedDataset,
    second: EvaluatedDataset,
    task: str = "bbox",
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    images: int = 10,
) -> Comparison:
    """Compare two evaluations on the same images and objects.

    Args:
        first, second: the evaluations.
        task: that both have.
        samples: number of resamples of images.
        seed: of the draw.
        confidence: of the intervals.
        images: how many changed images to list.

    Raises:
        ValueError: ground truth, classes or protocol differ; the message says where.
    """
    check_comparable(first, second)
    matches = [match_dataset(data, task) for data in (first, second)]
    weights = draw_weights(len(first.image_ids), samples, seed)
    values, resampled = ([_summary(one, drawn) for one in matches] for drawn in (None, weights))
    metrics = {
        name: _difference(*(float(of[name]) for of in values), *(of[name] for of in resampled), confidence)
        for name in values[0]
    }
    thresholds = tuple(find_thresholds(one).vector(DEFAULT_THRESHOLD) for one in matches)
    counts = [image_counts(one, of_classes) for one, of_classes in zip(matches, thresholds)]
    order = changed_images(*counts)
    listed = [_image_change(first.image_ids[index], counts, index) for index in order[:images]]
    return Comparison(first.name, task, len(first.image_ids), metrics, listed, len(order), thresholds)


def _summary(matches: Matches, weights: np.ndarray | None):
    return summarize(average_precision(matches, weights), matches.area_ranges, matches.class_names)


def _difference(first, second, first_drawn, second_drawn, confidence) -> Difference:
    change = second_drawn - first_drawn
    defined = change[~np.isnan(change)]
    share = float(((defined > 0) + 0.5 * (defined == 0)).mean()) if len(defined) else float("nan")
    return Difference(first, second, percentile_interval(second - first, change, confidence), share)


def changed_images(first: ImageCounts, second: ImageCounts) -> list[int]:
    """Indices of the images with other counts, the largest change of F1 first, then the largest change of errors."""
    change = np.abs(second.f1 - first.f1)
    errors = np.abs(second.errors - first.errors)
    differs = (first.tp != second.tp) | (first.fp != second.fp) | (first.fn != second.fn)
    return [int(index) for index in np.lexsort((-errors, -change)) if differs[index]]


def _image_change(image_id, counts: Sequence[ImageCounts], index: int) -> ImageChange:
    columns = ([getattr(one, name)[index] for one in counts] for name in ("f1", "tp", "fp", "fn"))
    f1, tp, fp, fn = columns
    return ImageChange(image_id, tuple(map(float, f1)), *(tuple(map(int, column)) for column in (tp, fp, fn)))


def check_comparable(first: EvaluatedDataset, second: EvaluatedDataset) -> None:
    """Refuse evaluations on other images, objects or classes, or by another protocol.

    Raises:
        ValueError: names the difference.
    """
    names = [f"{data.name} ({data.truth.source})" for data in (first, second)]
    where = f"{names[0]} and {names[1]} cannot be compared"
    missing = set(first.image_ids) ^ set(second.image_ids)
    if missing:
        only = [[i for i in data.image_ids if i in missing] for data in (first, second)]
        raise ValueError(
            f"{where}: the images differ. {len(only[0])} are only in the first: {only[0][:_SHOWN]}; {len(only[1])} "
            f"only in the second: {only[1][:_SHOWN]}. Evaluate both on the same images"
        )
    classes = [list(zip(data.truth.category_ids.values(), data.class_names)) for data in (first, second)]
    if classes[0] != classes[1]:
        differing = [pair for pair in classes[0] + classes[1] if pair not in classes[0] or pair not in classes[1]]
        raise ValueError(f"{where}: the classes differ (category id, name): {differing[:_SHOWN] or 'in their order'}")
    for image_id in first.image_ids:
        objects = [sorted(map(_content, data.objects(image_id))) for data in (first, second)]
        if objects[0] != objects[1]:
            raise ValueError(
                f"{where}: the ground truth of image {image_id!r} differs ({len(objects[0])} and {len(objects[1])} "
                "objects, or another content). Evaluate both on the same annotations"
            )
    for what in ("max_dets_per_image", "kpt_oks_sigmas"):
        found = [getattr(data.protocol, what) for data in (first, second)]
        if list(np.atleast_1d(found[0])) != list(np.atleast_1d(found[1])):
            raise ValueError(f"{where}: {what} is {found[0]} in the first and {found[1]} in the second; evaluate again")


def _content(annotation: dict) -> str:
    return repr([annotation.get(key) for key in _FIELDS])
