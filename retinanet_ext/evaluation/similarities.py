"""Overlaps of chosen predictions of an image with objects of any class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .coco_columns import object_annotations
from .evaluated_dataset import EvaluatedDataset
from .image_matches import Matches
from .overlaps import overlaps


def image_similarities(
    data: EvaluatedDataset, matches: Matches, image_id: Any, indices: Sequence[int], annotations: Sequence[int]
) -> np.ndarray:
    """IoU (OKS for keypoints), float64 ``(D, G)``, 0 to 1.

    Args:
        data: ground truth and predictions.
        matches: of `data`.
        image_id: of the image.
        indices: of D of its predictions.
        annotations: indices of G of the annotations of the COCO file, all of this image.
    """
    if not len(indices) or not len(annotations):
        return np.zeros((len(indices), len(annotations)))
    rows = list(indices)
    one = data.predictions[image_id]
    found: dict[str, Any] = {"boxes": np.asarray(one.boxes, np.float64)[rows]}
    if matches.task == "segm":
        found["rles"] = [one.rles[row] for row in rows]
    if matches.task == "keypoints":
        found["keypoints"] = np.asarray(one.keypoints)[rows]
    everything = data.truth.coco["annotations"]
    part = {"images": [data.image_record(image_id)], "annotations": [everything[number] for number in annotations]}
    objects = object_annotations(matches.task, part, {image_id: 1}, data.truth.category_ids)
    return overlaps(matches.task, found, objects, matches.sigmas)
