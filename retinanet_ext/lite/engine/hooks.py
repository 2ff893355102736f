"""Hooks that run around the iterations of a training: times, rates, checkpoints, evaluation, writing."""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer

from retinanet_ext.machine.atomic_file import write_atomically

from .. import comm
from ..checkpointer import DetectionCheckpointer
from ..events import EventWriter
from .train_loop import HookBase, TrainerBase

logger = logging.getLogger(__name__)

Callback = Callable[[TrainerBase], None]


class CallbackHook(HookBase):
    """A hook made of functions, each of which takes the trainer."""

    def __init__(
        self,
        *,
        before_train: Callback | None = None,
        after_train: Callback | None = None,
        before_step: Callback | None = None,
        after_backward: Callback | None = None,
        after_step: Callback | None = None,
    ):
        moments = {"before_train": before_train, "before_step": before_step, "after_backward": after_backward}
        moments |= {"after_step": after_step, "after_train": after_train}
        self._functions = {moment: function for moment, function in moments.items() if function is not None}

    def _call(self, moment: str) -> None:
        if moment in self._functions:
            self._functions[moment](self.trainer)

    def before_train(self) -> None:
        self._call("before_train")

    def before_step(self) -> None:
        self._call("before_step")

    def after_backward(self) -> None:
        self._call("after_backward")

    def after_step(self) -> None:
        self._call("after_step")

    def after_train(self) -> None:
        self._call("after_train")
        # A function that refers to its trainer would keep the model in memory for as long as the hook lives.
        self._functions = {}


class IterationTimer(HookBase):
    """Puts ``time``, the seconds of an iteration without the other hooks' ``after_step``; logs a summary at the end.

    Register it first.
    """

    def __init__(self, warmup_iter: int = 3):
        """``warmup_iter``: the first iteration to measure, counted from 1; earlier iterations are slow."""
        self._warmup_iter = warmup_iter
        self._step_start = self._train_start = time.perf_counter()
        self._steps, self._step_seconds = 0, 0.0

    def before_train(self) -> None:
        self._train_start = time.perf_counter()
        self._steps, self._step_seconds = 0, 0.0

    def before_step(self) -> None:
        self._step_start = time.perf_counter()

    def after_step(self) -> None:
        if self.trainer.iter - self.trainer.start_iter + 1 < self._warmup_iter:
            return
        seconds = time.perf_counter() - self._step_start
        self._steps += 1
        self._step_seconds += seconds
        self.trainer.storage.put_scalars(time=seconds)

    def after_train(self) -> None:
        total = time.perf_counter() - self._train_start
        if self._steps:
            logger.info("Seconds per iteration: %.4f (mean of %d)", self._step_seconds / self._steps, self._steps)
        logger.info("Total training time: %s", timedelta(seconds=int(total)))


