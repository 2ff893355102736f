"""Progress of a training run: a bar on a terminal, quiet lines elsewhere."""

import datetime
import logging
import math
import os
import sys
import threading
import time

import torch
from tqdm import tqdm

from retinanet_ext.d2 import EventWriter, get_event_storage, hooks

logger = logging.getLogger(__name__)


class FirstProgress(hooks.HookBase):
    """Says before the first iteration what will be done, and soon afterwards how long it takes.

    The progress line comes every 20 iterations, which may be minutes on a CPU. Until then a timer reports, so that
    there is news even if one iteration takes long.
    """

    FIRST_SECONDS, NEXT_SECONDS, UNTIL_ITERATION = 5.0, 30.0, 20

    def __init__(self, *, images_per_batch: int, num_images: int | None, device: str):
        """
        Args:
            images_per_batch: images in a batch, over all processes.
            num_images: images in the training set; None if unknown.
            device: where the model is.
        """
        self._images_per_batch, self._num_images, self._device = images_per_batch, num_images, device
        self._timer: threading.Timer | None = None

    def before_train(self) -> None:
        iterations = self.trainer.max_iter - self.trainer.start_iter
        images = iterations * self._images_per_batch
        epochs = f", {images / self._num_images:.1f} times each of {self._num_images}" if self._num_images else ""
        logger.info(
            "Training on %s: %d iterations of %d images%s.", self._device, iterations, self._images_per_batch, epochs
        )
        self._start = time.perf_counter()
        self._wait(self.FIRST_SECONDS)

    def after_train(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def report(self) -> None:
        """Log how far the training is, and look again later."""
        try:
            done, seconds = self.trainer.iter - self.trainer.start_iter, time.perf_counter() - self._start
        except ReferenceError:  # the trainer is gone without an end of its training
            return
        if done >= self.UNTIL_ITERATION:
            return
        # The first iteration sets up memory and kernels, and takes a multiple of the others.
        if done >= 3:
            left = seconds / done * (self.trainer.max_iter - self.trainer.iter)
            left = f"about {datetime.timedelta(seconds=round(left))} left, evaluations not counted"
        else:
            left = "too few to tell how long the rest will take, because the first takes longest"
        planned = self.trainer.max_iter - self.trainer.start_iter
        logger.info("after %.0f s: %d of %d iterations done, %s", seconds, done, planned, left)
        self._wait(self.NEXT_SECONDS)

    def _wait(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self.report)
        self._timer.daemon = True
        self._timer.start()


class ProgressWriter(EventWriter):
    """Shows epoch, iteration, time left, losses, learning rate, images per second and memory."""

    def __init__(self, *, max_iter: int, images_per_batch: int, num_images: int | None, window_size: int = 20):
        """
        Args:
            max_iter: iterations of the run.
            images_per_batch: images in a batch, over all processes.
            num_images: images in the training set, to compute the epoch; None if unknown.
            window_size: iterations over which values are smoothed.
        """
        self.max_iter = max_iter
        self.images_per_batch = images_per_batch
        self.num_images = num_images
        self.window_size = window_size
        # tqdm's own rate and time left are not shown: they would include iterations before a resume, and evaluations.
        layout = "{percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt}{postfix}"
        self._bar = tqdm(total=max_iter, dynamic_ncols=True, bar_format=layout) if _has_room_for_a_bar() else None

    def write(self) -> None:
        storage = get_event_storage()
        iteration = storage.iter + 1
        if iteration > self.max_iter:
            return  # the engines write once more after the last iteration, for the evaluation's metrics
        line = ", ".join(self._fields(storage, iteration))
        if self._bar is None:
            logger.info("iteration %d/%d, %s", iteration, self.max_iter, line)
        else:
            self._bar.n = iteration
            self._bar.set_postfix_str(line)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _fields(self, storage, iteration: int):
        if self.num_images:
            yield f"epoch {iteration * self.images_per_batch / self.num_images:.2f}"
        histories = storage.histories()
        if "time" in histories:
            # The global average includes the pauses for evaluation; the median of recent steps does not.
            seconds = histories["time"].median(self.window_size)
            left = datetime.timedelta(seconds=int(seconds * (self.max_iter - iteration)))
            yield f"eta {left}"
            yield f"{self.images_per_batch / max(seconds, 1e-9):.1f} images/s"
        # A terminal cuts the line off at its width, so the fields that vary in number and length come last.
        yield f"memory {_memory_mb():.0f} MB"
        for name in sorted(histories):
            if "loss" in name:
                yield f"{name} {histories[name].median(self.window_size):.3f}"
        if "lr" in histories:
            yield f"lr {histories['lr'].latest():.2e}"


def _has_room_for_a_bar() -> bool:
    """Whether standard error is a terminal that can show a bar. Containers and schedulers make terminals of width 0."""
    if not sys.stderr.isatty():
        return False
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        return True


def _memory_mb() -> float:
    """Peak memory of the GPU if the run uses one, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kilobytes, macOS bytes.
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
