"""An evaluator that processes one batch while the model computes the next."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from retinanet_ext.d2 import DatasetEvaluator

# Number of batches that may wait for the evaluator. Their inputs and outputs stay in memory until then.
BATCHES_AHEAD = 2


class OverlappedEvaluator(DatasetEvaluator):
    """Calls ``process`` of an evaluator in one thread, in order, up to ``BATCHES_AHEAD`` batches behind the model.

    If the evaluator's ``process`` fails, a later call of ``process`` or ``evaluate`` raises the same error, and the
    batches that still wait are dropped.

    Args:
        evaluator: has ``reset``, ``process`` and ``evaluate``. Only ``process`` runs in the thread, and never at the
            same time as the other two.
    """

    def __init__(self, evaluator: Any) -> None:
        self._evaluator = evaluator
        self._pool: ThreadPoolExecutor | None = None
        self._pending: deque[Future] = deque()

    def reset(self) -> None:
        """Forget everything seen so far."""
        self._close()
        self._evaluator.reset()

    def process(self, inputs: list[dict], outputs: list) -> None:
        """Queue one batch for the evaluator. The caller must not change `inputs` or `outputs` afterwards."""
        if self._pool is None:
            # A new thread would use the first GPU, even if the process uses another one.
            device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
            start = None if device is None else partial(torch.cuda.set_device, device)
            self._pool = ThreadPoolExecutor(1, "evaluator", initializer=start)
        while self._pending and (self._pending[0].done() or len(self._pending) >= BATCHES_AHEAD):
            self._finish_one()
        self._pending.append(self._pool.submit(self._process, inputs, outputs))

    # The caller's no_grad does not hold in this thread.
    @torch.no_grad()
    def _process(self, inputs, outputs):
        self._evaluator.process(inputs, outputs)

    def evaluate(self, *args, **kwargs) -> dict[str, Any] | None:
        """Wait for all batches, then return the evaluator's metrics."""
        while self._pending:
            self._finish_one()
        self._close()
        return self._evaluator.evaluate(*args, **kwargs)

    def _finish_one(self):
        try:
            self._pending.popleft().result()
        except BaseException:
            self._close()
            raise

    def _close(self):
        self._pending.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