class PeriodicWriter(HookBase):
    """Calls writers every ``period`` iterations and at the end. Register it last."""

    def __init__(self, writers: list[EventWriter], period: int = 20):
        self._writers, self._period = writers, period

    def after_step(self) -> None:
        iterations_done = self.trainer.iter + 1
        if iterations_done % self._period == 0 or iterations_done == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()

    def after_train(self) -> None:
        for writer in self._writers:
            writer.write()  # other hooks put values after the last iteration
            writer.close()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's class as a hook: ``model_<iteration>`` every period, ``model_final`` at the end."""

    def before_train(self) -> None:
        self.max_iter = self.trainer.max_iter

    def after_step(self) -> None:
        self.step(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Saves ``<file_prefix>.pth`` whenever an evaluated metric is better than ever before.

    Register it after the hook that evaluates, with a checkpointer that does not tag a last checkpoint.
    ``<file_prefix>.json`` records the best value and its iteration, and a resumed training reads it. Checkpoints do not
    hold them, because the best model may be newer than the checkpoint resumed from, and because Detectron2 cannot load
    a trainer in which this hook has a state.
    """

    def __init__(
        self,
        eval_period: int,
        checkpointer: DetectionCheckpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ):
        """
        Args:
            eval_period: period of the evaluation; 0: only at the end.
            val_metric: name in the storage, such as ``bbox/AP``.
            mode: ``max`` or ``min``.
        """
        if mode not in ("max", "min"):
            raise ValueError(f"mode is {mode!r}; legal values: max, min")
        self._period, self._checkpointer = eval_period, checkpointer
        self._metric, self._mode, self._file_prefix = val_metric, mode, file_prefix
        self.best_metric: float | None = None
        self.best_iter: int | None = None

    def before_train(self) -> None:
        if self.trainer.start_iter == 0 or not os.path.exists(self._record_file):
            return
        try:
            with open(self._record_file, encoding="utf-8") as file:
                record = json.load(file)
            metric, value, iteration = record["metric"], record["value"], record["iteration"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self._record_file} cannot be read: {type(error).__name__}: {error}. It holds the best value of "
                f"{self._metric} so far; remove the file to choose the best model from now on"
            ) from error
        if metric == self._metric:
            self.best_metric, self.best_iter = value, iteration

    def after_step(self) -> None:
        if _evaluates_after_this_step(self.trainer, self._period):
            self._keep_if_best(self.trainer.iter)

    def after_train(self) -> None:
        if self.trainer.iter == self.trainer.max_iter:
            self._keep_if_best(self.trainer.iter - 1)

    @property
    def _record_file(self) -> str:
        return os.path.join(self._checkpointer.save_dir, self._file_prefix + ".json")

    def _is_better(self, value: float) -> bool:
        if self.best_metric is None:
            return True
        return value > self.best_metric if self._mode == "max" else value < self.best_metric

    def _keep_if_best(self, iteration: int) -> None:
        if not comm.is_main_process():
            return  # only the main process has results
        latest = self.trainer.storage.latest()
        if self._metric not in latest:
            known = ", ".join(name for name in sorted(latest) if "/" in name) or "none"
            logger.warning("no metric %r to choose the best model by; evaluated: %s", self._metric, known)
            return
        value, _ = latest[self._metric]
        if not math.isfinite(value) or not self._is_better(value):
            return
        self.best_metric, self.best_iter = value, iteration
        self._checkpointer.save(self._file_prefix, iteration=iteration)
        record = {"metric": self._metric, "value": value, "iteration": iteration}
        write_atomically(self._record_file, json.dumps(record))
        logger.info("%s = %.5f at iteration %d is the best so far", self._metric, value, iteration)


class LRScheduler(HookBase):
    """Puts ``lr`` and advances the schedule, after each iteration.

    ``lr`` is the rate of the group with the most parameters, because biases and norms may have other rates.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: "torch.optim.lr_scheduler.LRScheduler | None" = None,
    ):
        """Both default to the trainer's."""
        self._optimizer, self._scheduler = optimizer, scheduler
        self._main_group = 0

    @property
    def scheduler(self) -> "torch.optim.lr_scheduler.LRScheduler":
        return self._scheduler or self.trainer.scheduler

    def before_train(self) -> None:
        optimizer = self._optimizer or self.trainer.optimizer
        scheduled = getattr(self.scheduler, "optimizer", optimizer)
        if scheduled is not optimizer:
            logger.warning(
                "the schedule drives another optimizer than the trainer's, whose learning rate stays as it is: set "
                "trainer.scheduler = trainer.build_lr_scheduler(cfg, trainer.optimizer) too"
            )
        groups = optimizer.param_groups
        # Its index, because an optimizer that loads a state makes its groups anew.
        self._main_group = max(range(len(groups)), key=lambda index: len(groups[index]["params"]))

    def after_step(self) -> None:
        optimizer = self._optimizer or self.trainer.optimizer
        self.trainer.storage.put_scalar("lr", optimizer.param_groups[self._main_group]["lr"], smoothing_hint=False)
        self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return self.scheduler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scheduler.load_state_dict(state_dict)


class EvalHook(HookBase):
    """Calls an evaluation every ``eval_period`` iterations and at the end of a successful training.

    Numbers in the nested dict that it returns are put under joined names, such as ``bbox/AP``. NaN, the value of an
    undefined metric, is a number too. Other values (texts, lists) do not fit into a curve and are left out.
    """

    def __init__(self, eval_period: int, eval_function: Callable[[], Mapping[str, Any]], eval_after_train: bool = True):
        """``eval_period`` 0: only at the end. All processes call ``eval_function`` together."""
        self._period, self._function, self._after_train = eval_period, eval_function, eval_after_train

    def after_step(self) -> None:
        if _evaluates_after_this_step(self.trainer, self._period):
            self._evaluate()

    def after_train(self) -> None:
        if self._after_train and self.trainer.iter == self.trainer.max_iter:
            self._evaluate()

    def _evaluate(self) -> None:
        # Restore random states: how often a run evaluates must not change its training.
        cuda_device = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=cuda_device):
            results = self._function()
        if results:
            if not isinstance(results, Mapping):
                raise TypeError(f"an evaluation must return a dict of results, found {type(results).__name__}")
            for name, value in _flatten(results):
                self.trainer.storage.put_scalar(name, value, smoothing_hint=False)
        # Only the main process computes the metrics. Without this barrier the other processes would wait for it in
        # the next iteration, under the timeout of a gradient exchange.
        comm.synchronize()


def _evaluates_after_this_step(trainer: TrainerBase, period: int) -> bool:
    """Every ``period`` iterations, but not after the last one, which the evaluation at the end covers."""
    iterations_done = trainer.iter + 1
    return period > 0 and iterations_done % period == 0 and iterations_done != trainer.max_iter


def _flatten(results: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in results.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}/")
        elif isinstance(value, str):
            continue
        else:
            try:
                yield prefix + name, float(value)
            except (TypeError, ValueError):
                continue
