"""Storage for the numbers of a training run, and writers that copy them to files and to the log."""

import functools
import json
import logging
import math
import os
import time
from collections import defaultdict
from datetime import timedelta

import torch
from fvcore.common.history_buffer import HistoryBuffer

logger = logging.getLogger(__name__)

_active_storages: list["EventStorage"] = []


def has_event_storage() -> bool:
    """Whether the code runs inside a ``with EventStorage(...)`` block."""
    return bool(_active_storages)


def get_event_storage() -> "EventStorage":
    """The innermost active storage.

    Raises:
        AssertionError: no storage is active (Detectron2 raises the same type, so one handler serves both).
    """
    if not _active_storages:
        raise AssertionError(
            "no event storage is active: open one with `with EventStorage(start_iter):` around the loop that "
            "writes metrics (a trainer does)"
        )
    return _active_storages[-1]


class EventStorage:
    """Scalars by name, each with its history over iterations, and images waiting to be written.

    A context manager: inside ``with EventStorage(start_iter) as storage:``, :func:`get_event_storage`
    returns it.
    """

    def __init__(self, start_iter: int = 0):
        self.iter = start_iter
        self._history: dict[str, HistoryBuffer] = defaultdict(HistoryBuffer)
        self._latest: dict[str, tuple[float, int]] = {}
        self._smoothing_hints: dict[str, bool] = {}
        # (name, image, iteration); `take_images` empties the list.
        self._vis_data: list[tuple[str, torch.Tensor, int]] = []

    @property
    def iteration(self) -> int:
        """The current iteration, as ``iter``."""
        return self.iter

    def step(self) -> None:
        """Move to the next iteration. Trainers set ``iter`` themselves and do not call this."""
        self.iter += 1

    def put_scalar(self, name: str, value: float, smoothing_hint: bool = True, cur_iter: int | None = None) -> None:
        """Add one value to the history of ``name``.

        Args:
            value: a number, or a tensor of one element.
            smoothing_hint: whether the value is noisy, so that writers show a median over recent iterations.
                All values of one name must have the same hint.
            cur_iter: the iteration the value belongs to; by default the current iteration.

        Raises:
            ValueError: ``value`` is not a number, or ``name`` was put with the other hint before.
        """
        if self._smoothing_hints.setdefault(name, smoothing_hint) != smoothing_hint:
            raise ValueError(
                f"scalar {name!r} was put with smoothing_hint={not smoothing_hint} before, now with "
                f"smoothing_hint={smoothing_hint}; use the same hint for all its values"
            )
        value, cur_iter = float(value), self.iter if cur_iter is None else cur_iter
        self._history[name].update(value, cur_iter)
        self._latest[name] = (value, cur_iter)

    def put_scalars(self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **scalars: float) -> None:
        """:meth:`put_scalar` for each keyword argument."""
        for name, value in scalars.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_image(self, img_name: str, img_tensor: torch.Tensor) -> None:
        """Keep an image for the writers: ``(C, H, W)``, uint8 in 0-255 or float in 0-1, RGB."""
        self._vis_data.append((img_name, img_tensor, self.iter))

    def history(self, name: str) -> HistoryBuffer:
        """All values of one scalar.

        Raises:
            KeyError: nothing was put under ``name``.
        """
        if name not in self._history:
            raise KeyError(f"no scalar {name!r} in this storage; it holds: {', '.join(sorted(self._history))}")
        return self._history[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        """All values of all scalars, by name."""
        return self._history

    def smoothing_hints(self) -> dict[str, bool]:
        """Whether each scalar is noisy, as :meth:`put_scalar` was told."""
        return self._smoothing_hints

    def latest(self) -> dict[str, tuple[float, int]]:
        """The last value of every scalar, with the iteration it belongs to."""
        return self._latest

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """As :meth:`latest`, but noisy scalars are the median over their last ``window_size`` iterations."""
        return {
            name: (
                self._history[name].median(self.count_samples(name, window_size))
                if self._smoothing_hints[name]
                else value,
                iteration,
            )
            for name, (value, iteration) in self._latest.items()
        }

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """How many values of ``name`` lie in the ``window_size`` iterations up to its newest value."""
        values = self._history[name].values()
        oldest = values[-1][1] - window_size
        count = 0
        for _, iteration in reversed(values):
            if iteration <= oldest:
                break
            count += 1
        return count

    def newer_than(self, iteration: int, window_size: int) -> dict[str, tuple[float, int]]:
        """Entries of :meth:`latest_with_smoothing_hint` after ``iteration``: those a writer has not written yet."""
        latest = self.latest_with_smoothing_hint(window_size)
        return {name: (value, when) for name, (value, when) in latest.items() if when > iteration}

    def take_images(self) -> list[tuple[str, torch.Tensor, int]]:
        """Removes and returns all images not written yet: name, image ``(C, H, W)`` and iteration of each."""
        images, self._vis_data = self._vis_data, []
        return images

    def __enter__(self) -> "EventStorage":
        _active_storages.append(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        _active_storages.pop()


class EventWriter:
    """Copies the content of the active storage elsewhere, at each call of :meth:`write`."""

    def write(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Release files; nothing is written afterwards."""


class JSONWriter(EventWriter):
    """Appends to a file of JSON lines: one object per iteration, with ``iteration`` and the new scalars.

    Keys are sorted. A value that is not finite is written as ``null``, which every JSON reader accepts.
    """

    def __init__(self, json_file: str, window_size: int = 20):
        """``window_size``: iterations over which noisy scalars are smoothed (median)."""
        self._path, self._window_size = json_file, window_size
        self._last_write = -1

    def write(self) -> None:
        rows: dict[int, dict[str, float | None]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().newer_than(self._last_write, self._window_size).items():
            rows[iteration][name] = float(value) if math.isfinite(value) else None
        with open(self._path, "a", encoding="utf-8") as file:
            for iteration in sorted(rows):
                file.write(json.dumps({**rows[iteration], "iteration": iteration}, sort_keys=True) + "\n")
            # Force the lines to disk: after a crash of the machine, this file explains the run.
            file.flush()
            os.fsync(file.fileno())
        self._last_write = max(rows, default=self._last_write)


class TensorboardXWriter(EventWriter):
    """Writes scalars and images to a TensorBoard folder."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs: object):
        """``kwargs`` go to :class:`torch.utils.tensorboard.SummaryWriter`."""
        self._log_dir, self._kwargs = log_dir, kwargs
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        storage, writer = get_event_storage(), self._writer
        scalars = storage.newer_than(self._last_write, self._window_size)
        for name, (value, iteration) in scalars.items():
            writer.add_scalar(name, value, iteration)
        self._last_write = max([self._last_write, *(iteration for _, iteration in scalars.values())])
        for name, image, iteration in storage.take_images():
            writer.add_image(name, image, iteration)

    @functools.cached_property
    def _writer(self):
        # Importing TensorBoard takes seconds, so only a run that writes does it.
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(self._log_dir, **self._kwargs)

    def close(self) -> None:
        if "_writer" in vars(self):
            self._writer.close()


class CommonMetricPrinter(EventWriter):
    """Logs one plain line: iteration, time left, losses, seconds per iteration, learning rate, GPU memory.

    Of the other scalars it shows those with ``[metric]`` in their name.
    """

    def __init__(self, max_iter: int | None = None, window_size: int = 20):
        """``max_iter``: last iteration + 1, needed for the time left; ``None`` omits the time left.

        The lines go to the attribute ``logger``, which may be replaced.
        """
        self._max_iter, self._window_size = max_iter, window_size
        self._last_line: tuple[int | None, float] = (None, 0.0)
        self.logger = logger

    def write(self) -> None:
        storage = get_event_storage()
        if self._max_iter is not None and storage.iter >= self._max_iter:
            return  # called after the last iteration, whose line is already logged
        smoothed = storage.latest_with_smoothing_hint(self._window_size)
        words = [f"iter: {storage.iter}"]
        eta_seconds = self._eta_seconds(storage)
        if eta_seconds is not None:
            if "time" in smoothed:
                storage.put_scalar("eta_seconds", eta_seconds, smoothing_hint=False)
            words.insert(0, f"eta: {timedelta(seconds=int(eta_seconds))}")
        words += [f"{name}: {value:.4g}" for name, (value, _) in smoothed.items() if "loss" in name]
        words += [f"{name}: {value:.4g}" for name, (value, _) in smoothed.items() if "[metric]" in name]
        for name in ("time", "data_time"):
            if name in smoothed:
                words.append(f"{name}: {storage.history(name).avg(self._window_size):.4f}")
        if "lr" in smoothed:
            words.append(f"lr: {smoothed['lr'][0]:.5g}")
        if torch.cuda.is_available():
            words.append(f"max_mem: {torch.cuda.max_memory_allocated() // 2**20}M")
        self.logger.info("  ".join(words))

    def _eta_seconds(self, storage: EventStorage) -> float | None:
        """From the iterations' times; in a loop that does not put them, from the time since the last line."""
        if self._max_iter is None:
            return None
        (last_iter, last_time), self._last_line = self._last_line, (storage.iter, time.perf_counter())
        if "time" in storage.histories():
            seconds_per_iteration = storage.history("time").median(10 * self._window_size)
        elif last_iter is not None and storage.iter > last_iter:
            seconds_per_iteration = (self._last_line[1] - last_time) / (storage.iter - last_iter)
        else:
            return None
        return float(seconds_per_iteration * (self._max_iter - storage.iter - 1))
