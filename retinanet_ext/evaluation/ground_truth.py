"""The ground truth that predictions are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# What an annotation must have to be evaluated, by task.
FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}


@dataclass
class GroundTruth:
    """The ground truth that predictions are compared with.

    Attributes:
        coco: `images`, `categories`, `annotations` as in a COCO file; without the key `annotations` if the
            dataset has none (a test set with secret labels).
        source: file or dataset name, for messages.
        category_ids: class id that a model predicts -> category id of the dataset; class ids ascend.
        class_names: class id -> name; class ids ascend.
        converted: the dataset has no COCO file; `coco` was made from its dicts.
    """

    coco: dict[str, Any]
    source: str
    category_ids: dict[int, int]
    class_names: dict[int, str]
    converted: bool = False

    def supports(self, task: str) -> bool:
        """Whether `task` can be evaluated: some annotation has its field, or the ground truth has no annotation."""
        annotations = self.coco.get("annotations")
        return not annotations or any(a.get(FIELDS[task]) for a in annotations)
