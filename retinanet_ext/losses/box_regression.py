"""Box regression losses over the foreground anchors of dense predictions."""

from collections.abc import Callable

import torch
from torch import nn

from .box_iou import ciou_loss, diou_loss, giou_loss
from .dense import BOX_LOSS_REGISTRY, DensePredictions, DenseTargets, sum_per_image
from .smooth_l1 import smooth_l1_loss


class DeltaLoss(nn.Module):
    """Smooth L1 between predicted and encoded ground truth deltas (Fast R-CNN); ``beta`` 0 is L1."""

    def __init__(self, *, beta: float = 0.0):
        super().__init__()
        self.beta = beta

    def forward(self, predictions: DensePredictions, targets: DenseTargets) -> torch.Tensor:
        deltas = predictions.deltas[targets.image_index, targets.anchor_index]
        gt_deltas = predictions.encode(predictions.anchors[targets.anchor_index], targets.gt_boxes)
        return sum_per_image(smooth_l1_loss(deltas, gt_deltas, self.beta).sum(dim=1), targets)


class OverlapLoss(nn.Module):
    """A loss between the decoded and the ground truth boxes, such as GIoU."""

    def __init__(self, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]):
        """
        Args:
            loss: ``(boxes (M, 4), gt_boxes (M, 4)) -> (M,)``.
        """
        super().__init__()
        self.loss = loss

    def forward(self, predictions: DensePredictions, targets: DenseTargets) -> torch.Tensor:
        deltas = predictions.deltas[targets.image_index, targets.anchor_index]
        boxes = predictions.decode(deltas, predictions.anchors[targets.anchor_index])
        return sum_per_image(self.loss(boxes, targets.gt_boxes), targets)


OVERLAP_LOSSES = {"giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


def make_box_loss(name: str, smooth_l1_beta: float = 0.0) -> nn.Module:
    """The box loss called ``name``: ``smooth_l1``, ``l1``, ``giou``, ``diou`` or ``ciou``.

    Raises:
        ValueError: no such loss.
    """
    if name in OVERLAP_LOSSES:
        return OverlapLoss(OVERLAP_LOSSES[name])
    if name in ("smooth_l1", "l1"):
        return DeltaLoss(beta=smooth_l1_beta if name == "smooth_l1" else 0.0)
    raise ValueError(f"box loss is {name!r}; legal values: smooth_l1, l1, {', '.join(OVERLAP_LOSSES)}")


def _register(name: str) -> None:
    BOX_LOSS_REGISTRY.register(lambda cfg: make_box_loss(name), name=name)


for _name in ("l1", *OVERLAP_LOSSES):
    _register(_name)


# The one builder that reads the key: keys that nothing reads are reported to the user.
@BOX_LOSS_REGISTRY.register(name="smooth_l1")
def _build_smooth_l1(cfg) -> nn.Module:
    return make_box_loss("smooth_l1", cfg.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA)
