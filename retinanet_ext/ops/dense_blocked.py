"""A loss of the margin and its gradient in one pass over blocks that fit the cache: on any device, without a compiler.

Almost all entries are background. So every entry is taken for one, except one for each anchor, its own: that of its
class, or any where it has no class. Own entries are computed apart.
"""

from collections.abc import Callable, Iterator, Sequence

import torch

# Entries of a block. The five float32 buffers of a CPU block are 10 MiB, which a last-level cache holds; with smaller
# blocks the threads wait for each other more often. On a GPU, launches cost more than cache misses.
CPU_BLOCK, GPU_BLOCK = 2**19, 2**24


def loss_and_gradient(
    logits: torch.Tensor,
    labels: torch.Tensor,
    alpha: torch.Tensor | None,
    formula: Callable,
    knobs: Sequence[float],
    want_gradient: bool,
    gradient_scale: float,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Args:
        logits: ``(N, R, K)``, any strides; half precision is raised to float32 a block at a time.
        labels: ``(N, R)`` int64: negative ignored, 0..K-1 a class, else background.
        alpha: weight of the foreground, ``(1,)`` or ``(K,)`` in the dtype of the sums; None: no weighting.
        formula, knobs: called as ``formula(u, weight, scratch, *knobs)``; see ``dense_formulas``.
        want_gradient: whether the gradient is needed.
        gradient_scale: what the gradient is multiplied by before it is rounded to the logits' dtype.

    Returns:
        Sums of the images, ``(N,)`` in float32 (float64 for float64 logits), and their gradient by the logits,
        ``(N, R, K)`` in the logits' dtype, or None. Never waits for the device.
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

        # An entry with x = -inf has neither loss nor gradient. A minimum takes a quarter of the time of a masked_fill;
        # only, NaN stays NaN also where it is ignored.
        limit = torch.where(part_labels < 0, -torch.inf, torch.inf).to(dtype).unsqueeze(2)
        torch.minimum(part if part.dtype == dtype else x.copy_(part), limit, out=x)
        own_class = part_labels.clamp(0, num_classes - 1).unsqueeze(2)
        own_x = x.gather(2, own_class)
        x.scatter_(2, own_class, -torch.inf)
        own_loss, own_gradient = _own_entries(
            own_x, part_labels.unsqueeze(2), own_class, alpha, formula, knobs, num_classes
        )
        loss, derivative = formula(x, None if alpha is None else 1 - alpha, scratch, *knobs)
        total[images] += loss.sum(dim=(1, 2)) + own_loss.sum(dim=(1, 2))
        if gradient is not None:
            derivative.scatter_(2, own_class, own_gradient)
            gradient[images, anchors] = derivative.mul_(gradient_scale) if gradient_scale != 1 else derivative
    return total.to(dtype), gradient


def _blocks(shape: torch.Size, num_entries: int) -> Iterator[tuple[slice, slice]]:
    """Images and anchors of every block: some whole images, or a part of the anchors of one."""
    num_images, num_anchors, num_classes = shape
    anchors = max(1, num_entries // max(1, num_classes))
    images = max(1, anchors // max(1, num_anchors))
    for image in range(0, num_images, images):
        for anchor in range(0, num_anchors, anchors):
            yield slice(image, image + images), slice(anchor, anchor + anchors)


def _own_entries(x, labels, own_class, alpha, formula, knobs, num_classes):
    """Weighted loss and gradient by ``x`` of one entry an anchor; all of shape (images, anchors, 1)."""
    is_foreground = (labels >= 0) & (labels < num_classes)
    sign = 1 - 2 * is_foreground.to(x.dtype)
    weight = None
    if alpha is not None:
        own_alpha = alpha.expand(num_classes)[own_class]
        weight = torch.where(is_foreground, own_alpha, 1 - own_alpha)
    # An ignored anchor has x = -inf and label -1.
    loss, derivative = formula(x * sign, weight, list(x.new_empty((4, *x.shape))), *knobs)
    return loss, derivative.mul_(sign)
