"""Whole models: builds the model that a config names, and rescales detections to the original image."""

from __future__ import annotations

import torch
from torch import nn

from retinanet_ext.machine.devices import check_device
from retinanet_ext.registry import Registry, check_registered

from .cfg_node import CfgNode
from .other_detectors import REMEDY
from .structures import Instances

META_ARCH_REGISTRY = Registry("META_ARCH")
"""Classes or functions `f(cfg) -> nn.Module`, chosen by MODEL.META_ARCHITECTURE."""
ROI_MASK_HEAD_REGISTRY = Registry("ROI_MASK_HEAD")
"""Classes or functions `f(cfg, input_shape) -> nn.Module`, chosen by MODEL.ROI_MASK_HEAD.NAME."""
ROI_KEYPOINT_HEAD_REGISTRY = Registry("ROI_KEYPOINT_HEAD")
"""Classes or functions `f(cfg, input_shape) -> nn.Module`, chosen by MODEL.ROI_KEYPOINT_HEAD.NAME."""


def build_model(cfg: CfgNode) -> nn.Module:
    """The model that MODEL.META_ARCHITECTURE names, on MODEL.DEVICE, without the weights of MODEL.WEIGHTS.

    Raises:
        KeyError: no such meta-architecture; `lite` itself has none but those of this package.
        ValueError: MODEL.DEVICE does not exist on this machine.
    """
    check_device(cfg.MODEL.DEVICE)
    hint = f"; set it to one of these, {REMEDY}"
    check_registered("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY, hint)
    return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg).to(torch.device(cfg.MODEL.DEVICE))


def detector_postprocess(results: Instances, output_height: int, output_width: int) -> Instances:
    """Rescales detections from the model's input size to another image size.

    Args:
        results: detections with `pred_boxes` in pixels of `results.image_size`; not changed.
        output_height, output_width: the other image size in pixels.

    Returns:
        New `Instances` of that size: boxes are scaled and clipped to the image, and boxes without area removed.
    """
    height, width = results.image_size
    boxes = results.pred_boxes.clone()
    boxes.scale(output_width / width, output_height / height)
    boxes.clip((output_height, output_width))
    scaled = Instances((output_height, output_width), **{**results.get_fields(), "pred_boxes": boxes})
    return scaled[boxes.nonempty()]
