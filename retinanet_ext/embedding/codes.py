"""An embedding as 128 bytes: each number becomes one signed byte (paper, section 5: "quantized to 128-bytes without
loss of accuracy").

N embeddings of D numbers. An embedding is scaled so that its largest number is 127 or -127, and rounded. Only the
direction is kept, because embeddings have length 1.
"""

import math
from typing import TypeVar

import numpy as np
import torch

Array = TypeVar("Array", torch.Tensor, np.ndarray)
LARGEST = 127
_ROWS = 65536  # handled at once, so that temporaries stay small


def encode(embeddings: Array) -> Array:
    """Embeddings to codes of D bytes.

    The angle between an embedding and its decoded code is at most ``worst_angle(D)``, for D = 128 0.0443 (2.5 degrees);
    for random directions it is about 0.007 (0.4 degrees).

    Args:
        embeddings: float ``(N, D)``, a tensor or an array; any length but zero.

    Returns:
        int8 ``(N, D)``, -127 to 127, of the same library and on the same device.

    Raises:
        ValueError: an embedding is zero or not finite; the message has its index.
    """
    values = torch.as_tensor(embeddings)
    if values.ndim != 2 or not values.is_floating_point():
        raise ValueError(f"embeddings are {values.dtype} of shape {tuple(values.shape)}; expected: float, (N, D)")
    values = values.detach()
    largest = values.abs().amax(dim=1) if values.numel() else values.new_ones(len(values))
    _refuse(~torch.isfinite(largest), "not finite")
    _refuse(largest == 0, "zero, which has no direction")
    codes = torch.empty(values.shape, dtype=torch.int8, device=values.device)
    for start in range(0, len(values), _ROWS):
        rows = slice(start, start + _ROWS)
        block = values[rows].to(torch.promote_types(values.dtype, torch.float32))
        # Divide first: 127 / largest overflows for a largest number near zero.
        codes[rows] = (block / largest[rows, None] * LARGEST).round()
    return codes.numpy() if isinstance(embeddings, np.ndarray) else codes


def decode(codes: Array) -> Array:
    """Codes to embeddings, float32 ``(N, D)`` of length 1.

    Args:
        codes: int8 ``(N, D)``, or the same bytes as uint8; a tensor or an array.

    Raises:
        ValueError: a code is zero; the message has its index.
    """
    values = as_codes(codes).to(torch.float32)
    decoded = values / code_lengths(codes)[:, None]
    return decoded.numpy() if isinstance(codes, np.ndarray) else decoded


def code_lengths(codes: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Lengths of codes ``(N, D)`` as they are stored: float32 ``(N,)``. Takes little memory besides the result.

    Raises:
        ValueError: a code is zero; the message has its index.
    """
    codes = as_codes(codes)
    lengths = torch.empty(len(codes), device=codes.device)
    for start in range(0, len(codes), _ROWS):
        # The sum of squares is an integer below 2**24, so it is exact whatever the order of the sum.
        lengths[start : start + _ROWS] = codes[start : start + _ROWS].float().square().sum(dim=1).sqrt()
    _refuse(lengths == 0, "zero, which has no direction")
    return lengths


def as_codes(codes: torch.Tensor | np.ndarray) -> torch.Tensor:
    """The bytes ``(N, D)`` as an int8 tensor over the same memory.

    Raises:
        ValueError: these are no codes.
    """
    codes = torch.as_tensor(codes)
    if codes.ndim != 2 or codes.dtype not in (torch.int8, torch.uint8):
        raise ValueError(f"codes are {codes.dtype} of shape {tuple(codes.shape)}; expected: int8 or uint8, (N, D)")
    return codes.view(torch.int8)


def worst_angle(dim: int) -> float:
    """Largest angle in radians between an embedding of ``dim`` numbers and its decoded code.

    The number that is scaled to 127 is exact, each other one is off by at most 1/2. The error e is perpendicular to
    the code at worst, and |e_i| <= |s_i| for every scaled number s_i, so tan(angle) <= |e| / 127. The embedding
    (127, 1/2, ..., 1/2) reaches it.
    """
    return math.atan(0.5 * math.sqrt(dim - 1) / LARGEST)


def _refuse(wrong: torch.Tensor, problem: str) -> None:
    if wrong.any():
        index = int(wrong.nonzero()[0])
        raise ValueError(f"embedding {index} is {problem} ({int(wrong.sum())} of {len(wrong)} are)")
