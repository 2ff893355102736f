"""The one place that reads the word ``reduction``."""

import torch

REDUCTIONS = ("none", "mean", "sum")


def reduce_loss(loss: torch.Tensor, reduction: str) -> torch.Tensor:
    """Reduce an elementwise loss.

    The mean over no elements is 0 with a graph, not NaN: an image without objects is normal input.

    Raises:
        ValueError: ``reduction`` is not one of ``none``, ``mean``, ``sum``.
    """
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.mean() if loss.numel() else loss.sum()
    raise ValueError(f"reduction is {reduction!r}; legal values: {', '.join(REDUCTIONS)}")


def upcast(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` in at least float32: losses of half-precision predictions are computed in full precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
