"""Losses of the margin, such as the focal loss, of a dense prediction, from class indices.

The margin of an entry is its logit where its anchor has its class, and minus its logit elsewhere (paper, eq. 6):
``x_t = y x`` and ``p_t = sigmoid(x_t)``. A loss of nothing else needs no one-hot target, and its gradient can be
computed with it.
"""

import functools
import math
import warnings
from collections.abc import Callable, Sequence

import torch

from . import dense_blocked
from .dense_focal_reference import alpha_values
from .dense_formulas import FORMULAS

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
    check_alpha_gamma(alpha, gamma)
    return _reduce(_dense_loss(logits, labels, alpha, "focal", [gamma])[0], reduction)


def dense_background_focal_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    image_index: torch.Tensor,
    anchor_index: torch.Tensor,
    gamma: float = 2.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The focal loss without weighting of all entries that are background, and the logits of those that are not, for a
    loss of their own. Both share one gradient; apart, each would fill a tensor of the logits' size.

    Args:
        logits, labels: as for :func:`dense_focal_loss`.
        image_index, anchor_index: ``(M,)`` int64, the anchors that have a class.
        gamma: focusing exponent, >= 0.

    Returns:
        Sums of the images, ``(N,)``, as of :func:`dense_focal_loss` with alpha 0; and the logits of those anchors at
        their classes, ``(M,)``, in the logits' dtype.

    Raises:
        ValueError: as :func:`dense_focal_loss`.
    """
    check_alpha_gamma(0.0, gamma)
    index = (image_index, anchor_index, labels[image_index, anchor_index])
    return _dense_loss(logits, labels, 0.0, "focal", [gamma], *index)


def dense_focal_star_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    alpha: float | Sequence[float] | torch.Tensor = 0.25,
    gamma: float = 2.0,
    beta: float = 1.0,
    reduction: str = "sum",
) -> torch.Tensor:
    """Sum of ``losses.sigmoid_focal_star_loss`` over one-hot targets, computed and called as :func:`dense_focal_loss`;
    on CUDA too in blocks.

    Args:
        gamma: steepness, > 0.
        beta: shift.
    """
    check_focal_star(alpha, gamma, beta)
    return _reduce(_dense_loss(logits, labels, alpha, "focal_star", [gamma, beta])[0], reduction)


def dense_hinge_loss(
    logits: torch.Tensor, labels: torch.Tensor, margin: float = 0.5, reduction: str = "sum"
) -> torch.Tensor:
    """Sum of ``losses.sigmoid_hinge_loss`` over one-hot targets, computed and called as :func:`dense_focal_loss`; on
    CUDA too in blocks.

    Args:
        margin: the ``p_t`` from which on there is no loss, in (0, 1].
    """
    check_margin(margin)
    return _reduce(_dense_loss(logits, labels, -1, "hinge", [margin])[0], reduction)


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


def check_focal_star(alpha: float | Sequence[float] | torch.Tensor, gamma: float, beta: float) -> None:
    """As :func:`check_alpha_gamma`.

    Raises:
        ValueError: also for a ``gamma`` of 0 and a ``beta`` that is not finite.
    """
    if gamma == 0:
        raise ValueError(f"gamma is {gamma}; FL* divides by it and needs gamma > 0 (gamma 1 and beta 0: cross entropy)")
    check_alpha_gamma(alpha, gamma)
    if not math.isfinite(beta):
        raise ValueError(f"beta is {beta}; FL* needs a finite beta")


def check_margin(margin: float) -> None:
    """
    Raises:
        ValueError: ``margin`` is not in (0, 1].
    """
    if not 0 < margin <= 1:
        raise ValueError(f"margin is {margin}; the hinge is on p_t, so its margin must lie in (0, 1]")


def _dense_loss(
    logits, labels, alpha, formula: str, knobs: Sequence[float], *index: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of the images, and the logits at ``index`` (image, anchor, class), by default of no entry."""
    if logits.dim() != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(
            f"logits (N, R, K) and labels (N, R) expected, got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    if not logits.is_floating_point() or labels.dtype != torch.int64:
        raise ValueError(f"logits of a float dtype and labels in int64 expected, got {logits.dtype} and {labels.dtype}")
    alpha = alpha_values(alpha, logits, torch.promote_types(logits.dtype, torch.float32))
    want_gradient = logits.requires_grad and torch.is_grad_enabled()
    return _DenseMargin.apply(logits, labels, alpha, formula, [float(knob) for knob in knobs], want_gradient, *index)


def _reduce(per_image: torch.Tensor, reduction: str) -> torch.Tensor:
    if reduction not in DENSE_REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; legal values: {', '.join(DENSE_REDUCTIONS)}")
    return per_image if reduction == "per_image" else per_image.sum()


# PyTorch's own test, not public; where a version has none, the graph may always be kept.
_graph_is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


class _DenseMargin(torch.autograd.Function):
    """Makes the gradient in the forward pass and keeps nothing else of the logits' size for the backward pass."""

    @staticmethod
    def forward(ctx, logits, labels, alpha, formula, knobs, want_gradient, *index):
        loss, gradient = _dense_margin(logits, labels, alpha, formula, knobs, want_gradient)
        ctx.save_for_backward(gradient, *index)
        return loss, logits[index] if index else logits.new_empty(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss, grad_entries):
        gradient, *index = ctx.saved_tensors
        # In place, unless the graph is kept: then this gradient will be asked for once more.
        if torch.compiler.is_compiling() or _graph_is_kept():
            gradient = gradient.clone()
        gradient = _scale_images(gradient, grad_loss / GRADIENT_SCALE.get(gradient.dtype, 1.0))
        if index:
            gradient.index_put_(index, grad_entries, accumulate=True)
        return gradient, None, None, None, None, None, *(None for _ in index)


def _scale_images(gradient: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Multiply in place every image of ``(N, R, K)`` by its factor, which keeps its precision under half precision."""
    if gradient.device.type == "cpu":
        # Of half precision times (N, 1, 1) float32, the CPU would first make a float32 copy.
        for image, factor in zip(gradient, factors):
            image.mul_(factor)
        return gradient
    return gradient.mul_(factors[:, None, None])


# An operator of its own, so that torch.compile does not look into it.
@torch.library.custom_op("retinanet_ext::dense_margin", mutates_args=())
def _dense_margin(
    logits: torch.Tensor,
    labels: torch.Tensor,
    alpha: torch.Tensor | None,
    formula: str,
    knobs: Sequence[float],
    want_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses ``(N,)`` and their gradient, times GRADIENT_SCALE; without entries if it is not wanted."""
    scale = GRADIENT_SCALE.get(logits.dtype, 1.0)
    kernel = _triton_kernel(logits.device, logits.dtype) if formula == "focal" else None
    if kernel is None:
        loss, gradient = dense_blocked.loss_and_gradient(
            logits, labels, alpha, FORMULAS[formula], knobs, want_gradient, scale
        )
    else:
        loss, gradient = kernel(logits, labels, alpha, *knobs, want_gradient, scale)
    return loss, logits.new_empty(0) if gradient is None else gradient


@_dense_margin.register_fake
def _(logits, labels, alpha, formula, knobs, want_gradient):
    loss = logits.new_empty(logits.shape[0], dtype=torch.promote_types(logits.dtype, torch.float32))
    return loss, logits.new_empty(logits.shape if want_gradient else 0)


@functools.cache
def _triton_kernel(device: torch.device, dtype: torch.dtype) -> Callable | None:
    """The kernel of the focal loss for what it can do, if it runs here."""
    if device.type != "cuda" or dtype == torch.float64:
        return None
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
        return None
    return dense_focal_triton.loss_and_gradient
