"""What a predictor returns for one image."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from retinanet_ext.d2 import ColorMode, Instances, Visualizer
from retinanet_ext.evaluation.coco_predictions import ImagePredictions
from retinanet_ext.ops.encoded_masks import EncodedMasks

UNKNOWN = "unknown"
_JPEG_QUALITY = 95
_DIGITS = 6


class Result(Instances):
    """The detections in one image, best score first: Detectron2's ``Instances`` that know their image and classes.

    Fields, for N detections: ``pred_boxes`` (``Boxes``, XYXY in pixels of the image), ``scores`` ``(N,)`` float32 and
    ``pred_classes`` ``(N,)`` int64, on the CPU; with masks ``pred_masks`` (``EncodedMasks``: run lengths, of which
    ``.tensor`` is bool ``(N, H, W)``), with keypoints ``pred_keypoints`` ``(N, J, 3)``: x, y, score; with embeddings
    ``embeddings`` ``(N, D)`` float32 of length 1, and after :meth:`identified` ``identity_index`` ``(N,)`` int64, the
    index in ``identity_names`` or -1, and ``identity_distances`` ``(N,)`` float32.
    ``result[keep]`` is a result as well. ``result["instances"]`` is the result itself, so that code made for the dict
    of Detectron2's own predictor takes it.
    """

    @classmethod
    def of(
        cls,
        instances: Instances,
        image: np.ndarray,
        class_names: Sequence[str],
        category_ids: Sequence[int],
        file_name: str = "",
        keypoint_names: Sequence[str] = (),
        keypoint_lines: Sequence[Sequence] = (),
        identity_names: Sequence[str] = (),
    ) -> "Result":
        """
        Args:
            instances: the detections.
            image: uint8 BGR ``(H, W, 3)``, as given to the predictor.
            class_names: name of each class, in the order of ``pred_classes``.
            category_ids: id of each class in the training data.
            file_name: where the image came from; empty for an array.
            keypoint_names: of the J keypoints; without, no lines are drawn.
            keypoint_lines: name, name and RGB in 0 to 255 of each line of a skeleton.
            identity_names: what ``identity_index`` refers to, if the instances have it.
        """
        result = cls(instances.image_size, **instances.get_fields())
        if result.has("pred_masks"):
            result.pred_masks = EncodedMasks.of(result.pred_masks, instances.image_size)
        result._image, result._file_name = image, file_name
        result._class_names, result._category_ids = list(class_names), list(category_ids)
        result._keypoint_names, result._keypoint_lines = list(keypoint_names), list(keypoint_lines)
        result._identity_names = list(identity_names)
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

    @property
    def identity_names(self) -> list[str]:
        """The names that ``identity_index`` refers to."""
        return self._identity_names

    @property
    def identities(self) -> list[str]:
        """Name of the identity of each detection, "unknown" where there is none.

        Raises:
            AttributeError: the result was not :meth:`identified`.
        """
        return [self._identity_names[index] if index >= 0 else UNKNOWN for index in self.identity_index.tolist()]

    def identified(self, names: Sequence[str | None], distances: Sequence[float]) -> "Result":
        """A copy that knows who or what each detection is.

        Args:
            names: of the N detections; None: unknown.
            distances: squared distance of each to its nearest known identity, also of the unknown ones.
        """
        known = sorted({name for name in names if name is not None})
        numbers = {name: index for index, name in enumerate(known)}
        copied = self._copy(self)
        copied._identity_names = known
        copied.identity_index = torch.tensor([numbers.get(name, -1) for name in names], dtype=torch.int64)
        copied.identity_distances = torch.tensor(list(distances), dtype=torch.float32)
        return copied

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
        return Result.of(
            instances, self._image, self._class_names, self._category_ids, self._file_name, self._keypoint_names,
            self._keypoint_lines, self._identity_names,
        )  # fmt: skip

    def draw(self, mode: ColorMode = ColorMode.IMAGE) -> np.ndarray:
        """The image with boxes, masks, skeletons, class names (or identities) and scores: uint8 BGR ``(H, W, 3)``."""
        picture = Instances(self.image_size, **self.get_fields())
        metadata = self._metadata()
        if self.has("identity_index"):
            # A class of its own for each detection, named by its whole label, is drawn by both visualizers.
            picture.remove("scores")
            picture.pred_classes = torch.arange(len(self))
            metadata.thing_classes = self._labels()
        if self.has("pred_masks"):
            # Both visualizers decode the masks of a list one by one, and EncodedMasks all at once.
            picture.remove("pred_masks")
            picture.pred_masks = self.pred_masks.rles
        canvas = Visualizer(self._image[:, :, ::-1], metadata, instance_mode=mode)
        return canvas.draw_instance_predictions(picture).get_image()[:, :, ::-1]

    def _labels(self) -> list[str]:
        """Identity, score and distance of each detection; of an unknown one also its class."""
        columns = (self.identities, self.identity_index.tolist(), self.names, self.scores.tolist())
        rows = zip(*columns, self.identity_distances.tolist(), strict=True)
        return [
            f"{identity if index >= 0 else f'{identity} {kind}'} {score:.2f} d={distance:.2f}"
            for identity, index, kind, score, distance in rows
        ]

    def _metadata(self) -> "_Metadata":
        shown = {"thing_classes": self._class_names}
        count = self.pred_keypoints.shape[1] if self.has("pred_keypoints") else 0
        if count and count == len(self._keypoint_names):
            rules = [(a, b, tuple(color)) for a, b, color in self._keypoint_lines]
            shown |= {"keypoint_names": self._keypoint_names, "keypoint_connection_rules": rules}
        return _Metadata(**shown)

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
        in pixels) and ``score``; with masks ``segmentation`` (compressed RLE, its counts as text), with keypoints
        ``keypoints`` (x, y, score of each in turn; as in COCO's files, whole numbers are centres of pixels); after
        :meth:`identified` ``identity`` ("unknown" if there is none) and ``identity_distance``.

        COCO's own ``loadRes`` reads a list of them. It takes the area from ``bbox``; leave that key out where masks are
        evaluated by their size.
        """
        records = ImagePredictions.of(self).to_coco(image_id, dict(enumerate(self._category_ids)))
        if self.has("identity_index"):
            distances = self.identity_distances.tolist()
            for record, identity, distance in zip(records, self.identities, distances, strict=True):
                record |= {"identity": identity, "identity_distance": round(distance, _DIGITS)}
        return records

    def to_supervision(self):
        """The detections as ``supervision.Detections``, with ``class_name`` in its data, and masks decoded.

        Keypoints are not part of it.

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
            mask=self.pred_masks.tensor.numpy() if self.has("pred_masks") else None,
            data={"class_name": np.array(self.names, dtype=str)},
        )


class _Metadata(SimpleNamespace):
    """What a picture needs to know of a dataset, in the form of the engines' metadata."""

    def get(self, name: str, default=None):
        return getattr(self, name, default)
