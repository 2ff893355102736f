"""What a predictor returns for one image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from retinanet_ext.d2 import Instances, Visualizer

_JPEG_QUALITY = 95


class Result(Instances):
    """The detections in one image, best score first: Detectron2's ``Instances`` that know their image and classes.

    Fields, for N detections: ``pred_boxes`` (``Boxes``, XYXY in pixels of the image), ``scores`` ``(N,)`` float32 and
    ``pred_classes`` ``(N,)`` int64, on the CPU. ``result[keep]`` is a result as well. ``result["instances"]`` is the
    result itself, so that code made for the dict of Detectron2's own predictor takes it.
    """

    @classmethod
    def of(
        cls,
        instances: Instances,
        image: np.ndarray,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        file_name: str = "",
    ) -> "Result":
        """
        Args:
            instances: the detections.
            image: uint8 BGR ``(H, W, 3)``, as given to the predictor.
            class_names: name of each class, in the order of ``pred_classes``.
            category_ids: id of each class in the training data.
            file_name: where the image came from; empty for an array.
        """
        result = cls(instances.image_size, **instances.get_fields())
        result._image, result._file_name = image, file_name
        result._class_names, result._category_ids = list(class_names), list(category_ids)
        return result

    @property
    def image(self) -> np.ndarray:
        """The image as given, uint8 BGR ``(H, W, 3)``."""
        return self._image

    @property
    def file_name(self) -> str:
        """Path of the image; empty if it was given as an array."""
        return self._file_name

    @property
    def class_names(self) -> list[str]:
        """Name of each class, in the order of ``pred_classes``."""
        return self._class_names

    @property
    def names(self) -> list[str]:
        """Class name of each detection."""
        return [self._class_names[k] for k in self.pred_classes.tolist()]

    def __getitem__(self, item) -> "Result":
        if isinstance(item, str):
            if item != "instances":
                raise KeyError(f"{item!r}; a result has the one key 'instances', and fields: {', '.join(self._fields)}")
            return self
        return self._copy(super().__getitem__(item))

    def to(self, *args, **kwargs) -> "Result":
        """The result with its tensors moved, as ``Instances.to``."""
        return self._copy(super().to(*args, **kwargs))

    def _copy(self, instances: Instances) -> "Result":
        return Result.of(instances, self._image, self._class_names, self._category_ids, self._file_name)

    def draw(self) -> np.ndarray:
        """The image with boxes, class names and scores: uint8 BGR ``(H, W, 3)``."""
        canvas = Visualizer(self._image[:, :, ::-1], {"thing_classes": self._class_names})
        return canvas.draw_instance_predictions(self).get_image()[:, :, ::-1]

    def save(self, path: str | Path) -> None:
        """Write the picture of :meth:`draw`; the suffix says the format. The folder is made if it does not exist.

        Raises:
            ValueError: the suffix names no format that Pillow writes.
        """
        path = Path(path)
        if path.suffix.lower() not in Image.registered_extensions():
            raise ValueError(f"{path} has the suffix {path.suffix!r}; a picture's name ends in .jpg, .png or the like")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(self.draw()[:, :, ::-1])).save(path, quality=_JPEG_QUALITY)

    def to_coco(self, image_id: int | str = 1) -> list[dict]:
        """Records of COCO's results format: ``image_id``, ``category_id`` (that of the training data), ``bbox`` (XYWH
        in pixels) and ``score``. COCO's own ``loadRes`` reads a list of them.
        """
        boxes = self.pred_boxes.tensor.tolist()
        return [
            {
                "image_id": image_id,
                "category_id": self._category_ids[k],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": score,
            }
            for (x0, y0, x1, y1), score, k in zip(boxes, self.scores.tolist(), self.pred_classes.tolist())
        ]

    def to_supervision(self):
        """The detections as ``supervision.Detections``, with ``class_name`` in its data.

        Raises:
            ModuleNotFoundError: the package supervision is not installed.
        """
        try:
            from supervision import Detections
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("to_supervision() needs a package: pip install supervision") from error
        return Detections(
            xyxy=self.pred_boxes.tensor.numpy(),
            confidence=self.scores.numpy(),
            class_id=self.pred_classes.numpy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )
