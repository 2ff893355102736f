"""The focal loss and its gradient in one Triton kernel: logits are read once, the gradient is written once."""

import torch
import triton
import triton.language as tl

BLOCK = 2048


def loss_and_gradient(
    logits: torch.Tensor,
    labels: torch.Tensor,
    alpha: torch.Tensor | None,
    gamma: float,
    want_gradient: bool,
    gradient_scale: float,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As ``one_pass.in_blocks`` with the focal loss, for float32 and half precision: logits ``(N, R, K)``, labels
    ``(N, R)``. Tensors that are not contiguous are copied first."""
    num_images, num_anchors, num_classes = logits.shape
    num_entries = num_anchors * num_classes
    num_blocks = triton.cdiv(num_entries, BLOCK)
    logits, labels = logits.contiguous(), labels.contiguous()
    # One sum per block, added in a fixed order: the result is the same every time.
    partial = logits.new_zeros((num_images, num_blocks), dtype=torch.float32)
    gradient = torch.empty_like(logits) if want_gradient else None
    if partial.numel() > 0:
        with torch.cuda.device_of(logits):
            _focal_kernel[(num_blocks, num_images)](
                logits,
                labels,
                logits if alpha is None else alpha,
                partial,
                logits if gradient is None else gradient,
                num_anchors,
                num_entries,
                gradient_scale,
                NUM_CLASSES=num_classes,
                NUM_ALPHAS=0 if alpha is None else alpha.numel(),
                GAMMA=float(gamma),
                WANT_GRADIENT=want_gradient,
                BLOCK=BLOCK,
            )
    return partial.sum(dim=1), gradient


@triton.jit
def _focal_kernel(
    logits_ptr,
    labels_ptr,
    alpha_ptr,
    partial_ptr,
    gradient_ptr,
    num_anchors,
    num_entries,
    gradient_scale,
    NUM_CLASSES: tl.constexpr,
    NUM_ALPHAS: tl.constexpr,
    GAMMA: tl.constexpr,
    WANT_GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per block of an image's entries; the formulas are those of ``focal.focal_and_derivative``."""
    image = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0).to(tl.int64) * BLOCK
    lane = tl.arange(0, BLOCK)
    inside = first + lane < num_entries
    # Only one division needs 64 bits.
    first_anchor = first // NUM_CLASSES
    offset = (first - first_anchor * NUM_CLASSES).to(tl.int32) + lane
    anchor = image * num_anchors + first_anchor + offset // NUM_CLASSES
    entry = image * num_entries + first + lane

    label = tl.load(labels_ptr + anchor, mask=inside, other=-1)
    x = tl.load(logits_ptr + entry, mask=inside, other=0.0).to(tl.float32)
    is_foreground = label == offset % NUM_CLASSES
    u = tl.where(is_foreground, -x, x)
    e = tl.exp(-tl.abs(u))
    log1p_e = _log1p(e)
    inverse = 1.0 / (1.0 + e)
    q = tl.where(u >= 0, 1.0, e) * inverse
    s = tl.maximum(u, 0.0) + log1p_e
    if GAMMA == 0.0:
        power = tl.full((BLOCK,), 1.0, tl.float32)
    elif GAMMA == 1.0:
        power = q
    elif GAMMA == 2.0:
        power = q * q
    else:
        power = tl.exp(GAMMA * (tl.minimum(u, 0.0) - log1p_e))
    if NUM_ALPHAS > 0:
        alpha = tl.load(alpha_ptr + offset % NUM_ALPHAS)
        power *= tl.where(is_foreground, alpha, 1.0 - alpha)

    valid = label >= 0
    loss = tl.sum(tl.where(valid, power * s, 0.0))
    tl.store(partial_ptr + image * tl.num_programs(0) + tl.program_id(0), loss)
    if WANT_GRADIENT:
        rest = tl.where(u >= 0, e, 1.0) * inverse
        derivative = power * (q + GAMMA * rest * s) * gradient_scale
        gradient = tl.where(valid, tl.where(is_foreground, -derivative, derivative), 0.0)
        tl.store(gradient_ptr + entry, gradient.to(gradient_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _log1p(e):
    """``log(1 + e)`` for e in [0, 1], as the series of ``2 atanh(z)`` with ``z = e / (2 + e) <= 1/3``.

    It keeps float32 precision near e = 0, where the rounded sum ``1 + e`` has lost the digits of e.
    """
    z = e / (2.0 + e)
    w = z * z
    series = 1.0 / 11 + w * (1.0 / 13)
    series = 1.0 / 9 + w * series
    series = 1.0 / 7 + w * series
    series = 1.0 / 5 + w * series
    series = 1.0 / 3 + w * series
    return 2.0 * z * (1.0 + w * series)
