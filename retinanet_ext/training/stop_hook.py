"""Stops inside a run: after a step or between two batches of an evaluation, on all processes together.

Every checkpoint holds a run as it is when step k and the hooks up to :class:`StopHook` are done: the checkpointer comes
before it, evaluation, best model and writers after it. A resumed run first runs these later hooks for k, then step
k + 1. So an evaluation that was interrupted, or never began, is made up for, and ``metrics.json`` gets its row.
"""

import logging
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

from retinanet_ext.d2 import comm, get_event_storage, hooks
from retinanet_ext.machine.processes import bare_model

from . import stops
from .metrics_file import MetricsFile, recent_scalars, restore_scalars
from .processes.running_statistics import average_buffers

# Bytes per second of a slow disk, to estimate the time of a checkpoint until one has been written.
_SLOW_DISK = 50e6
logger = logging.getLogger(__name__)


class StoppableLoader:
    """A test loader that ends early if a stop is wanted. All processes then raise :class:`stops.StopRequested`.

    Processes have different numbers of batches, so they agree after their last one. Until then, a stop of one process
    reaches the others through :func:`stops.tell_others_by`.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # not set yet, as while being unpickled
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._loader:
            if stops.stop_wanted():
                break
            yield batch
        reason = max(comm.all_gather(stops.code_of(stops.stop_wanted())))
        if reason:
            raise stops.StopRequested(stops.reason_of(reason))


class SaveTimer(hooks.HookBase):
    """Registered before the checkpointer, as :class:`StopHook` after it: the time between is that of a checkpoint."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def after_step(self) -> None:
        self.start = time.perf_counter()


class StopHook(hooks.HookBase):
    """Stops a run after a step, and makes a resumed run go on exactly where its checkpoint was written.

    Its state has the scalars that are still to be smoothed or written, and ``max_iter``.
    """

    def __init__(self, timer: SaveTimer, period: int, later_hooks: list, metrics: MetricsFile | None) -> None:
        """
        Args:
            timer: the hook before the checkpointer.
            period: that of evaluations; 0: only at the end.
            later_hooks: the hooks of this package and the engine that come after this one.
            metrics: the writer of ``metrics.json``; None on all processes but the main one.
        """
        self.timer, self.later_hooks, self.metrics = timer, later_hooks, metrics
        self._period = period
        self._restored: dict[str, Any] | None = None
        self._snapshot: tuple[int, dict[str, Any]] = (-1, {})
        self._step_start = time.perf_counter()

    def before_train(self) -> None:
        model = bare_model(self.trainer.model)
        # SGD and Adam keep one or two numbers for each weight.
        stops.expect_saving(3 * sum(p.numel() * p.element_size() for p in model.parameters()) / _SLOW_DISK)
        restored, start = self._restored, self.trainer.start_iter
        if restored is None or start == 0:
            return
        restore_scalars(get_event_storage(), restored["scalars"])
        if self.metrics is None:
            return
        if restored["max_iter"] == self.trainer.max_iter:
            self.metrics.resume(restored["last_written"])
        else:  # a complete run that is continued keeps the rows of its end
            self.metrics.resume(start)
            self.metrics.last_written = self.metrics.newest_before(start)

    def finish_iteration(self) -> None:
        """Run the later hooks for the iteration of the checkpoint. Called once all hooks have begun."""
        trainer, restored = self.trainer, self._restored
        if restored is None or trainer.start_iter == 0 or restored["max_iter"] != trainer.max_iter:
            return
        trainer.iter = trainer.storage.iter = trainer.start_iter - 1
        for hook in self.later_hooks:
            hook.after_step()
        trainer.iter = trainer.storage.iter = trainer.start_iter

    def before_step(self) -> None:
        self._step_start = time.perf_counter()

    def after_step(self) -> None:
        now = time.perf_counter()
        stops.step_took(self.timer.start - self._step_start)
        stops.expect_saving(now - self.timer.start)
        if self._period > 0 and (self.trainer.iter + 1) % self._period == 0:
            # For the checkpoint of an evaluation that is interrupted after another one has put its metrics.
            self._snapshot = (self.trainer.iter, self._current_state())
        # The reason came with the losses of all processes.
        if self.trainer._trainer.stop_reason:
            raise stops.StopRequested(self.trainer._trainer.stop_reason)

    def _current_state(self) -> dict[str, Any]:
        last_written = -1 if self.metrics is None else self.metrics.last_written
        scalars = recent_scalars(get_event_storage())
        return {"scalars": scalars, "last_written": last_written, "max_iter": self.trainer.max_iter}

    def state_dict(self) -> dict[str, Any]:
        """The state before the later hooks of this iteration; empty outside of training."""
        if getattr(self.trainer, "storage", None) is None:
            return {}
        iteration, state = self._snapshot
        return state if iteration == self.trainer.iter else self._current_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = dict(state_dict)


class StoppableTraining:
    """What a trainer of either engine adds to stop and to resume. A base class, before the engine's trainer."""

    def train(self):
        with stops.polled():
            return super().train()

    def before_train(self) -> None:
        super().before_train()
        with _explained_stop(self):
            for hook in self._hooks:
                if isinstance(hook, StopHook):
                    hook.finish_iteration()

    def after_step(self) -> None:
        with _explained_stop(self, save=True):
            super().after_step()

    def after_train(self) -> None:
        # Detectron2 counts one too many if no iteration was left.
        self.iter = min(self.iter, self.max_iter)
        with _explained_stop(self):
            super().after_train()


class _explained_stop:
    """On a stop, save what is not saved yet, say where, and leave ``metrics.json`` as it is."""

    def __init__(self, trainer, save: bool = False) -> None:
        self._trainer, self._save = trainer, save

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, stop, traceback) -> None:
        if not isinstance(stop, stops.StopRequested) or stop.message:
            return
        trainer = self._trainer
        stop_hook = next(hook for hook in trainer._hooks if isinstance(hook, StopHook))
        if stop_hook.metrics is not None:
            stop_hook.metrics.stopped = True
        done = min(trainer.iter + 1, trainer.max_iter)
        if self._save and not _saved_in(trainer):
            average_buffers(trainer.model)
            trainer.checkpointer.save(f"model_{trainer.iter:07d}", iteration=trainer.iter)
        # The others must not leave, and end the job, before the main process has written the file.
        comm.synchronize()
        path = trainer.checkpointer.get_checkpoint_file() or os.path.join(trainer.cfg.OUTPUT_DIR, "...")
        stop.message = (
            f"stopped by {stop.reason} after iteration {done} of {trainer.max_iter}: all is saved in {path}. Run the "
            "same command with --resume to go on."
        )
        logger.info("%s", stop.message)


def _saved_in(trainer) -> bool:
    """Whether the periodic checkpointer has saved this iteration."""
    done, period = trainer.iter + 1, trainer.cfg.SOLVER.CHECKPOINT_PERIOD
    return done >= trainer.max_iter or (period > 0 and done % period == 0)
