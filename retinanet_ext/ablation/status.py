"""``status.json``: how far a run has come, and its result. A lock tells whether a process still runs it."""

import fcntl
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from retinanet_ext.machine.atomic_file import write_atomically

STATUS_FILE = "status.json"
LOCK_FILE = ".lock"
RUNNING, STOPPED, DONE, DIVERGED, FAILED = "running", "stopped", "done", "diverged", "failed"


@dataclass(frozen=True)
class Status:
    """State of one run.

    Args:
        state: "running" (also if its process was killed together with the study, see `is_locked`), "stopped", "done",
            "diverged" or "failed".
        reason: why it diverged or failed; else None.
        seconds: wall time, summed over resumed starts.
        metrics: "bbox/AP" and so on; AP in 0-100, None where undefined. Empty unless done.
        iterations: number of finished training steps.
    """

    state: str
    reason: str | None = None
    seconds: float = 0.0
    metrics: dict[str, float | None] = field(default_factory=dict)
    iterations: int = 0


def read_status(directory: Path) -> Status | None:
    """The status of the run in a folder; None for a run that never started.

    Raises:
        ValueError: the file is not what `write_status` writes.
    """
    path = directory / STATUS_FILE
    if not path.exists():
        return None
    try:
        return Status(**json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}; remove the run's folder to repeat the run") from error


def write_status(directory: Path, status: Status) -> None:
    """Write the status atomically: a reader always finds a whole file, also after a crash."""
    write_atomically(directory / STATUS_FILE, json.dumps(asdict(status), indent=2, allow_nan=False) + "\n")


@contextmanager
def run_lock(directory: Path, stopping: threading.Event) -> Iterator[int]:
    """Hold the lock of a run's folder; yields its file descriptor, for the run's process to inherit.

    The system releases the lock when all processes that hold it have ended, however they end. Waits until the lock is
    free or `stopping` is set: a reader holds it for a moment.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / LOCK_FILE, "w") as file:
        while not stopping.is_set():
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                stopping.wait(0.1)
        yield file.fileno()


def is_locked(directory: Path) -> bool | None:
    """Whether a process holds the lock of a study or a run; None if the folder has no lock."""
    try:
        with open(directory / LOCK_FILE) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return True
    return False


def steps_done(directory: Path) -> int:
    """Training steps in a run's ``metrics.json``, which is written every 20 steps and at the end."""
    path = directory / "metrics.json"
    for line in reversed(path.read_text().splitlines() if path.exists() else []):
        try:
            return json.loads(line)["iteration"] + 1
        except (KeyError, ValueError):  # a torn line: the process was killed while writing it
            continue
    return 0
