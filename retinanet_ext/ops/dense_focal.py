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
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    per_image = _DenseFocal.apply(logits, labels, alpha, gamma)
    return per_image if reduction == "per_image" else per_image.sum()


def focal_of_margin(x_t: torch.Tensor, gamma: float) -> torch.Tensor:
    """``-(1 - p_t)^gamma log(p_t)`` with ``p_t = sigmoid(x_t)``, elementwise; paper, eq. 4 in the terms of eq. 6.

    Both factors are written with log-sigmoids. The textbook form ``(1 - p_t) ** gamma`` has an infinite derivative
    where ``p_t`` rounds to 1 and gamma < 1.
    """
    loss = -F.logsigmoid(x_t)
    return loss * torch.exp(gamma * F.logsigmoid(-x_t)) if gamma > 0 else loss


def dense_focal_reference(logits: torch.Tensor, labels: torch.Tensor, alpha: float, gamma: float) -> torch.Tensor:
    """``(N,)`` sums by the definition: the readable form, kept as the truth that the fast one is tested against."""
    foreground = _foreground_entries(labels, logits.shape[2])
    # -1 for background entries, +1 for foreground entries: x_t = y x.
    sign = torch.full_like(logits, -1.0)
    sign[foreground] = 1.0
    loss = focal_of_margin(logits * sign, gamma)
    weight = torch.full_like(logits, 1.0 - alpha if alpha >= 0 else 1.0)
    if alpha >= 0:
        weight[foreground] = alpha
    weight[labels == IGNORE] = 0.0
    return (loss * weight).sum(dim=(1, 2))


def _foreground_entries(labels: torch.Tensor, num_classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image, anchor and class of every entry whose target is 1."""
    image, anchor = torch.nonzero((labels >= 0) & (labels < num_classes), as_tuple=True)
    return image, anchor, labels[image, anchor]


class _DenseFocal(torch.autograd.Function):
    """Loss and gradient in one pass, without a one-hot target.

    With ``u = -x_t``, ``q = sigmoid(u) = 1 - p_t`` and ``s = softplus(u) = -log(p_t)``, the loss is ``q^gamma s`` and
    its derivative by u is ``q^gamma (q + gamma (1 - q) s)``: no power below gamma, so finite for every gamma. The few
    foreground entries differ from the background by the sign of u and by their weight. Only the gradient is kept
    for the backward pass.
    """

    @staticmethod
    def forward(ctx, logits, labels, alpha, gamma):
        foreground = _foreground_entries(labels, logits.shape[2])
        ignored = torch.nonzero(labels == IGNORE, as_tuple=True)
        fg_weight, bg_weight = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)

        u = logits.clone()
        u[foreground] = -u[foreground]
        s = F.softplus(u)
        q = u.sigmoid_()
        q_gamma = q**gamma

        if ctx.needs_input_grad[0]:
            gradient = (1 - q).mul_(s).mul_(gamma).add_(q).mul_(q_gamma)
            fg_gradient = gradient[foreground] * -fg_weight
            gradient.mul_(bg_weight)
            gradient[foreground] = fg_gradient
            gradient[ignored] = 0.0
            ctx.save_for_backward(gradient)

        loss = s.mul_(q_gamma)
        fg_loss = loss[foreground] * fg_weight
        loss[foreground] = 0.0
        loss[ignored] = 0.0
        return (loss.sum(dim=(1, 2)) * bg_weight).index_add_(0, foreground[0], fg_loss)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output[:, None, None], None, None, None
