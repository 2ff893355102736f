"""The hinge loss on p_t (Lin et al., "Focal Loss for Dense Object Detection", section 5.1)."""

import torch
import torch.nn.functional as F

from retinanet_ext.ops import check_margin

from .focal import margins_and_weights
from .reduction import reduce_loss


def sigmoid_hinge_loss(
    logits: torch.Tensor, targets: torch.Tensor, margin: float = 0.5, reduction: str = "none"
) -> torch.Tensor:
    """Hinge loss on the probability of the right answer, of independent binary classifiers.

    With ``x`` the logit, ``y`` = +1 for target 1 and -1 for target 0, ``p_t = sigmoid(y x)``::

        loss = max(0, margin - p_t)

    The paper says only that it is 0 above some value of ``p_t``, and that training was unstable. The derivative by
    ``x`` is ``-y p_t (1 - p_t)`` below the margin and 0 from it on: it vanishes also for what is confidently wrong.

    Limits: ``margin = 1`` is ``1 - p_t``, the absolute error; above the margin there is neither loss nor gradient.

    Args:
        logits: any shape, floating point; half precision is raised to float32.
        targets: same shape, values 0 or 1.
        margin: the ``p_t`` from which on the loss is 0, in (0, 1].
        reduction: ``none``, ``mean`` or ``sum``.

    Returns:
        The loss, of the logits' shape for ``none`` and a scalar otherwise; at most ``margin`` for each entry.

    Raises:
        ValueError: shapes differ, ``margin`` is out of its range, or ``reduction`` is unknown.
    """
    check_margin(margin)
    x_t, _ = margins_and_weights(logits, targets, alpha=-1)
    # 1 - p_t as a sigmoid, which keeps its precision near 0.
    return reduce_loss(F.relu(torch.sigmoid(-x_t) - (1 - margin)), reduction)
