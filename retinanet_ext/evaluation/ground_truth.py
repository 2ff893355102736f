"""The ground truth that predictions are compared with."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
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
        image_root: folder that the file names of the images are relative to.
        file: a COCO file with exactly this content; None if there may be none.
        name: of the dataset; empty if it has none.
    """

    coco: dict[str, Any]
    source: str
    category_ids: dict[int, int]
    class_names: dict[int, str]
    converted: bool = False
    image_root: str = ""
    file: str | None = None
    name: str = ""

    @classmethod
    def of(
        cls,
        coco: dict[str, Any],
        source: str,
        class_of_category: Mapping[int, int] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> GroundTruth:
        """The content of a COCO file with the ids and names of a dataset's metadata.

        Args:
            class_of_category: category id -> class id; None: they are equal.
            class_names: the name of each class id; None: those of the file's categories.
        """
        names = {category["id"]: category["name"] for category in coco["categories"]}
        category_ids = ascending_inverse(class_of_category or {i: i for i in names})
        by_class = {
            class_id: class_names[class_id] if class_names else names.get(category_id, "?")
            for class_id, category_id in category_ids.items()
        }
        return cls(coco, source, category_ids, by_class)

    def supports(self, task: str) -> bool:
        """Whether `task` can be evaluated: some annotation has its field, or the ground truth has no annotation."""
        annotations = self.coco.get("annotations")
        return not annotations or any(a.get(FIELDS[task]) for a in annotations)

    def wrong_values(self) -> list[str]:
        """What an evaluation could not work with: boxes, areas and crowd flags of a wrong type, by annotation."""
        found = []
        for annotation in self.coco.get("annotations", ()):
            box, area, crowd = annotation.get("bbox"), annotation.get("area"), annotation.get("iscrowd", 0)
            where = f"annotation {annotation.get('id')} of image {annotation.get('image_id')}"
            # An annotation without a box has its own message, where boxes are needed.
            if box and not (isinstance(box, (list, tuple)) and len(box) == 4 and all(map(_is_number, box))):
                found.append(f"{where}: bbox {box!r:.80}; legal: [x, y, width, height], finite numbers")
            if area is not None and not _is_number(area):
                found.append(f"{where}: area {area!r:.80}; legal: a number, or no area: then that of the box")
            if crowd not in (0, 1):
                found.append(f"{where}: iscrowd {crowd!r:.80}; legal: 0 or 1, as numbers")
        return found


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def ascending_inverse(class_of_category: Mapping[int, int]) -> dict[int, int]:
    """Class id -> category id, in the order of the class ids."""
    return dict(sorted((class_id, category_id) for category_id, class_id in class_of_category.items()))
