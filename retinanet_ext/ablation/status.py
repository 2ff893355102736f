"""``status.json``: how far a run has come, and its result."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

STATUS_FILE = "status.json"
RUNNING, DONE, DIVERGED, FAILED = "running", "done", "diverged", "failed"


@dataclass(frozen=True)
class Status:
    """State of one run.

    Args:
        state: "running" (interrupted, if no process runs it), "done", "diverged" or "failed".
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


def write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def steps_done(directory: Path) -> int:
    """Training steps in a run's ``metrics.json``, which is written every 20 steps and at the end."""
    path = directory / "metrics.json"
    for line in reversed(path.read_text().splitlines() if path.exists() else []):
        try:
            return json.loads(line)["iteration"] + 1
        except (KeyError, ValueError):  # a torn line: the process was killed while writing it
            continue
    return 0
