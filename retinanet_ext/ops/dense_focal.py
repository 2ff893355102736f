"""The focal loss of a dense prediction, from class indices."""

import functools
import math
import warnings
from collections.abc import Callable, Sequence

import torch

from . import dense_focal_blocked
from .dense_focal_reference import alpha_values

DENSE_REDUCTIONS = ("sum", "per_image")
# Gradients of easy entries lie below what float16 can hold, and a loss scaler multiplies only afterwards. No entry's
# gradient exceeds 4 for any gamma below 1000, so these stay below 2**15; float16 ends at 2**16.
GRADIENT_SCALE = {torch.float16: 2.0**13}


def dense_focal_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    alpha: float | Sequence[float] | torch.Tensor = 0.25,
    gamma: float = 2.0,
    reduction: str = "sum",
) -> torch.Tensor:
    """Sum of the sigmoid focal loss over all anchors that are not ignored and all classes.

    Equal to the sum of ``losses.sigmoid_focal_loss`` over one-hot targets; see there for the formula. Loss and gradient
    are computed together, in one pass: by a Triton kernel on CUDA, elsewhere and without Triton in blocks. Beyond the
    gradient no memory of the logits' size is needed. Not differentiable twice. Nothing waits for the device.

    Args:
        logits: ``(N, R, K)`` for N images, R anchors and K classes, any strides.
        labels: ``(N, R)`` int64: -1 ignored, 0..K-1 a class, K background. Not checked, which would wait for the
            device: less than -1 is ignored too, more than K is background.
        alpha: weight of the foreground entries in [0, 1], background entries weigh ``1 - alpha``; negative switches the
            weighting off. A sequence or a tensor ``(K,)`` holds a weight for the entries of each class; the values
            of a tensor are not checked.
        gamma: focusing exponent, >= 0.
        reduction: ``sum`` over everything, or ``per_image``.

    Returns:
        A scalar, or ``(N,)`` for ``per_image``, in float32 (float64 for float64 logits): half precision is raised
        an entry at a time. The gradient has the logits' dtype.

    Raises:
        ValueError: shapes or dtypes disagree, or a value is out of its range.
    """
    if logits.dim() != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(
            f"logits (N, R, K) and labels (N, R) expected, got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    if not logits.is_floating_point() or labels.dtype != torch.int64:
        raise ValueError(f"logits of a float dtype and labels in int64 expected, got {logits.dtype} and {labels.dtype}")
    if reduction not in DENSE_REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; legal values: {', '.join(DENSE_REDUCTIONS)}")
    check_alpha_gamma(alpha, gamma)
    per_image = _DenseFocal.apply(
        logits,
        labels,
        alpha_values(alpha, logits, torch.promote_types(logits.dtype, torch.float32)),
        gamma,
        logits.requires_grad and torch.is_grad_enabled(),
    )
    return per_image if reduction == "per_image" else per_image.sum()


def check_alpha_gamma(alpha: float | Sequence[float] | torch.Tensor, gamma: float) -> None:
    """Refuse values outside the loss's definition; those of a tensor are not read, which would wait for its device.

    Raises:
        ValueError: ``gamma`` is negative or not finite, a number ``alpha`` exceeds 1, or one of several is outside
            [0, 1].
    """
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma is {gamma}; the focal loss needs a finite gamma >= 0")
    if isinstance(alpha, (int, float)):
        if not alpha <= 1:
            raise ValueError(f"alpha is {alpha}; it must lie in [0, 1], or be negative to switch the weighting off")
    elif not isinstance(alpha, torch.Tensor):
        wrong = [value for value in alpha if not 0 <= value <= 1]
        if wrong:
            raise ValueError(f"alpha holds {wrong}; each of its values, one for each class, must lie in [0, 1]")


# PyTorch's own test, not public; where a version has none, the graph may always be kept.
_graph_is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


class _DenseFocal(torch.autograd.Function):
    """Makes the gradient in the forward pass and keeps nothing else for the backward pass."""

    @staticmethod
    def forward(ctx, logits, labels, alpha, gamma, want_gradient):
        loss, gradient = _dense_focal(logits, labels, alpha, gamma, want_gradient)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        (gradient,) = ctx.saved_tensors
        # In place, unless the graph is kept: then this gradient will be asked for once more.
        if torch.compiler.is_compiling() or _graph_is_kept():
            gradient = gradient.clone()
        return _scale_images(gradient, grad_output / GRADIENT_SCALE.get(gradient.dtype, 1.0)), None, None, None, None


def _scale_images(gradient: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Multiply in place every image of ``(N, R, K)`` by its factor, which keeps its precision under half precision."""
    if gradient.device.type == "cpu":
        # Of half precision times (N, 1, 1) float32, the CPU would first make a float32 copy.
        for image, factor in zip(gradient, factors):
            image.mul_(factor)
        return gradient
    return gradient.mul_(factors[:, None, None])


# An operator of its own, so that torch.compile does not look into it.
@torch.library.custom_op("retinanet_ext::dense_focal", mutates_args=())
def _dense_focal(
    logits: torch.Tensor, labels: torch.Tensor, alpha: torch.Tensor | None, gamma: float, want_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses ``(N,)`` and their gradient, times GRADIENT_SCALE; without entries if it is not wanted."""
    scale = GRADIENT_SCALE.get(logits.dtype, 1.0)
    loss_and_gradient = _implementation(logits.device, logits.dtype)
    loss, gradient = loss_and_gradient(logits, labels, alpha, gamma, want_gradient, scale)
    return loss, logits.new_empty(0) if gradient is None else gradient


@_dense_focal.register_fake
def _(logits, labels, alpha, gamma, want_gradient):
    loss = logits.new_empty(logits.shape[0], dtype=torch.promote_types(logits.dtype, torch.float32))
    return loss, logits.new_empty(logits.shape if want_gradient else 0)


@functools.cache
def _implementation(device: torch.device, dtype: torch.dtype) -> Callable:
    """The Triton kernel for what it can do, if it runs here; blocks for all else."""
    if device.type != "cuda" or dtype == torch.float64:
        return dense_focal_blocked.loss_and_gradient
    try:
        from . import dense_focal_triton

        # Triton may be there and yet lack a compiler for its launcher, or not know the GPU: try.
        dense_focal_triton.loss_and_gradient(
            torch.zeros(1, 1, 1, device=device, dtype=dtype),
            torch.zeros(1, 1, device=device, dtype=torch.int64),
            alpha=None,
            gamma=2.0,
            want_gradient=True,
            gradient_scale=1.0,
        )
    except Exception as error:
        warnings.warn(f"the focal loss runs without its Triton kernel, slower: {error}", stacklevel=2)
        return dense_focal_blocked.loss_and_gradient
    return dense_focal_triton.loss_and_gradient
