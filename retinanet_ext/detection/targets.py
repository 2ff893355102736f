"""From anchors and ground truth to what every anchor should predict."""

from collections.abc import Callable, Sequence

import torch

from retinanet_ext.losses import DenseTargets

from .matcher import FOREGROUND, IGNORE


@torch.no_grad()
def label_anchors(
    anchors: torch.Tensor,
    gt_boxes: Sequence[torch.Tensor],
    gt_classes: Sequence[torch.Tensor],
    matcher: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    num_classes: int,
) -> DenseTargets:
    """Match the anchors to the ground truth of each of N images.

    Args:
        anchors: ``(R, 4)``, xyxy in pixels, the same for all images.
        gt_boxes: N tensors ``(G_i, 4)``, xyxy in pixels of the network's input; G_i may be 0.
        gt_classes: N tensors ``(G_i,)`` int64 in 0..num_classes-1.
        matcher: see ``ANCHOR_MATCHER_REGISTRY``.
        num_classes: K, also the label of background.
    """
    labels = torch.full((len(gt_boxes), len(anchors)), num_classes, dtype=torch.int64, device=anchors.device)
    image_index, anchor_index, matched_boxes = [], [], []
    for image, (boxes, classes) in enumerate(zip(gt_boxes, gt_classes)):
        matched, state = matcher(anchors, boxes)
        labels[image, state == IGNORE] = IGNORE
        foreground = torch.nonzero(state == FOREGROUND).squeeze(1)
        gt_index = matched[foreground]
        labels[image, foreground] = classes[gt_index]
        image_index.append(torch.full_like(foreground, image))
        anchor_index.append(foreground)
        matched_boxes.append(boxes[gt_index])
    return DenseTargets(
        labels=labels,
        image_index=torch.cat(image_index),
        anchor_index=torch.cat(anchor_index),
        gt_boxes=torch.cat(matched_boxes),
    )
