"""Predictions of a model as arrays, and in COCO's result format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..structures import BoxMode, Instances


@dataclass
class ImagePredictions:
    """The N detections of one image, in main memory.

    Attributes:
        boxes: (N, 4) float32, XYWH in pixels.
        scores: (N,) float32.
        classes: (N,) int64.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def of(cls, instances: Instances) -> ImagePredictions:
        """Converts `Instances` with `pred_boxes` (XYXY, pixels), `scores` and `pred_classes`, on any device."""
        boxes = BoxMode.convert(instances.pred_boxes.tensor.cpu(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        return cls(boxes.numpy(), instances.scores.cpu().numpy(), instances.pred_classes.cpu().numpy())

    def to_coco(self, image_id: int | str, category_ids: Mapping[int, int]) -> list[dict[str, Any]]:
        """N dicts with `image_id`, `category_id`, `bbox` ([x, y, width, height] in pixels), `score`.

        `category_ids` maps classes to category ids.
        """
        categories = [category_ids[class_id] for class_id in self.classes.tolist()]
        return [
            {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
            for category_id, box, score in zip(categories, self.boxes.tolist(), self.scores.tolist(), strict=True)
        ]


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
