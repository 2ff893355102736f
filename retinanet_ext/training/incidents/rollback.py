"""Goes back to the last good checkpoint of a run, and on from there with a lower learning rate."""

import logging
import re
import weakref
from pathlib import Path
from typing import Any

import torch

from retinanet_ext.checkpoint.checked_checkpointer import CheckedCheckpointer
from retinanet_ext.checkpoint.checkpoint_file import read_checkpoint
from retinanet_ext.d2 import comm

logger = logging.getLogger(__name__)


class RollBack(Exception):
    """Raised inside a step: the run must go back. ``guard``: has ``go_back()``."""

    def __init__(self, guard: Any):
        super().__init__("the run goes back to its last good checkpoint")
        self.guard = guard


def make_steps_go_back(trainer: Any) -> None:
    """From now on, a step that raises :class:`RollBack` goes back, and repeats the iterations since the checkpoint.

    The data go on, and do not repeat.

    Args:
        trainer: a trainer of either engine, or a weak proxy of it.
    """
    # Weak: a step that refers to itself would keep the model alive.
    step = weakref.proxy(trainer._trainer)
    plain = type(trainer._trainer).run_step

    def run_step() -> None:
        try:
            plain(step)
        except RollBack as request:
            guard = request.guard
        else:
            return
        failed_at = trainer.iter
        trainer.iter = guard.go_back() + 1
        # The engine's loop cannot go back, so the iterations run here. Its hooks have begun a step already.
        trainer.storage.iter = trainer.iter
        while trainer.iter < failed_at:
            trainer.run_step()
            trainer.after_step()
            trainer.iter += 1
            trainer.before_step()
        trainer.run_step()

    trainer._trainer.run_step = run_step


class _UntaggedCheckpointer(CheckedCheckpointer):
    """Saves checkpoints that a resumed run does not continue from."""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        pass


class RunRollback:
    """The checkpoints that a run can go back to: those that it wrote or was resumed from, or else its start."""

    def __init__(self, cfg: Any):
        self._folder = Path(cfg.OUTPUT_DIR)
        self._start_file = self._folder / "incidents" / "start.pth"
        self._start_iter = 0
        self._foreign: dict[str, int] = {}

    def remember_start(self, trainer: Any) -> None:
        """Call before the first iteration: saves the start of a new run, and what earlier runs left in its folder."""
        self._start_iter = trainer.start_iter
        if trainer.start_iter > 0:
            return
        self._foreign = {path.name: path.stat().st_mtime_ns for path in self._folder.glob("*.pth")}
        others = trainer.checkpointer.checkpointables
        self._start_file.parent.mkdir(parents=True, exist_ok=True)
        if comm.is_main_process():
            checkpointer = _UntaggedCheckpointer(trainer.checkpointer.model, str(self._start_file.parent), **others)
            checkpointer.save(self._start_file.stem)
        comm.synchronize()

    def load_last_good(self, trainer: Any) -> int:
        """Load weights, optimizer and schedule; returns the iteration after which they were saved, -1 for the start.

        Raises:
            FloatingPointError: no checkpoint of this run can be read and is finite.
        """
        found = self._find(trainer.iter) if comm.is_main_process() else None
        path = comm.all_gather(found)[0]
        if path is None:
            raise FloatingPointError(
                f"no checkpoint of this run in {self._folder} to go back to; start again with a lower SOLVER.BASE_LR"
            )
        trainer.checkpointer.load(path)
        trainer._trainer.history.clear()
        return -1 if path == str(self._start_file) else trainer.iter

    def lower_rates(self, trainer: Any, factor: float) -> None:
        """Multiply the learning rates of optimizer and schedule. Both are saved with the next checkpoint."""
        for group in trainer.optimizer.param_groups:
            group["lr"] *= factor
            if "initial_lr" in group:
                group["initial_lr"] *= factor
        trainer.scheduler.base_lrs = [rate * factor for rate in trainer.scheduler.base_lrs]

    def save(self, trainer: Any, reached: int) -> None:
        """Write the state again, so that a run that is resumed from here has the lower rate."""
        if comm.is_main_process() and reached >= 0:
            trainer.checkpointer.save(f"model_{reached:07d}", iteration=reached)
        comm.synchronize()

    def _find(self, iteration: int) -> str | None:
        numbered = [path for path in self._folder.glob("model_*.pth") if re.fullmatch(r"model_\d{7}", path.stem)]
        paths = sorted(numbered, key=lambda path: path.name, reverse=True)
        last = self._folder / "last_checkpoint"
        if last.is_file():
            paths.insert(0, self._folder / last.read_text(encoding="utf-8", errors="replace").strip())
        if self._start_iter == 0:
            paths = [path for path in paths if path.is_file() and self._is_of_this_run(path)] + [self._start_file]
        return next((str(path) for path in paths if _is_good(path, iteration)), None)

    def _is_of_this_run(self, path: Path) -> bool:
        return self._foreign.get(path.name) != path.stat().st_mtime_ns


def _is_good(path: Path, iteration: int) -> bool:
    """Whether a checkpoint can be read, is of an earlier iteration and has finite weights."""
    try:
        checkpoint = read_checkpoint(str(path))
        reached = checkpoint["trainer"]["iteration"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("no rollback to %s: %s: %s", path, type(error).__name__, error)
        return False
    weights = (value for value in checkpoint["model"].values() if isinstance(value, torch.Tensor))
    if not all(bool(value.isfinite().all()) for value in weights):
        logger.warning("no rollback to %s: its weights are not finite", path)
        return False
    return reached <= iteration
