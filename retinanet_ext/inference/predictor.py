"""Prediction for single images, lists and streams, in batches."""

from collections.abc import Iterable, Iterator, Sequence
from os import PathLike, fspath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from retinanet_ext.checkpoint.weights import load_weights
from retinanet_ext.config.class_count import num_classes, num_classes_key, score_threshold, score_threshold_key
from retinanet_ext.d2 import CfgNode, MetadataCatalog, T, build_model, detection_utils
from retinanet_ext.machine.cpu import keep_freed_memory

from .class_thresholds import Thresholds, class_thresholds, warn_below
from .fast_copy import inference_model
from .fingerprint import fingerprint
from .result import Result
from .threaded_map import batches_ahead

Input = np.ndarray | Image.Image | str | PathLike
"""An image: uint8 BGR array ``(H, W, 3)``, as OpenCV reads it; a Pillow image; or the path of a file."""


class _Prepared(NamedTuple):
    image: np.ndarray
    file_name: str
    model_input: dict


class Predictor:
    """Runs a model over images in batches. Images are resized as in the test mapper, in threads while the model works.

    :func:`retinanet_ext.load` makes one from the folder of a run.

    Args:
        cfg: the config; INPUT.MIN_SIZE_TEST, MAX_SIZE_TEST and FORMAT say how images are prepared, MODEL.CLASS_NAMES
            and CLASS_IDS what the classes are called. Without `model`, the model is built from the config and loaded
            from MODEL.WEIGHTS, which must hold all of its parameters.
        model: a detector that maps ``list[dict]`` to ``list[{"instances": Instances}]``; put in evaluation mode here,
            or copied if TEST.DTYPE, COMPILE or CUDA_GRAPHS ask for it.
        batch_size: images per forward pass. Consecutive images share a batch and are padded to the largest of them.
        workers: threads that prepare images.
        thresholds: detections with a score below that of their class are left out; see
            :data:`retinanet_ext.inference.class_thresholds.Thresholds`. The model's own SCORE_THRESH_TEST holds too,
            and is that of classes without threshold. None: only the model's own.

    Attributes:
        fingerprint: identifies the weights, for galleries of embeddings; None if MODEL.EMBEDDING_ON is False.
        thresholds: ``(K,)`` float32, by class; None if none were given.

    Raises:
        ValueError: a batch size below 1, an INPUT.FORMAT other than BGR or RGB, names or ids that are not one for each
            class, weights that do not fit, or thresholds that :func:`class_thresholds` refuses.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module | None = None,
        *,
        batch_size: int = 4,
        workers: int = 2,
        thresholds: Thresholds | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {batch_size}.")
        if cfg.INPUT.FORMAT not in ("BGR", "RGB"):
            raise ValueError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}; Predictor takes BGR or RGB.")
        self.class_names, self.category_ids = class_names(cfg), category_ids(cfg)
        self.keypoint_names, self.keypoint_lines = keypoint_names(cfg), keypoint_lines(cfg)
        self.thresholds = None if thresholds is None else self._thresholds(cfg, thresholds)
        if model is None:
            model = build_model(cfg)
            load_weights(model, cfg.MODEL.WEIGHTS, strict=True)
        if torch.device(cfg.MODEL.DEVICE).type == "cpu":
            keep_freed_memory()
        self.cfg = cfg
        self.fingerprint = fingerprint(model) if cfg.MODEL.EMBEDDING_ON else None
        self.model = inference_model(cfg, model).eval()
        if hasattr(self.model, "encode_masks"):
            # Run lengths take kilobytes where masks of a large image take gigabytes.
            self.model.encode_masks = True
        self.batch_size = batch_size
        self.workers = workers
        self.input_format = cfg.INPUT.FORMAT
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)

    def _thresholds(self, cfg, given):
        floor = score_threshold(cfg)
        found = class_thresholds(given, self.class_names, floor, cfg.MODEL.WEIGHTS)
        warn_below(found, self.class_names, floor, score_threshold_key(cfg))
        return torch.tensor(found, dtype=torch.float32)

    def __call__(self, images: Input | Sequence[Input] | np.ndarray) -> Result | list[Result]:
        """Detect objects in one image, or in several.

        Args:
            images: one :data:`Input`; or a list of them, or an array ``(N, H, W, 3)``.

        Returns:
            One :class:`Result`; for several images a list of them, in order.

        Raises:
            OSError: a file cannot be read.
            TypeError, ValueError: an image that :meth:`check_image` refuses.
        """
        is_batch = isinstance(images, (list, tuple)) or (isinstance(images, np.ndarray) and images.ndim == 4)
        results = list(self.predict(images if is_batch else [images]))
        return results if is_batch else results[0]

    def predict(self, images: Iterable[Input]) -> Iterator[Result]:
        """Yield one :class:`Result` for each image of a stream, in order; at most a few batches are in memory.

        Args:
            images: consumed lazily, a few batches ahead.

        Raises:
            As :meth:`__call__`; nothing after the image at fault is predicted.
        """
        for batch in batches_ahead(self._prepare, images, self.workers, self.batch_size):
            with torch.no_grad():
                outputs = self.model([prepared.model_input for prepared in batch])
            for prepared, output in zip(batch, outputs):
                instances = output["instances"].to("cpu")
                if self.thresholds is not None:
                    instances = instances[instances.scores >= self.thresholds[instances.pred_classes]]
                yield Result.of(
                    instances, prepared.image, self.class_names, self.category_ids, prepared.file_name,
                    self.keypoint_names, self.keypoint_lines,
                )  # fmt: skip

    def check_image(self, image: np.ndarray) -> None:
        """Refuse an image that :meth:`predict` cannot take, before a whole stream of images fails on it.

        Raises:
            TypeError: the image is not uint8 of shape ``(H, W, 3)``.
            ValueError: the image is so thin that its short side would have no pixels after resizing.
        """
        self._resizing(image)

    def _resizing(self, image):
        """Check `image`, and return the transform that resizes it."""
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            found = f"{getattr(image, 'dtype', type(image))} {getattr(image, 'shape', '')}"
            raise TypeError(
                f"An image must be a uint8 BGR array of shape (H, W, 3), a Pillow image or a path, found {found}."
            )
        transform = self.resize.get_transform(image)
        height, width = image.shape[:2]
        # Without a resize (INPUT.MIN_SIZE_TEST 0), the transform has no new size.
        if min(getattr(transform, "new_h", height), getattr(transform, "new_w", width)) < 1:
            raise ValueError(
                f"an image of {width}x{height} (width x height) is too thin: resized as INPUT.MIN_SIZE_TEST and "
                "INPUT.MAX_SIZE_TEST say, its short side would have no pixels"
            )
        return transform

    def _prepare(self, given):
        original, file_name = read_input(given)
        transform = self._resizing(original)
        height, width = original.shape[:2]
        image = original[:, :, ::-1] if self.input_format == "RGB" else original
        image = transform.apply_image(image)
        # Copied, because apply_image may return a read-only array. Kept as uint8, like the mapper's images, because
        # float32 would take four times the memory.
        tensor = torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))
        return _Prepared(original, file_name, {"image": tensor, "height": height, "width": width})


def read_input(given: Input) -> tuple[np.ndarray, str]:
    """The image as a uint8 BGR array ``(H, W, 3)``, turned as its EXIF tag says, and its path.

    An array is passed through, and its path is "".
    """
    if isinstance(given, (str, PathLike)):
        return detection_utils.read_image(fspath(given), format="BGR"), fspath(given)
    if isinstance(given, Image.Image):
        return np.ascontiguousarray(np.asarray(given.convert("RGB"))[:, :, ::-1]), getattr(given, "filename", "") or ""
    return given, ""


def class_names(cfg: CfgNode) -> list[str]:
    """``MODEL.CLASS_NAMES``, or ``class 0`` and so on.

    Raises:
        ValueError: there are names, but not one for each class.
    """
    return _one_for_each_class(cfg, "CLASS_NAMES") or [f"class {k}" for k in range(num_classes(cfg))]


def category_ids(cfg: CfgNode) -> list[int]:
    """``MODEL.CLASS_IDS``, the ids of the classes in the training data; 1, 2, ... if those have none.

    Raises:
        ValueError: there are ids, but not one for each class.
    """
    return _one_for_each_class(cfg, "CLASS_IDS") or [k + 1 for k in range(num_classes(cfg))]


def keypoint_names(cfg: CfgNode) -> list[str]:
    """``MODEL.KEYPOINT_NAMES``, else those that the training dataset is registered with; [] if there are none."""
    return list(cfg.MODEL.KEYPOINT_NAMES or _from_training_data(cfg, "keypoint_names"))


def keypoint_lines(cfg: CfgNode) -> list[list]:
    """``MODEL.KEYPOINT_LINES``, else those that the training dataset is registered with: name, name, RGB of each."""
    return list(cfg.MODEL.KEYPOINT_LINES or _from_training_data(cfg, "keypoint_connection_rules"))


def _from_training_data(cfg, key):
    name = next(iter(cfg.DATASETS.TRAIN), None)
    return (MetadataCatalog.get(name).get(key, None) if name is not None and cfg.MODEL.KEYPOINT_ON else None) or []


def _one_for_each_class(cfg, key):
    values, count = list(cfg.MODEL[key]), num_classes(cfg)
    if values and len(values) != count:
        raise ValueError(
            f"{num_classes_key(cfg)} is {count}, but MODEL.{key} has {len(values)}: "
            f"{', '.join(map(str, values))}. Use the config.yaml that the training run wrote to its output folder."
        )
    return values
