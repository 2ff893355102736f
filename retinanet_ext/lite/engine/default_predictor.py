"""A model in use, one image at a time."""

from typing import Any

import numpy as np
import torch

from ..cfg_node import CfgNode
from ..checkpointer import DetectionCheckpointer
from ..data import MetadataCatalog
from ..data import transforms as T
from ..meta_arch import build_model


class DefaultPredictor:
    """Detection on single images with the model and the weights of a config.

    No batching and no workers: for experiments and demos.
    """

    def __init__(self, cfg: CfgNode):
        self.cfg = cfg.clone()
        self.model = build_model(self.cfg)
        self.model.eval()
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        if cfg.DATASETS.TEST:
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        shortest = [cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST]
        self.aug = T.ResizeShortestEdge(shortest, cfg.INPUT.MAX_SIZE_TEST)
        self.input_format = cfg.INPUT.FORMAT
        if self.input_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {self.input_format!r}; legal for a predictor: RGB, BGR")

    def __call__(self, original_image: np.ndarray) -> dict[str, Any]:
        """Predict on one image.

        Args:
            original_image: ``(H, W, 3)`` uint8, channels in BGR order, as OpenCV reads it.

        Returns:
            The model's output, such as ``{"instances": Instances}`` in pixels of ``original_image``.
        """
        height, width = original_image.shape[:2]
        image = original_image[:, :, ::-1] if self.input_format == "RGB" else original_image
        image = self.aug.get_transform(image).apply_image(image)
        tensor = torch.as_tensor(np.ascontiguousarray(image.astype("float32").transpose(2, 0, 1)))
        with torch.no_grad():
            return self.model([{"image": tensor, "height": height, "width": width}])[0]
