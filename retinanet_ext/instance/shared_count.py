"""The count that a loss is divided by, shared by the processes of a distributed run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from retinanet_ext.detection.normalizer import num_processes

_is_shared = True


def average_over_processes(count: torch.Tensor | int | float, device: torch.device | str) -> torch.Tensor:
    """The average of ``count`` over the processes, a float32 scalar on ``device``, above 0.

    A sum of losses divided by it, and then averaged over the processes, is the loss of the joint batch. If no process
    counts anything, all sums are 0, and so are the losses: the joint count is taken as at least 1.

    Every process must call this in every step, because the processes exchange their counts here. Within
    :func:`counts_of_this_process` they do not, and the result is this process's count, at least 1.

    Args:
        count: how many things this process's losses are summed over: a number or a scalar tensor.
        device: device of the losses.
    """
    if isinstance(count, torch.Tensor):
        total = count.detach().to(device=device, dtype=torch.float32, copy=True)
    else:
        total = torch.full((), count, dtype=torch.float32, device=device)  # unlike a copy, does not wait for the device
    processes = num_processes() if _is_shared else 1
    if processes > 1:
        dist.all_reduce(total)
    return total.clamp(min=1) / processes


@contextmanager
def counts_of_this_process() -> Iterator[None]:
    """Within this context, :func:`average_over_processes` does not communicate: each process may call it any
    number of times."""
    global _is_shared
    before, _is_shared = _is_shared, False
    try:
        yield
    finally:
        _is_shared = before


def counts_are_shared() -> bool:
    """Whether the processes act on one joint batch now: False within :func:`counts_of_this_process`."""
    return _is_shared
