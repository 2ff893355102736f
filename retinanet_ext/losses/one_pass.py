"""Losses of the margin over a whole batch: the loss and its gradient in one pass over the logits, from class indices.

The margin of an entry is its logit if the anchor has the entry's class, and minus its logit otherwise: ``x_t = y x``
(Focal Loss paper, eq. 6). A loss that depends only on the margin needs no one-hot target, and its gradient can be
computed along with it. The focal loss, FL* and the hinge loss are such losses. Each states its formula in its own file
and registers it here with :func:`margin_loss`; this file runs it.

Almost all entries are background. So every entry is treated as background, except one for each anchor, its labelled
entry: the entry of its class, or any entry if it has no class. Labelled entries are computed apart. The work is done in
blocks that fit the cache, on any device, without a compiler. On CUDA the focal loss has a Triton kernel instead
(``focal_triton.py``).
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch

# Entries per block. The five float32 buffers of a CPU block take 10 MiB, which fits a last-level cache; with smaller
# blocks the threads wait for each other more often. On a GPU, launches cost more than cache misses.
CPU_BLOCK, GPU_BLOCK = 2**19, 2**24
# Gradients of easy entries are too small for float16, and a loss scaler multiplies only after the rounding. No entry's
# gradient exceeds 4 for any gamma below 1000, so scaled gradients stay below 2**15; float16 ends at 2**16.
GRADIENT_SCALE = {torch.float16: 2.0**13}
DENSE_REDUCTIONS = ("sum", "per_image")

Formula = Callable[..., tuple[torch.Tensor, torch.Tensor]]
MARGIN_LOSSES: dict[str, Formula] = {}


def margin_loss(name: str) -> Callable[[Formula], Formula]:
    """Register a loss of the margin under ``name``; a decorator.

    The function is called as ``formula(u, weight, scratch, *formula_args)``. ``u`` is minus the margin, so that
    ``p_t = sigmoid(-u)``; ``weight`` is None or broadcasts to ``u``; ``scratch`` holds four tensors like ``u``. The
    function overwrites ``u`` and ``scratch``. It returns the weighted loss and its derivative by ``u``, both like
    ``u``. Both must be 0 at an infinite margin, ``u = -inf``.
    """

    def register(formula: Formula) -> Formula:
        MARGIN_LOSSES[name] = formula
        return formula

    return register


def sums_of_images(
    name: str,
    formula_args: Sequence[float],
    logits: torch.Tensor,
    labels: torch.Tensor,
    alpha: float | Sequence[float] | torch.Tensor,
) -> torch.Tensor:
    """The loss ``name`` of :data:`MARGIN_LOSSES`, summed over the anchors of each image and all classes.

    Args:
        formula_args: the formula's own parameters, such as gamma.
        logits, labels, alpha: as for :func:`~retinanet_ext.losses.dense_focal_loss`; logits ``(N, R, K)``, labels
            ``(N, R)``.

    Returns:
        ``(N,)``, in float32 (float64 for float64 logits).

    Raises:
        ValueError: shapes or dtypes disagree, or there are several alphas, but not K.
    """
    return sums_and_entries(name, formula_args, logits, labels, alpha)[0]


def sums_and_entries(
    name: str,
    formula_args: Sequence[float],
    logits: torch.Tensor,
    labels: torch.Tensor,
    alpha: float | Sequence[float] | torch.Tensor,
    *index: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`sums_of_images`; also returns the logits at ``index``, so that another loss can be applied to them.

    Both results share one gradient tensor; computed apart, each would need one of the logits' size.

    Args:
        index: image, anchor and class, ``(M,)`` int64 each; by default no entries.

    Returns:
        ``(N,)``, and the logits ``(M,)`` in their dtype.
    """
    if logits.dim() != 3 or labels.shape != logits.shape[:2]:
        raise ValueError(
            f"logits (N, R, K) and labels (N, R) expected, got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    if not logits.is_floating_point() or labels.dtype != torch.int64:
        raise ValueError(f"logits of a float dtype and labels in int64 expected, got {logits.dtype} and {labels.dtype}")
    alpha = alpha_values(alpha, logits)
    want_gradient = logits.requires_grad and torch.is_grad_enabled()
    return _MarginLoss.apply(logits, labels, alpha, name, [float(arg) for arg in formula_args], want_gradient, *index)


def reduce_images(per_image: torch.Tensor, reduction: str) -> torch.Tensor:
    """The losses of the images ``(N,)``, unchanged for ``per_image``, or their sum, a scalar, for ``sum``.

    Raises:
        ValueError: ``reduction`` is neither of these.
    """
    if reduction not in DENSE_REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; legal values: {', '.join(DENSE_REDUCTIONS)}")
    return per_image if reduction == "per_image" else per_image.sum()


def alpha_values(alpha: float | Sequence[float] | torch.Tensor, logits: torch.Tensor) -> torch.Tensor | None:
    """Alpha in the dtype of the sums, for logits ``(N, R, K)``: ``(1,)``, or ``(K,)`` for one value per class, or None
    for no weighting.

    Raises:
        ValueError: there are several values, but not K.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    if isinstance(alpha, (int, float)):
        return None if alpha < 0 else logits.new_full((1,), alpha, dtype=dtype)
    values = torch.as_tensor(alpha, dtype=dtype, device=logits.device)
    if values.shape != logits.shape[2:]:
        raise ValueError(
            f"alpha has shape {tuple(values.shape)}, and the logits have {logits.shape[2]} classes; give a number, "
            "or one value for each class"
        )
    return values


# PyTorch's own test, which is not public. For a version without it, the graph counts as kept.
_graph_is_kept = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


class _MarginLoss(torch.autograd.Function):
    """Computes the gradient in the forward pass, and keeps nothing else of the logits' size for the backward pass."""

    @staticmethod
    def forward(ctx, logits, labels, alpha, name, formula_args, want_gradient, *index):
        # The first call of an operator imports PyTorch's compiler, which takes seconds, so only the compiler calls it.
        compute = _margin_loss_operator if torch.compiler.is_compiling() else _margin_loss
        loss, gradient = compute(logits, labels, alpha, name, formula_args, want_gradient)
        ctx.save_for_backward(gradient, *index)
        return loss, logits[index] if index else logits.new_empty(0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_loss, grad_entries):
        gradient, *index = ctx.saved_tensors
        # The gradient is scaled in place, unless the graph is kept: then it may be needed again.
        if torch.compiler.is_compiling() or _graph_is_kept():
            gradient = gradient.clone()
        gradient = _scale_images(gradient, grad_loss / GRADIENT_SCALE.get(gradient.dtype, 1.0))
        if index:
            gradient.index_put_(index, grad_entries, accumulate=True)
        return gradient, None, None, None, None, None, *(None for _ in index)


def _scale_images(gradient: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Multiply each image of ``(N, R, K)`` in place by its factor, ``(N,)``, in the factors' precision."""
    if gradient.device.type == "cpu":
        # For half precision times (N, 1, 1) float32, the CPU would first make a float32 copy.
        for image, factor in zip(gradient, factors):
            image.mul_(factor)
        return gradient
    return gradient.mul_(factors[:, None, None])


def _margin_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    alpha: torch.Tensor | None,
    name: str,
    formula_args: Sequence[float],
    want_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses ``(N,)`` and their gradient times GRADIENT_SCALE; the gradient is empty if it is not wanted."""
    scale = GRADIENT_SCALE.get(logits.dtype, 1.0)
    kernel = _triton_kernel(logits.device, logits.dtype) if name == "focal" else None
    if kernel is None:
        loss, gradient = in_blocks(logits, labels, alpha, MARGIN_LOSSES[name], formula_args, want_gradient, scale)
    else:
        loss, gradient = kernel(logits, labels, alpha, *formula_args, want_gradient, scale)
    return loss, logits.new_empty(0) if gradient is None else gradient


# A custom operator, so that torch.compile does not trace into the loss.
_margin_loss_operator = torch.library.custom_op("retinanet_ext::margin_loss", _margin_loss, mutates_args=())


@_margin_loss_operator.register_fake
def _(logits, labels, alpha, name, formula_args, want_gradient):
    loss = logits.new_empty(logits.shape[0], dtype=torch.promote_types(logits.dtype, torch.float32))
    return loss, logits.new_empty(logits.shape if want_gradient else 0)


@functools.cache
def _triton_kernel(device: torch.device, dtype: torch.dtype) -> Callable | None:
    """The focal loss's Triton kernel; None if it does not support the device or dtype, or does not run here."""
    if device.type != "cuda" or dtype == torch.float64:
        return None
    try:
        from . import focal_triton

        # An installed Triton may lack a compiler for its launcher, or not know the GPU: try it.
        focal_triton.loss_and_gradient(
            torch.zeros(1, 1, 1, device=device, dtype=dtype),
            torch.zeros(1, 1, device=device, dtype=torch.int64),
            alpha=None,
            gamma=2.0,
            want_gradient=True,
            gradient_scale=1.0,
        )
    except Exception as error:
        warnings.warn(f"the focal loss runs without its Triton kernel, which is slower: {error}", stacklevel=2)
        return None
    return focal_triton.loss_and_gradient


def in_blocks(
    logits: torch.Tensor,
    labels: torch.Tensor,
    alpha: torch.Tensor | None,
    formula: Formula,
    formula_args: Sequence[float],
    want_gradient: bool,
    gradient_scale: float,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A loss of the margin and its gradient, computed for one block of entries at a time.

    Args:
        logits: ``(N, R, K)``, any strides; half precision is raised to float32 a block at a time.
        labels: ``(N, R)`` int64: negative ignored, 0..K-1 a class, else background.
        alpha: weight of the foreground, ``(1,)`` or ``(K,)`` in the dtype of the sums; None: no weighting.
        formula, formula_args: see :func:`margin_loss`.
        want_gradient: whether the gradient is needed.
        gradient_scale: factor of the gradient, applied before it is rounded to the logits' dtype.

    Returns:
        Sums of the images, ``(N,)`` in float32 (float64 for float64 logits), and their gradient by the logits,
        ``(N, R, K)`` in the logits' dtype, or None. This function does not wait for the device.
    """
    num_images, _, num_classes = logits.shape
    dtype = torch.promote_types(logits.dtype, torch.float32)
    gradient = logits.new_empty(logits.shape) if want_gradient else None
    total = logits.new_zeros(num_images, dtype=torch.float64)
    block = CPU_BLOCK if logits.device.type == "cpu" else GPU_BLOCK
    buffers = None
    for images, anchors in _blocks(logits.shape, block):
        part, part_labels = logits[images, anchors], labels[images, anchors]
        if buffers is None:  # the first block is the largest
            buffers = logits.new_empty((5, part.numel()), dtype=dtype)
        x, *scratch = (buffer[: part.numel()].view(part.shape) for buffer in buffers)

        # An entry with x = -inf has neither loss nor gradient, so a minimum with -inf removes ignored anchors. It takes
        # a quarter of the time of masked_fill. But NaN stays NaN, even in ignored anchors.
        limit = torch.where(part_labels < 0, -torch.inf, torch.inf).to(dtype).unsqueeze(2)
        torch.minimum(part if part.dtype == dtype else x.copy_(part), limit, out=x)
        labelled_class = part_labels.clamp(0, num_classes - 1).unsqueeze(2)
        labelled_x = x.gather(2, labelled_class)
        x.scatter_(2, labelled_class, -torch.inf)
        labelled_loss, labelled_gradient = _labelled_entries(
            labelled_x, part_labels.unsqueeze(2), labelled_class, alpha, formula, formula_args, num_classes
        )
        loss, derivative = formula(x, None if alpha is None else 1 - alpha, scratch, *formula_args)
        total[images] += loss.sum(dim=(1, 2)) + labelled_loss.sum(dim=(1, 2))
        if gradient is not None:
            derivative.scatter_(2, labelled_class, labelled_gradient)
            gradient[images, anchors] = derivative.mul_(gradient_scale) if gradient_scale != 1 else derivative
    return total.to(dtype), gradient


def _blocks(shape: torch.Size, num_entries: int) -> Iterator[tuple[slice, slice]]:
    """Images and anchors of each block: one or more whole images, or a part of one image's anchors."""
    num_images, num_anchors, num_classes = shape
    anchors = max(1, num_entries // max(1, num_classes))
    images = max(1, anchors // max(1, num_anchors))
    for image in range(0, num_images, images):
        for anchor in range(0, num_anchors, anchors):
            yield slice(image, image + images), slice(anchor, anchor + anchors)


def _labelled_entries(x, labels, labelled_class, alpha, formula, formula_args, num_classes):
    """Weighted loss and gradient by ``x`` of one entry for each anchor; all tensors are (images, anchors, 1)."""
    is_foreground = (labels >= 0) & (labels < num_classes)
    sign = 1 - 2 * is_foreground.to(x.dtype)
    weight = None
    if alpha is not None:
        foreground_weight = alpha.expand(num_classes)[labelled_class]
        weight = torch.where(is_foreground, foreground_weight, 1 - foreground_weight)
    # An ignored anchor has x = -inf and sign 1, so its loss and gradient are 0.
    loss, derivative = formula(x * sign, weight, list(x.new_empty((4, *x.shape))), *formula_args)
    return loss, derivative.mul_(sign)
