"""The inputs of test-time augmentation: one image in several sizes, mirrored and not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..cfg_node import configurable
from .transforms import HFlipTransform, NoOpTransform, ResizeShortestEdge, ResizeTransform, Transform, TransformList


class DatasetMapperTTA:
    """Makes augmented versions of one mapped image, with the transforms that lead to them."""

    @configurable
    def __init__(self, min_sizes: Sequence[int], max_size: int, flip: bool):
        """
        Args:
            min_sizes: lengths in pixels of the shorter side, one version for each.
            max_size: bound on the longer side, in pixels.
            flip: add the mirror image (left to right) of every version, directly after it.
        """
        self.min_sizes = list(min_sizes)
        self.max_size = max_size
        self.flip = flip

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        """Reads TEST.AUG.MIN_SIZES, TEST.AUG.MAX_SIZE and TEST.AUG.FLIP."""
        aug = cfg.TEST.AUG
        return {"min_sizes": aug.MIN_SIZES, "max_size": aug.MAX_SIZE, "flip": aug.FLIP}

    def __call__(self, dataset_dict: dict[str, Any]) -> list[dict[str, Any]]:
        """
        Args:
            dataset_dict: output of the dataset mapper: `image`, uint8 (C, H, W), and the size of the original
                image in pixels, `height` and `width`. It is not modified.

        Returns:
            Copies of it, each with a new `image` and with `transforms`, which lead from the original image to the
            new one: `transforms.inverse().apply_box(boxes)` maps predicted boxes, (N, 4) XYXY, back.
        """
        image = dataset_dict["image"].permute(1, 2, 0).numpy()
        size, original = image.shape[:2], (dataset_dict["height"], dataset_dict["width"])
        to_input = NoOpTransform() if size == original else ResizeTransform(*original, *size)
        augmented = []
        for min_size in self.min_sizes:
            new_size = ResizeShortestEdge.get_output_shape(*size, min_size, self.max_size)
            resize = ResizeTransform(*size, *new_size)
            resized = resize.apply_image(image)
            augmented.append(_version(dataset_dict, resized, [to_input, resize]))
            if self.flip:
                mirror = HFlipTransform(new_size[1])
                augmented.append(_version(dataset_dict, mirror.apply_image(resized), [to_input, resize, mirror]))
        return augmented


def _version(dataset_dict: dict[str, Any], image: np.ndarray, transforms: list[Transform]) -> dict[str, Any]:
    tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return {**dataset_dict, "image": tensor, "transforms": TransformList(transforms)}
