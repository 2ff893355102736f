"""``metrics.json``: a line for each iteration that is written, the same for a resumed run as for an unbroken one."""

import json
import logging
import math
import os
from collections import defaultdict
from pathlib import Path

from retinanet_ext.d2 import EventWriter, get_event_storage
from retinanet_ext.machine.atomic_file import write_atomically

WINDOW = 20
# The engines leave out the first iterations after each start when they measure times.
_MEASURED_ANEW = ("time", "eta_seconds")
logger = logging.getLogger(__name__)


class MetricsFile(EventWriter):
    """Appends JSON lines: one object per iteration, with ``iteration`` and the scalars that are new.

    Keys are sorted. Noisy scalars are medians over the last 20 iterations. A value that is not finite is written as
    ``null``, which every JSON reader accepts.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        # The newest iteration in the file. Part of the state of a run.
        self.last_written = -1
        # A run that stops early writes nothing more: the resumed run writes the same rows as an unbroken run would.
        self.stopped = False

    def write(self) -> None:
        if self.stopped:
            return
        rows: dict[int, dict[str, float | None]] = defaultdict(dict)
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(WINDOW).items():
            if iteration > self.last_written:
                rows[iteration][name] = float(value) if math.isfinite(value) else None
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a", encoding="utf-8") as file:
            for iteration in sorted(rows):
                file.write(json.dumps({**rows[iteration], "iteration": iteration}, sort_keys=True) + "\n")
            # Force the lines to disk: after a crash of the machine, this file explains the run.
            file.flush()
            os.fsync(file.fileno())
        self.last_written = max(rows, default=self.last_written)

    def resume(self, last_written: int) -> None:
        """Remove the rows after iteration ``last_written``, and an unfinished last line: the run writes them again."""
        self.last_written = last_written
        if not self._path.exists():
            return
        lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if (iteration := _iteration(line)) is not None and iteration <= last_written]
        if len(kept) < len(lines):
            logger.info(
                "%s: %d rows after iteration %d removed; the resumed run writes them again",
                self._path, len(lines) - len(kept), last_written,
            )  # fmt: skip
            write_atomically(self._path, "".join(f"{line}\n" for line in kept))

    def newest_before(self, iteration: int) -> int:
        """The newest iteration below ``iteration`` that the file has a row of; -1 for none."""
        if not self._path.exists():
            return -1
        found = map(_iteration, self._path.read_text(encoding="utf-8", errors="replace").splitlines())
        return max((row for row in found if row is not None and row < iteration), default=-1)


def _iteration(line: str) -> int | None:
    """The iteration of a row; None for an unfinished line."""
    try:
        return json.loads(line)["iteration"]
    except (ValueError, KeyError, TypeError):
        return None


def recent_scalars(storage) -> dict[str, dict]:
    """What smoothing and the next rows need of an ``EventStorage``: name -> values, iterations, smoothing hint."""
    hints, latest = storage.smoothing_hints(), storage.latest()
    scalars = {}
    for name, (_, newest) in latest.items():
        if name in _MEASURED_ANEW:
            continue
        recent = [(value, when) for value, when in storage.history(name).values()[-WINDOW:] if when > newest - WINDOW]
        values, iterations = [float(value) for value, _ in recent], [int(when) for _, when in recent]
        scalars[name] = {"values": values, "iterations": iterations, "smoothing_hint": bool(hints[name])}
    return scalars


def restore_scalars(storage, scalars: dict[str, dict]) -> None:
    """Put the result of :func:`recent_scalars` into an empty storage."""
    now = storage.iter
    for name, scalar in scalars.items():
        for value, iteration in zip(scalar["values"], scalar["iterations"]):
            storage.iter = iteration
            storage.put_scalar(name, value, smoothing_hint=scalar["smoothing_hint"])
    storage.iter = now
