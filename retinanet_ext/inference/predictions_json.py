"""Detections as one COCO-format file."""

import json
from collections.abc import Sequence
from pathlib import Path

from .result import Result


class PredictionsFile:
    """Collects detections as one COCO-format file that pycocotools loads.

    Args:
        class_names: name of each class.
        category_ids: id of each class: that of the training data, so that the file can be compared with them.
    """

    def __init__(self, class_names: Sequence[str], category_ids: Sequence[int]) -> None:
        about = "Detections of retinanet-ext predict; category ids are MODEL.CLASS_IDS of the config, else 1, 2, ..."
        categories = [{"id": i, "name": name} for i, name in zip(category_ids, class_names, strict=True)]
        self.content = {"info": {"description": about}, "images": [], "annotations": [], "categories": categories}

    def add(self, result: Result, file_name: str, **fields: int) -> None:
        """Add one image (`fields` go to its record) with its detections; boxes become XYWH in pixels."""
        height, width = result.image_size
        images, annotations = self.content["images"], self.content["annotations"]
        image_id = len(images) + 1
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height, **fields})
        for record in result.to_coco(image_id):
            area = record["bbox"][2] * record["bbox"][3]
            extra = {"id": len(annotations) + 1, "file_name": file_name, "area": area, "iscrowd": 0}
            annotations.append({**record, **extra})

    def save(self, path: Path) -> None:
        """Write the file; its folder is made if it does not exist."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.content))
