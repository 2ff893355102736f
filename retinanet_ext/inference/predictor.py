"""Batched prediction over a stream of images."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import nn

from retinanet_ext.checkpoint.weights import load_weights
from retinanet_ext.d2 import CfgNode, Instances, T, build_model
from retinanet_ext.machine.cpu import keep_freed_memory

from .fast_copy import inference_model
from .threaded_map import map_ahead


class BatchPredictor:
    """Runs a model over images in batches. Images are resized as in the test mapper, in threads while the model works.

    Args:
        cfg: the config; INPUT.MIN_SIZE_TEST, MAX_SIZE_TEST and FORMAT say how images are prepared. Without `model`,
            the model is built from the config and loaded from MODEL.WEIGHTS, which must hold all of its parameters.
        model: a detector that maps ``list[dict]`` to ``list[{"instances": Instances}]``; put in evaluation mode here,
            or copied if TEST.DTYPE, COMPILE or CUDA_GRAPHS ask for it.
        batch_size: images per forward pass. Consecutive images share a batch and are padded to the largest of them.
        workers: threads that prepare images.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module | None = None, *, batch_size: int = 4, workers: int = 2) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {batch_size}.")
        if cfg.INPUT.FORMAT not in ("BGR", "RGB"):
            raise ValueError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}; BatchPredictor takes BGR or RGB.")
        if model is None:
            model = build_model(cfg)
            load_weights(model, cfg.MODEL.WEIGHTS, strict=True)
        if torch.device(cfg.MODEL.DEVICE).type == "cpu":
            keep_freed_memory()
        self.model = inference_model(cfg, model).eval()
        self.batch_size = batch_size
        self.workers = workers
        self.input_format = cfg.INPUT.FORMAT
        self.resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)

    def predict(self, images: Iterable[np.ndarray]) -> Iterator[Instances]:
        """Yield one Instances per image, on the CPU, in order.

        Args:
            images: uint8 BGR, ``(H, W, 3)``; consumed lazily, a few batches ahead.

        Yields:
            pred_boxes (XYXY, pixels of the image as given), scores and pred_classes, best score first.

        Raises:
            TypeError, ValueError: an image that :meth:`check_image` refuses; nothing after it is predicted.
        """
        inputs = map_ahead(self._prepare, images, self.workers, ahead=2 * self.batch_size)
        while batch := list(itertools.islice(inputs, self.batch_size)):
            with torch.no_grad():
                outputs = self.model(batch)
            for output in outputs:
                yield output["instances"].to("cpu")

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
            raise TypeError(f"An image must be a uint8 BGR array of shape (H, W, 3), found {found}.")
        transform = self.resize.get_transform(image)
        height, width = image.shape[:2]
        # Without a resize (INPUT.MIN_SIZE_TEST 0), the transform has no new size.
        if min(getattr(transform, "new_h", height), getattr(transform, "new_w", width)) < 1:
            raise ValueError(
                f"an image of {width}x{height} (width x height) is too thin: resized as INPUT.MIN_SIZE_TEST and "
                "INPUT.MAX_SIZE_TEST say, its short side would have no pixels"
            )
        return transform

    def _prepare(self, image):
        transform = self._resizing(image)
        height, width = image.shape[:2]
        if self.input_format == "RGB":
            image = image[:, :, ::-1]
        image = transform.apply_image(image)
        # Copied, because apply_image may return a read-only array. Kept as uint8, like the mapper's images, because
        # float32 would take four times the memory.
        tensor = torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))
        return {"image": tensor, "height": height, "width": width}
