"""One dataset with its ground truth and the predictions for it."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .coco_columns import number_images
from .coco_predictions import ImagePredictions
from .ground_truth import GroundTruth
from .protocol import Protocol


@dataclass(frozen=True)
class EvaluatedDataset:
    """What all statistics of an evaluation start from.

    Args:
        name: of the dataset.
        truth: the ground truth.
        predictions: by image id; images without any are left out.
        protocol: what was evaluated, and how.
        image_ids: the I evaluated images, in the order that decides between equal scores.
    """

    name: str
    truth: GroundTruth
    predictions: Mapping[Any, ImagePredictions]
    protocol: Protocol
    image_ids: list = field(repr=False)

    @classmethod
    def of(
        cls,
        truth: GroundTruth,
        predictions: Mapping[Any, ImagePredictions],
        protocol: Protocol,
        image_ids: Sequence | None = None,
    ) -> EvaluatedDataset:
        """`image_ids`: the evaluated images; None: all of the ground truth."""
        ordered = list(number_images(truth.coco, image_ids))
        return cls(truth.name or truth.source, truth, predictions, protocol, ordered)

    @property
    def tasks(self) -> list[str]:
        return list(self.protocol.tasks)

    @property
    def class_names(self) -> list[str]:
        """Of the K classes, in the order of class ids."""
        return list(self.truth.class_names.values())

    def image_record(self, image_id: Any) -> dict:
        """The image as in the COCO file."""
        return self._images[image_id]

    def image_path(self, image_id: Any) -> str:
        """File of the picture; nothing says that it still exists."""
        return os.path.join(self.truth.image_root, self._images[image_id].get("file_name", ""))

    def objects(self, image_id: Any) -> list[dict]:
        """The annotations of an image as in the COCO file: `bbox` is XYWH in pixels; crowds are among them."""
        return self._objects.get(image_id, [])

    @cached_property
    def _images(self):
        return {image["id"]: image for image in self.truth.coco["images"]}

    @cached_property
    def _objects(self):
        by_image = defaultdict(list)
        for annotation in self.truth.coco.get("annotations", []):
            by_image[annotation["image_id"]].append(annotation)
        return dict(by_image)
