"""From a feature map to one vector per image, and the L2 normalisation."""

import torch
from torch.nn import functional as F

POOLS = {"avg": lambda maps: maps.mean(dim=(2, 3)), "max": lambda maps: maps.amax(dim=(2, 3))}
"""Name in MODEL.EMBEDDING.POOL -> function from maps ``(N, C, H, W)`` to vectors ``(N, C)``."""


def l2_normalize(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors ``(N, D)`` scaled to length 1 (paper, section 3), in float32 or better.

    A vector shorter than 1e-12 is divided by 1e-12, so that a zero vector stays zero and has a finite gradient.
    """
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=1, eps=1e-12)
