"""What the losses of a micro-batch are multiplied by, where its counts are known only after it has run."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch

from .shared_count import average_over_processes, counts_of_this_process


class MicroBatchShares:
    """Shares of micro-batches in the images of all processes.

    Which RoIs a micro-batch draws is known only after it has run. So each micro-batch divides its losses by its own
    counts, and is then weighted by its share of the images. Processes may have different numbers of micro-batches, or
    no images: they communicate in :meth:`prepared` only, once.
    """

    def __init__(self):
        self._shares: deque[torch.Tensor] = deque()

    @contextmanager
    def prepared(self, micro_batches: Sequence[list[dict]], device: torch.device) -> Iterator[None]:
        """Within this context, :meth:`of_next` gives the shares of these micro-batches, in order."""
        sizes = [len(batch) for batch in micro_batches]
        images = average_over_processes(sum(sizes), device)
        self._shares.extend(size / images for size in sizes)
        try:
            yield
        finally:
            self._shares.clear()

    @contextmanager
    def of_next(self) -> Iterator[torch.Tensor | float]:
        """The share of the next micro-batch, a scalar ``()``; within this context processes do not share counts.

        Outside of :meth:`prepared` a batch is whole: the share is 1, and counts are shared.
        """
        share = self._shares.popleft() if self._shares else None
        with nullcontext() if share is None else counts_of_this_process():
            yield 1.0 if share is None else share
