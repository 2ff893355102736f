"""How far a long prediction is: a bar on a terminal, else a line in the log every few seconds."""

import logging
import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0

logger = logging.getLogger(__name__)


class ProgressReport:
    """Use as a context; call :meth:`update` after each item.

    Args:
        total: number of items, or 0 if unknown.
        unit: what one item is called: "image", "frame".
    """

    def __init__(self, total: int, unit: str) -> None:
        self.total = total
        self.unit = unit
        self.done = 0

    def __enter__(self) -> "ProgressReport":
        self._bar = tqdm(total=self.total or None, unit=self.unit) if sys.stderr.isatty() else None
        self._started = self._last_line = time.monotonic()
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self) -> None:
        """Count one item."""
        self.done += 1
        if self._bar is not None:
            self._bar.update()
            return
        now = time.monotonic()
        if now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            of = f" of {self.total}" if self.total else ""
            rate = self.done / (now - self._started)
            logger.info("%d%s %ss, %.1f %ss/s", self.done, of, self.unit, rate, self.unit)
