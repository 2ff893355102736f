"""Ends a run as finished when its metric no longer improves."""

import json
import logging
import math
import os
from typing import Any

from retinanet_ext.d2 import CfgNode, comm, hooks
from retinanet_ext.machine.atomic_file import write_atomically

FILE_NAME = "early_stop.json"
KEY = "TEST.EARLY_STOP.PATIENCE"

logger = logging.getLogger(__name__)


class EarlyStop(BaseException):
    """Leaves the loop over iterations. No ``Exception``: the engines log those as an error, and this is none."""


class EarlyStopHook(hooks.HookBase):
    """Counts evaluations without improvement, and ends the run after too many of them, on all processes together.

    ``early_stop.json`` in the output folder has the value of every evaluation, and a resumed run reads those before its
    first iteration. It is no state in the checkpoint: Detectron2 cannot load a trainer in which another hook has one.
    Register the hook on every process, after those that evaluate and that save the best checkpoint.
    """

    def __init__(self, output_dir: str, metric: str, *, patience: int, min_delta: float, period: int) -> None:
        """
        Args:
            output_dir: the folder of the run.
            metric: name in the storage, such as ``bbox/AP``; higher is better.
            patience: this many evaluations in a row without improvement end the run.
            min_delta: a value must be above the best one by more than this, or it is no improvement.
            period: that of the evaluation, in iterations.
        """
        self._path = os.path.join(output_dir, FILE_NAME)
        self._metric, self._patience, self._min_delta, self._period = metric, patience, min_delta, period
        self._values: list[tuple[int, float | None]] = []  # (iteration, value) of each evaluation

    def before_train(self) -> None:
        start = self.trainer.start_iter
        earlier = self._read() if comm.is_main_process() and start > 0 else []
        # Only the main process reads, so that all go on with the same values.
        self._values = [(iteration, value) for iteration, value in comm.all_gather(earlier)[0] if iteration < start]

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period or done == self.trainer.max_iter:
            return
        # Only the main process has results.
        value = comm.all_gather(self._value() if comm.is_main_process() else None)[0]
        self._values.append((self.trainer.iter, value))
        best, best_iteration, waited = best_and_waited(self._values, self._min_delta)
        if comm.is_main_process():
            self._write()
        if waited < self._patience:
            return
        shown = "none" if best is None else f"{best:.5f} at iteration {best_iteration}"
        logger.info(
            "Early stop at iteration %d: %s did not improve by more than %g in %d evaluations (%s %d); the best is %s",
            self.trainer.iter, self._metric, self._min_delta, waited, KEY, self._patience, shown,
        )  # fmt: skip
        self._finish()

    def _finish(self) -> None:
        trainer = self.trainer
        if comm.is_main_process():
            trainer.checkpointer.save("model_final", iteration=trainer.iter)
        # What hooks take for a finished run: they evaluate and write as after the last iteration.
        trainer.iter += 1
        trainer.max_iter = trainer.iter
        raise EarlyStop

    def _value(self) -> float | None:
        """The metric of the evaluation that just ended; None, with a warning, if it has none."""
        latest = self.trainer.storage.latest()
        value, iteration = latest.get(self._metric, (None, None))
        if value is None or iteration != self.trainer.iter:
            known = ", ".join(name for name in sorted(latest) if "/" in name) or "none"
            logger.warning(
                "early stop: no metric %r in this evaluation, which counts as no improvement; evaluated: %s",
                self._metric, known,
            )  # fmt: skip
            return None
        if not math.isfinite(value):
            logger.warning("early stop: %s is %s, which counts as no improvement", self._metric, value)
            return None
        return float(value)

    def _write(self) -> None:
        best, iteration, waited = best_and_waited(self._values, self._min_delta)
        content = {"metric": self._metric, "best": best, "best_iteration": iteration}
        content |= {"evaluations_without_improvement": waited, "values": self._values}
        write_atomically(self._path, json.dumps(content) + "\n")

    def _read(self) -> list[tuple[int, float | None]]:
        if not os.path.exists(self._path):
            return []
        try:
            with open(self._path, encoding="utf-8") as file:
                content = json.load(file)
            values = [(int(i), None if value is None else float(value)) for i, value in content["values"]]
            return values if content["metric"] == self._metric else []
        except (KeyError, TypeError, ValueError) as error:
            what = f"{type(error).__name__}: {error}"
            logger.warning("%s cannot be read (%s); evaluations are counted anew for the early stop", self._path, what)
            return []


def best_and_waited(
    values: list[tuple[int, float | None]], min_delta: float
) -> tuple[float | None, int | None, int]:
    """The best value, its iteration, and how many evaluations have passed since without improvement.

    Args:
        values: (iteration, value) of each evaluation, in order; None is no improvement.
        min_delta: an improvement is above the best value by more than this.
    """
    best = best_iteration = None
    waited = 0
    for iteration, value in values:
        waited += 1
        if value is not None and (best is None or value > best + min_delta):
            best, best_iteration, waited = value, iteration, 0
    return best, best_iteration, waited


def early_stop_hooks(trainer: Any) -> list[EarlyStopHook]:
    """The hook that TEST.EARLY_STOP asks for; none with PATIENCE 0.

    Raises:
        ValueError: no evaluation, or no metric, to decide by.
    """
    cfg: CfgNode = trainer.cfg
    keys, names = cfg.TEST.EARLY_STOP, cfg.DATASETS.TEST
    if keys.PATIENCE == 0:
        return []
    metric = keys.METRIC or cfg.TEST.BEST_METRIC
    wanting = {"TEST.EVAL_PERIOD": cfg.TEST.EVAL_PERIOD > 0, "DATASETS.TEST": len(names) > 0}
    wanting["TEST.EARLY_STOP.METRIC (or TEST.BEST_METRIC)"] = bool(metric)
    for key, is_set in wanting.items():
        if not is_set:
            raise ValueError(f"{KEY} is {keys.PATIENCE}, which needs {key}; set it, or {KEY} 0")
    if len(names) > 1:  # then the engines prefix metrics with the dataset's name
        metric = f"{names[0]}/{metric}"
    settings = {"patience": keys.PATIENCE, "min_delta": keys.MIN_DELTA, "period": cfg.TEST.EVAL_PERIOD}
    return [EarlyStopHook(cfg.OUTPUT_DIR, metric, **settings)]
