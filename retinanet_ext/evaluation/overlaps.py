"""How well predictions and objects of one image overlap: IoU of boxes and masks, OKS of keypoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_api


def overlaps(task: str, found: dict[str, Any], objects: Sequence[dict], sigmas: np.ndarray | None) -> np.ndarray:
    """Overlap of D predictions with G objects of one image, float64 ``(D, G)``, 0 to 1.

    As in COCO, the union with a crowd is the prediction alone, for boxes and masks.

    Args:
        task: `bbox`, `segm` or `keypoints`.
        found: `boxes` ``(D, 4)`` XYWH in pixels, and for their tasks `rles` (D masks) or `keypoints` ``(D, J, 3)``.
        objects: as :func:`object_annotations` returns them.
        sigmas: ``(J,)``, for keypoints.
    """
    if not len(objects) or not len(found["boxes"]):
        return np.zeros((len(found["boxes"]), len(objects)))
    if task == "keypoints":
        return keypoint_similarity(found["keypoints"], objects, sigmas)
    crowds = [int(a["iscrowd"]) for a in objects]
    if task == "segm":
        return np.asarray(mask_api.iou(list(found["rles"]), [a["segmentation"] for a in objects], crowds))
    boxes = np.array([a["bbox"] for a in objects], np.float64)
    return np.asarray(mask_api.iou(np.ascontiguousarray(found["boxes"], np.float64), boxes, crowds))


def keypoint_similarity(keypoints: np.ndarray, objects: Sequence[dict], sigmas: np.ndarray) -> np.ndarray:
    """COCO's object keypoint similarity (OKS), float64 ``(D, G)``.

    exp(-d^2 / (2 area (2 sigma)^2)), averaged over the labelled keypoints; d is in pixels. For an object without any
    labelled keypoint, d is the distance to its box, enlarged to three times its size, averaged over all keypoints.

    Args:
        keypoints: ``(D, J, 3)``: x, y, score.
        objects: have `keypoints` (3 J numbers), `bbox` XYWH and `area`.
        sigmas: ``(J,)``.
    """
    found = np.asarray(keypoints, np.float64)[:, :, :2]
    columns = []
    for annotation in objects:
        points = np.array(annotation["keypoints"] or [0] * (3 * len(sigmas)), np.float64).reshape(-1, 3)
        labelled = points[:, 2] > 0
        if labelled.any():
            distance = found - points[:, :2]
        else:
            corner, size = np.split(np.array(annotation["bbox"], np.float64), 2)
            outside = np.maximum(corner - size - found, 0), np.maximum(found - corner - 2 * size, 0)
            distance, labelled = outside[0] + outside[1], np.ones(len(points), bool)
        variances = (2 * sigmas) ** 2 * (annotation["area"] + np.spacing(1)) * 2
        columns.append(np.exp(-np.square(distance).sum(axis=2) / variances)[:, labelled].mean(axis=1))
    return np.stack(columns, axis=1)
