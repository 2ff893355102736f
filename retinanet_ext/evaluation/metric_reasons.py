"""Why a metric is undefined (NaN; -1 in COCO's own tables)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from retinanet_ext.ops.coco_keypoints import num_labelled

from .coco_metrics import SIZES
from .coco_predictions import ImagePredictions
from .ground_truth import GroundTruth

# COCO's size classes: area from and to, in square pixels. An area at a border belongs to both.
_AREAS = {"s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}
_SHOWN = 5


def metric_reasons(
    task: str,
    metrics: Mapping[str, float],
    truth: GroundTruth,
    predictions: Mapping[Any, ImagePredictions],
    image_ids: Sequence | None = None,
) -> dict[str, str]:
    """The reason of each metric that is NaN, as a sentence without a full stop.

    Args:
        task: `bbox`, `segm` or `keypoints`.
        metrics: AP, AP50, AP75, APs, APm, APl, `AP-<class>`.
        truth: has annotations.
        predictions: by image id.
        image_ids: of the evaluated images; None: all of the ground truth.
    """
    undefined = [name for name, value in metrics.items() if math.isnan(value)]
    if not undefined:
        return {}
    chain = _Chain(task, truth, image_ids)
    overall, objects = chain.reason(truth.coco["annotations"], "object")
    nothing = ""
    if not any(len(found) for found in predictions.values()):
        nothing = (
            f"nothing was predicted in {chain.num_images} images: no detection has a score above the threshold of the "
            "model (such as MODEL.RETINANET.SCORE_THRESH_TEST)"
        )
    by_category = defaultdict(list)
    for annotation in truth.coco["annotations"]:
        by_category[annotation["category_id"]].append(annotation)
    class_ids = {name: class_id for class_id, name in truth.class_names.items()}
    reasons = {}
    for name in undefined:
        reason = overall or nothing
        if not reason and name.startswith("AP-"):
            of_class = by_category[truth.category_ids[class_ids[name.removeprefix("AP-")]]]
            reason, _ = chain.reason(of_class, f"object of the class {name.removeprefix('AP-')!r}")
        elif not reason and name.removeprefix("AP") in _AREAS:
            reason = _no_size(name.removeprefix("AP"), objects)
        reasons[name] = reason or "no reason was found"
    return reasons


def _no_size(size: str, objects: list[dict]) -> str:
    low, high = _AREAS[size]
    areas = [_area(annotation) for annotation in objects]
    if any(low <= area <= high for area in areas):
        return ""
    return (
        f"no object is {SIZES[size]}: the areas of the {len(areas)} objects to be found are {min(areas):,.0f} to "
        f"{max(areas):,.0f} square pixels"
    )


def _area(annotation):
    area = annotation.get("area")
    return float(annotation["bbox"][2] * annotation["bbox"][3] if area is None else area)


class _Chain:
    """The conditions that an object must meet to be looked for, in the order in which they are explained."""

    def __init__(self, task: str, truth: GroundTruth, image_ids: Collection | None):
        self._task, self._truth = task, truth
        known = {image["id"] for image in truth.coco["images"]}
        self._images = known if image_ids is None else known & set(image_ids)
        self._known = known
        self.num_images = len(self._images)

    def reason(self, annotations: Sequence[dict], what: str) -> tuple[str, list[dict]]:
        """Why none of the annotations is looked for, empty if one is, and those that are."""
        if not annotations:
            return f"the ground truth has no {what} ({self.num_images} images are evaluated)", []
        for keep, text in self._conditions(what):
            kept = [a for a in annotations if keep(a)]
            if not kept:
                return text(annotations), []
            annotations = kept
        return "", list(annotations)

    def _conditions(self, what):
        legal = set(self._truth.category_ids.values())
        yield (
            lambda a: a["image_id"] in self._known,
            lambda rest: f"image ids differ: the {len(rest)} annotations have image ids like "
            f"{_some(rest, 'image_id')}, the images of the file ids like {sorted(self._known, key=str)[:_SHOWN]}",
        )
        yield (
            lambda a: a["image_id"] in self._images,
            lambda rest: f"no {what} in the {self.num_images} evaluated images; {len(rest)} are in other images",
        )
        yield (
            lambda a: a["category_id"] in legal,
            lambda rest: f"ids do not map: the {len(rest)} annotations have the category ids "
            f"{_some(rest, 'category_id')}, and the classes of the dataset {sorted(legal)[:_SHOWN]}",
        )
        yield (
            lambda a: not a.get("iscrowd"),
            lambda rest: f"no single {what}: all {len(rest)} are crowds (iscrowd 1), which need not be found",
        )
        if self._task == "keypoints":
            yield (
                lambda a: num_labelled(a.get("keypoints") or []) > 0,
                lambda rest: f"keypoints are missing: of {len(rest)} annotations none has a labelled keypoint "
                "(visibility above 0)",
            )


def _some(annotations, key):
    return sorted({a[key] for a in annotations}, key=str)[:_SHOWN]
