"""Classification losses over dense predictions."""

import torch
from torch import nn

from retinanet_ext.ops import dense_focal_loss

from .dense import CLS_LOSS_REGISTRY, DensePredictions, DenseTargets
from .focal import check_alpha_gamma


class DenseFocalLoss(nn.Module):
    """The focal loss over all anchors of a batch (RetinaNet paper, section 4.1 "Focal Loss")."""

    def __init__(self, *, alpha: float = 0.25, gamma: float = 2.0):
        """
        Args:
            alpha: weight of the foreground in [0, 1]; negative switches the weighting off.
            gamma: focusing exponent, >= 0; 0 is alpha-balanced cross entropy.
        """
        super().__init__()
        check_alpha_gamma(alpha, gamma)
        self.alpha = alpha
        self.gamma = gamma

    def forward(self, predictions: DensePredictions, targets: DenseTargets) -> torch.Tensor:
        return dense_focal_loss(
            predictions.logits, targets.labels, alpha=self.alpha, gamma=self.gamma, reduction="per_image"
        )


@CLS_LOSS_REGISTRY.register(name="focal")
def _build_focal(cfg) -> DenseFocalLoss:
    retinanet = cfg.MODEL.RETINANET
    return DenseFocalLoss(alpha=retinanet.FOCAL_LOSS_ALPHA, gamma=retinanet.FOCAL_LOSS_GAMMA)
