"""The focal loss of a dense prediction, from class indices."""

import torch
import torch.nn.functional as F

IGNORE = -1
DENSE_REDUCTIONS = ("sum", "per_image")


def dense_focal_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "sum",
) -> torch.Tensor:
    """Sum of the sigmoid focal loss over all anchors that are not ignored and all classes.

    Equal to the sum of ``losses.sigmoid_focal_loss`` over one-hot targets; see there for the formula.

    Args:
        logits: ``(N, R, K)`` for N images, R anchors and K classes; half precision is raised to float32.
        labels: ``(N, R)`` integers: -1 ignored, 0..K-1 a class, K background.
        alpha: weight of the foreground entries in [0, 1]; negative switches the weighting off.
        gamma: focusing exponent, >= 0.
        reduction: ``sum`` over everything, or ``per_image``.

    Returns:
        A scalar, or ``(N,)`` for ``per_image``, in float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes disagree or ``reduction`` is unknown.
    """
    if logits.dim() != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(
            f"logits (N, R, K) and labels (N, R) expected, got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    if reduction not in DENSE_REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; legal values: {', '.join(DENSE_REDUCTIONS)}")
    per_image = _dense_focal_reference(logits, labels, alpha, gamma)
    return per_image if reduction == "per_image" else per_image.sum()


def _dense_focal_reference(logits: torch.Tensor, labels: torch.Tensor, alpha: float, gamma: float) -> torch.Tensor:
    """``(N,)`` sums: the readable form, kept as the truth that faster ones are tested against."""
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    num_classes = logits.shape[2]
    image, anchor = torch.nonzero((labels >= 0) & (labels < num_classes), as_tuple=True)
    foreground = (image, anchor, labels[image, anchor])

    # -1 for background entries, +1 for foreground entries: x_t = y x, as in losses.focal.
    sign = torch.full_like(logits, -1.0)
    sign[foreground] = 1.0
    x_t = logits * sign
    loss = -F.logsigmoid(x_t)
    if gamma > 0:
        loss = loss * torch.exp(gamma * F.logsigmoid(-x_t))
    weight = torch.full_like(logits, 1.0 - alpha if alpha >= 0 else 1.0)
    if alpha >= 0:
        weight[foreground] = alpha
    weight[labels == IGNORE] = 0.0
    return (loss * weight).sum(dim=(1, 2))
