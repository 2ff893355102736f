"""Losses of predicted masks (Mask R-CNN, section 3), each with its reference, and the masks they are compared with.

Sums over RoIs and pixels, in float32; the heads divide them. The references do not run in training.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from retinanet_ext.d2 import Instances


def mask_targets(instances: Sequence[Instances], size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """What the masks of all RoIs should be.

    Args:
        instances: per image M_i RoIs with ``proposal_boxes``, ``gt_classes`` and ``gt_masks``; an image without RoIs
            needs no ``gt_masks``.
        size: S, cells of a side of a mask.

    Returns:
        Classes ``(M,)`` int64; and ground truth masks cut out of the RoIs, bool ``(M, S, S)``.
    """
    classes = [torch.zeros(0, dtype=torch.int64, device=device)]
    targets = [torch.zeros(0, size, size, dtype=torch.bool, device=device)]
    for image in instances:
        if len(image) > 0:
            classes.append(image.gt_classes.to(device))
            boxes = image.proposal_boxes.tensor
            targets.append(image.gt_masks.crop_and_resize(boxes, size).to(device=device, dtype=torch.bool))
    return torch.cat(classes), torch.cat(targets)


def mask_loss_reference(logits: torch.Tensor, classes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The definition of `mask_loss`, mask by mask, from the logits of all classes ``(M, K, S, S)`` or, for masks that
    all classes share, ``(M, 1, S, S)``; classes ``(M,)``, masks ``(M, S, S)``."""
    total = logits.float().sum() * 0  # keeps the graph if there are no masks
    for logit, label, target in zip(logits.float(), classes.tolist(), targets, strict=True):
        probability = logit[label if len(logit) > 1 else 0].sigmoid()
        total = total - torch.where(target, probability.log(), (1 - probability).log()).sum()
    return total


def mask_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy of the mask of the ground truth class, summed. Other classes have no part in it.

    Args:
        logits: ``(M, S, S)``, those of the ground truth class, or of the mask that all classes share.
        targets: bool ``(M, S, S)``.

    Returns:
        A float32 scalar.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="sum")


def softmax_mask_loss_reference(logits: torch.Tensor, classes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The definition of `softmax_mask_loss`, mask by mask: logits ``(M, K + 1, S, S)``."""
    total = logits.float().sum() * 0
    background = logits.shape[1] - 1
    for logit, label, target in zip(logits.float(), classes.tolist(), targets, strict=True):
        probability = logit.exp() / logit.exp().sum(dim=0)
        total = total - torch.where(target, probability[label].log(), probability[background].log()).sum()
    return total


def softmax_mask_loss(logits: torch.Tensor, classes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the K classes and background, which compete for every pixel; summed.

    Args:
        logits: ``(M, K + 1, S, S)``, background last.
        classes: ``(M,)`` int64, 0..K-1.
        targets: bool ``(M, S, S)``: pixels of the object; all others are background.

    Returns:
        A float32 scalar.
    """
    background = logits.shape[1] - 1
    labels = torch.where(targets, classes.view(-1, 1, 1), background)
    return F.cross_entropy(logits.float(), labels, reduction="sum")
