"""Classification losses over dense predictions."""

from collections.abc import Sequence

import torch
from torch import nn

from retinanet_ext.ops import check_alpha_gamma, dense_focal_loss

from .dense import CLS_LOSS_REGISTRY, DensePredictions, DenseTargets


class DenseFocalLoss(nn.Module):
    """The focal loss over all anchors of a batch (RetinaNet paper, section 4.1 "Focal Loss")."""

    def __init__(self, *, alpha: float | Sequence[float] = 0.25, gamma: float = 2.0):
        """
        Args:
            alpha: weight of the foreground in [0, 1]; negative switches the weighting off. A sequence holds one in
                [0, 1] for each class.
            gamma: focusing exponent, >= 0; 0 is alpha-balanced cross entropy.
        """
        super().__init__()
        check_alpha_gamma(alpha, gamma)
        if isinstance(alpha, (int, float)):
            self.alpha = alpha
        else:  # moves with the module, so that it is not copied to the device every time
            self.register_buffer("alpha", torch.tensor(alpha, dtype=torch.float32), persistent=False)
        self.gamma = gamma

    def forward(self, predictions: DensePredictions, targets: DenseTargets) -> torch.Tensor:
        return dense_focal_loss(
            predictions.logits, targets.labels, alpha=self.alpha, gamma=self.gamma, reduction="per_image"
        )


@CLS_LOSS_REGISTRY.register(name="focal")
def _build_focal(cfg) -> DenseFocalLoss:
    retinanet = cfg.MODEL.RETINANET
    return DenseFocalLoss(alpha=retinanet.FOCAL_LOSS_ALPHA, gamma=retinanet.FOCAL_LOSS_GAMMA)
