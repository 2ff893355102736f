"""The evaluator interface, and the loop that runs a model over a dataset and feeds evaluators."""

from __future__ import annotations

import contextlib
import datetime
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from .. import comm

logger = logging.getLogger(__name__)

LOG_PERIOD_SECONDS = 5.0
# cuDNN autotuning and lazy initialisation make the first batches slow; they would distort the ETA.
WARMUP_BATCHES = 5


class DatasetEvaluator:
    """Turns (inputs, outputs) of a model into metrics. Subclasses override what they need.

    The order of calls is `reset`, then `process` once per batch, then `evaluate` once.
    """

    def reset(self) -> None:
        """Forgets everything seen so far."""

    def process(self, inputs: list[dict], outputs: list) -> None:
        """Processes one batch.

        Args:
            inputs: the model's input, one dict per image.
            outputs: what the model returned for it, one item per image.
        """

    def evaluate(self) -> dict[str, Any] | None:
        """Computes the metrics from all that was processed.

        Returns:
            `{task: {metric: value}}`, for instance `{"bbox": {"AP": 38.5}}`; None or empty in processes other
            than the main one.
        """


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators fed by one pass over the data; their results are merged into one dict."""

    def __init__(self, evaluators: Iterable[DatasetEvaluator]):
        self._evaluators = list(evaluators)

    def reset(self) -> None:
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs: list[dict], outputs: list) -> None:
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> OrderedDict[str, Any]:
        """Results of all evaluators, in their order.

        Raises:
            ValueError: two evaluators return the same key.
        """
        merged: OrderedDict[str, Any] = OrderedDict()
        source: dict[str, str] = {}
        for evaluator in self._evaluators:
            # Every process must call evaluate (it may communicate), but only the main one has results.
            results = evaluator.evaluate()
            if results is None or not comm.is_main_process():
                continue
            name = type(evaluator).__name__
            for key, value in results.items():
                if key in merged:
                    raise ValueError(
                        f"two evaluators return results under the key {key!r}: {source[key]} and {name}. "
                        "Run them separately, or give one of them another key."
                    )
                merged[key], source[key] = value, name
        return merged


def inference_on_dataset(
    model: Callable[[list[dict]], list],
    data_loader: Iterable[list[dict]],
    evaluator: DatasetEvaluator | Sequence[DatasetEvaluator] | None,
    callbacks: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, Any]:
    """Runs a model over all batches of a loader, without gradients, and evaluates its outputs.

    Args:
        model: called with a batch. An `nn.Module` is put into eval mode; afterwards, also after an error,
            each of its submodules is put back into its previous mode.
        data_loader: yields batches, each a list of dicts. If it has a length, progress is logged with an ETA.
        evaluator: one evaluator, a sequence of them, or None to run the model only.
        callbacks: functions without arguments, all optional: `on_start`, `on_end`, and around each call of
            the model `before_inference`, `after_inference`.

    Returns:
        The result of the evaluator; an empty dict if that is None (as in processes other than the main one).
    """
    if evaluator is None:
        evaluator = DatasetEvaluators([])
    elif isinstance(evaluator, Sequence):
        evaluator = DatasetEvaluators(evaluator)
    hooks = _Callbacks(callbacks)
    progress = _Progress(len(data_loader) if hasattr(data_loader, "__len__") else None)
    evaluator.reset()
    with _eval_mode(model), torch.no_grad():
        hooks("on_start")
        # Reset after each batch, so that its images and outputs are freed before the next batch loads.
        inputs = outputs = None
        progress.start()
        for inputs in data_loader:
            progress.lap("data")
            hooks("before_inference")
            outputs = model(inputs)
            hooks("after_inference")
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            progress.lap("model")
            evaluator.process(inputs, outputs)
            inputs = outputs = None
            progress.lap("evaluator")
            progress.batch_done()
        hooks("on_end")
    progress.log_total()
    comm.synchronize()
    results = evaluator.evaluate()
    return {} if results is None else results


class _Callbacks:
    """Calls the callback of a name, if it was given."""

    LEGAL = ("on_start", "before_inference", "after_inference", "on_end")

    def __init__(self, functions: Mapping[str, Callable[[], Any]] | None):
        self._functions = functions or {}
        unknown = sorted(set(self._functions) - set(self.LEGAL))
        if unknown:
            raise ValueError(f"unknown callbacks {unknown}; legal names: {', '.join(self.LEGAL)}")

    def __call__(self, name: str) -> None:
        if name in self._functions:
            self._functions[name]()


@contextlib.contextmanager
def _eval_mode(model: Any) -> Iterator[None]:
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    # Modes are restored one by one: `model.train()` would also switch submodules that were frozen in eval mode.
    modes = [module.training for module in modules]
    if modules:
        model.eval()
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


class _Progress:
    """Logs the seconds per batch of each part of the work, and the remaining time, every few seconds."""

    def __init__(self, total: int | None):
        self._total = total
        self._done = 0
        self._seconds = {"data": 0.0, "model": 0.0, "evaluator": 0.0}
        self._counted = 0

    def start(self) -> None:
        logger.info("Inference on %s batches", "an unknown number of" if self._total is None else self._total)
        self._begin = self._lap_begin = self._last_log = time.perf_counter()

    def lap(self, part: str) -> None:
        if part == "data" and self._done == WARMUP_BATCHES:
            self._seconds = dict.fromkeys(self._seconds, 0.0)
            self._counted = 0
        now = time.perf_counter()
        self._seconds[part] += now - self._lap_begin
        self._lap_begin = now

    def batch_done(self) -> None:
        self._done += 1
        self._counted += 1
        now = time.perf_counter()
        if now - self._last_log >= LOG_PERIOD_SECONDS:
            self._last_log = now
            logger.info("%s/%s batches; %s%s", self._done, self._total or "?", self._per_batch(), self._eta())

    def log_total(self) -> None:
        elapsed = datetime.timedelta(seconds=round(time.perf_counter() - self._begin))
        logger.info(
            "Inference done: %d batches in %s; %s (per process, %d in all)",
            self._done, elapsed, self._per_batch(), comm.get_world_size(),
        )  # fmt: skip

    def _per_batch(self) -> str:
        mean = {part: seconds / max(self._counted, 1) for part, seconds in self._seconds.items()}
        parts = ", ".join(f"{part} {seconds:.4f}" for part, seconds in mean.items())
        return f"{sum(mean.values()):.4f} s/batch ({parts})"

    def _eta(self) -> str:
        if self._total is None or self._counted == 0:
            return ""
        remaining = (self._total - self._done) * sum(self._seconds.values()) / self._counted
        return f"; ETA {datetime.timedelta(seconds=round(remaining))}"
