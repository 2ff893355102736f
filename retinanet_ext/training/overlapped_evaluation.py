"""An evaluator that takes in one batch while the model computes the next."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from retinanet_ext.d2 import DatasetEvaluator

# Batches that may wait to be taken in: they and the model's outputs for them are kept until then.
BATCHES_AHEAD = 2


class OverlappedEvaluator(DatasetEvaluator):
    """Calls ``process`` of an evaluator in one thread, in order, up to ``BATCHES_AHEAD`` batches behind the model.

    An error in it is raised, as it is, by the next call of ``process`` or ``evaluate``; what waits then is given up.

    Args:
        evaluator: has ``reset``, ``process`` and ``evaluate``. Only ``process`` runs in the thread, and never at the
            same time as one of the others.
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
        """Take in one batch, later; neither `inputs` nor `outputs` may be changed from now on."""
        if self._pool is None:
            # A new thread would be on the first GPU, whichever the process works on.
            device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
            start = None if device is None else partial(torch.cuda.set_device, device)
            self._pool = ThreadPoolExecutor(1, "evaluator", initializer=start)
        while self._pending and (self._pending[0].done() or len(self._pending) >= BATCHES_AHEAD):
            self._finish_one()
        self._pending.append(self._pool.submit(self._process, inputs, outputs))

    # Whether gradients are recorded is up to each thread.
    @torch.no_grad()
    def _process(self, inputs, outputs):
        self._evaluator.process(inputs, outputs)

    def evaluate(self, *args, **kwargs) -> dict[str, Any] | None:
        """Wait for all batches; the evaluator's metrics."""
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
