"""Detections as one COCO-format file, written while they come, so that memory does not grow with their number."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from retinanet_ext.machine.atomic_file import atomic_file
from retinanet_ext.ops.coco_keypoints import num_labelled

from .result import Result

_DIGITS = 6


class PredictionsFile:
    """A COCO-format file of detections that pycocotools loads; its ``annotations`` are COCO results for ``loadRes``.

    A context manager: the file appears under its name at the end, complete, and not at all after an error, or if no
    image was added and ``keep_empty`` is off.

    Args:
        path: the file; its folder is made if it does not exist.
        class_names: name of each class.
        category_ids: id of each class: that of the training data, so that the file can be compared with them.
        keep_empty: write the file also if no image was added.
        embeddings: also write the embedding of each detection, a list of numbers rounded to 6 digits.

    Attributes:
        images: number of images so far.
    """

    def __init__(
        self,
        path: Path,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        keep_empty: bool = True,
        embeddings: bool = False,
    ) -> None:
        self.path, self.keep_empty, self.embeddings = path, keep_empty, embeddings
        about = "Detections of retinanet-ext predict; category ids are MODEL.CLASS_IDS of the config, else 1, 2, ..."
        self._categories = [{"id": i, "name": name} for i, name in zip(category_ids, class_names, strict=True)]
        self._info = {"description": about}
        self._image_records: list[str] = []
        self._annotations = 0
        self._stack = ExitStack()

    @property
    def images(self) -> int:
        return len(self._image_records)

    def __enter__(self) -> "PredictionsFile":
        self._file = self._stack.enter_context(atomic_file(self.path))
        self._write('{"info": ', json.dumps(self._info), ', "annotations": [')
        return self

    def __exit__(self, error_type, error, traceback) -> bool | None:
        if error_type is None and not self.images and not self.keep_empty:
            # The file is left out as after an error.
            error = _NoImages()
            self._stack.__exit__(_NoImages, error, None)
            return None
        if error_type is None:
            images = ", ".join(self._image_records)
            self._write('], "images": [', images, '], "categories": ', json.dumps(self._categories), "}")
        return self._stack.__exit__(error_type, error, traceback)

    def add(self, result: Result, file_name: str, **fields: int) -> None:
        """Add one image (`fields` go to its record) with its detections; boxes become XYWH in pixels."""
        height, width = result.image_size
        image_id = self.images + 1
        image = {"id": image_id, "file_name": file_name, "width": width, "height": height, **fields}
        self._image_records.append(json.dumps(image))
        areas = result.pred_masks.areas().tolist() if result.has("pred_masks") else None
        for index, record in enumerate(result.to_coco(image_id)):
            record |= {"id": self._annotations + 1, "file_name": file_name, "iscrowd": 0}
            record["area"] = record["bbox"][2] * record["bbox"][3] if areas is None else areas[index]
            if self.embeddings:
                record["embedding"] = [round(value, _DIGITS) for value in result.embeddings[index].tolist()]
            if "keypoints" in record:
                record["num_keypoints"] = num_labelled(record["keypoints"])
            self._write(", " if self._annotations else "", json.dumps(record))
            self._annotations += 1

    def _write(self, *texts: str) -> None:
        for text in texts:
            self._file.write(text.encode())


class _NoImages(Exception):
    """Ends a file without content."""
