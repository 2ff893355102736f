"""Whole models: builds the model that a config names, and rescales detections to the original image."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from retinanet_ext.machine.devices import check_device
from retinanet_ext.ops.mask_pasting import paste_masks
from retinanet_ext.ops.scaled_detections import scaled_detections
from retinanet_ext.registry import Registry, find_registered

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
    meta_arch = find_registered("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY, hint)
    return meta_arch(cfg).to(torch.device(cfg.MODEL.DEVICE))


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Rescales detections from the model's input size to another image size.

    Args:
        results: N detections with `pred_boxes`, or proposals with `proposal_boxes`, in pixels of `results.image_size`;
            optionally `pred_masks` (N, 1, S, S), probabilities within the box, and `pred_keypoints` (N, J, 3): x, y,
            score. Not changed.
        output_height, output_width: the other image size in pixels.
        mask_threshold: a pixel belongs to a mask if its probability is at least this.

    Returns:
        New `Instances` of that size: boxes are scaled and clipped to the image, and detections whose box has no area
        removed. `pred_masks` are bool (M, output_height, output_width).
    """
    draw = partial(paste_masks, threshold=mask_threshold)
    return scaled_detections(results, (output_height, output_width), draw)
