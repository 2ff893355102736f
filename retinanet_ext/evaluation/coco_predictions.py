"""Predictions of a model as arrays and run lengths, and in COCO's result format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from retinanet_ext.ops.coco_rle import encode_mask, rle_for_json
from retinanet_ext.ops.encoded_masks import EncodedMasks


@dataclass
class ImagePredictions:
    """The N detections of one image, in main memory; it does not grow with the image.

    Attributes:
        boxes: (N, 4) float32, XYWH in pixels.
        scores: (N,) float32.
        classes: (N,) int64.
        rles: N masks as COCO's compressed RLE `{"size": [height, width], "counts": bytes}`; None without masks.
        keypoints: (N, J, 3) float32, x, y, score, where COCO counts: the centre of the first pixel is (0, 0).
            None without keypoints.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    rles: list[dict[str, Any]] | None = None
    keypoints: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def of(cls, instances: Any) -> ImagePredictions:
        """Converts an engine's `Instances`, on any device.

        Args:
            instances: has `pred_boxes` (XYXY, pixels), `scores` (N,) and `pred_classes` (N,); optionally
                `pred_masks`, bool (N, H, W) or `EncodedMasks`, and `pred_keypoints` (N, J, 3), x, y, score, with the
                centre of the first pixel at (0.5, 0.5).
        """
        boxes = instances.pred_boxes.tensor.cpu().numpy().copy()
        boxes[:, 2:] -= boxes[:, :2]
        found = cls(boxes, instances.scores.cpu().numpy(), instances.pred_classes.cpu().numpy())
        if instances.has("pred_masks"):
            masks = instances.pred_masks
            found.rles = masks.rles if isinstance(masks, EncodedMasks) else [encode_mask(mask) for mask in masks]
        if instances.has("pred_keypoints"):
            found.keypoints = instances.pred_keypoints.cpu().numpy().copy()
            found.keypoints[:, :, :2] -= 0.5
        return found

    def to_coco(self, image_id: int | str, category_ids: Mapping[int, int]) -> list[dict[str, Any]]:
        """N dicts with `image_id`, `category_id`, `bbox` ([x, y, width, height] in pixels), `score`; with masks
        `segmentation`, an RLE as text, and with keypoints `keypoints`, [x, y, score, x, y, score, ...].

        `category_ids` maps classes to category ids.
        """
        categories = [category_ids[class_id] for class_id in self.classes.tolist()]
        results = [
            {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
            for category_id, box, score in zip(categories, self.boxes.tolist(), self.scores.tolist(), strict=True)
        ]
        for result, rle in zip(results, self.rles or []):
            result["segmentation"] = rle_for_json(rle)
        if self.keypoints is not None and results:
            for result, keypoints in zip(results, self.keypoints.reshape(len(self), -1).tolist()):
                result["keypoints"] = keypoints
        return results


def write_coco_results(path: str, predictions: Mapping[Any, ImagePredictions], category_ids: Mapping[int, int]) -> None:
    """Writes predictions by image id in COCO's result format, with the text of one image at a time in memory."""
    with open(path, "w") as f:
        f.write("[")
        separator = ""
        for image_id, found in predictions.items():
            if len(found):
                # `json.dumps` runs in C, `json.dump` does not.
                f.write(separator + json.dumps(found.to_coco(image_id, category_ids))[1:-1])
                separator = ", "
        f.write("]")
