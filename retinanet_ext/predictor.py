"""Batched prediction over a stream of images."""

import itertools

import numpy as np
import torch

from retinanet_ext.d2 import T, build_model

from .checkpoint import load_weights
from .data.map_ahead import map_ahead


class BatchPredictor:
    """Runs a model over images in batches, resized like the test mapper does; preparation overlaps with the model.

    Args:
        cfg: the config; INPUT.MIN_SIZE_TEST, MAX_SIZE_TEST and FORMAT say how images are prepared. Without `model`,
            the model is built from it and loaded from MODEL.WEIGHTS, where all of its parameters must be.
        model: a detector that maps ``list[dict]`` to ``list[{"instances": Instances}]``; put in evaluation mode here.
        batch_size: images per forward pass. Images that follow each other share a batch and are padded to its largest.
        workers: threads that prepare images.
    """

    def __init__(self, cfg, model=None, *, batch_size=4, workers=2):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {batch_size}.")
        if cfg.INPUT.FORMAT not in ("BGR", "RGB"):
            raise ValueError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}; BatchPredictor takes BGR or RGB.")
        if model is None:
            model = _load_model(cfg)
        self.model = model.eval()
        self.batch_size = batch_size
        self.workers = workers
        self.input_format = cfg.INPUT.FORMAT
        self.resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)

    def predict(self, images):
        """Yield one Instances per image, on the CPU, in order.

        Args:
            images: iterable of uint8 BGR arrays ``(H, W, 3)``; consumed lazily, a few batches ahead.

        Yields:
            Instances with pred_boxes (XYXY, pixels of the image as given), scores and pred_classes, best score first.
        """
        inputs = map_ahead(self._prepare, images, self.workers, ahead=2 * self.batch_size)
        while batch := list(itertools.islice(inputs, self.batch_size)):
            with torch.no_grad():
                outputs = self.model(batch)
            for output in outputs:
                yield output["instances"].to("cpu")

    def _prepare(self, image):
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            found = f"{getattr(image, 'dtype', type(image))} {getattr(image, 'shape', '')}"
            raise TypeError(f"An image must be a uint8 BGR array of shape (H, W, 3), found {found}.")
        height, width = image.shape[:2]
        if self.input_format == "RGB":
            image = image[:, :, ::-1]
        image = self.resize.get_transform(image).apply_image(image)
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32))
        return {"image": tensor, "height": height, "width": width}


def _load_model(cfg):
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is empty; prediction needs the checkpoint of a trained model.")
    model = build_model(cfg)
    report = load_weights(model, cfg.MODEL.WEIGHTS)
    parameters = dict(model.named_parameters())
    # Buffers may be absent (older files lack the loss normaliser); a parameter left at random makes predictions noise.
    absent = [key for key in (*report.missing, *report.wrong_shape) if key in parameters]
    if absent:
        raise ValueError(
            f"{cfg.MODEL.WEIGHTS} does not fit the model of this config; not loaded: {', '.join(absent[:10])} "
            f"({len(absent)} in all). Use the config that the checkpoint was trained with."
        )
    return model
