"""One run of a study in a process of its own, so that a crash of the run does not end the study."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from retinanet_ext.machine.atomic_file import write_atomically

from .status import FAILED, RUNNING, STOPPED, Status, read_status, run_lock, steps_done, write_status

CONSOLE_FILE = "console.txt"
WORKER = (sys.executable, "-m", "retinanet_ext.ablation.worker")
_TAIL_LINES = 15
_POLL_SECONDS = 0.2
# Seconds between telling a run to stop and killing it.
_PATIENCE = 20.0


@dataclass(frozen=True)
class Job:
    """Everything that a process needs for one run. It can be sent to another machine that has the same folders.

    Args:
        arm, seed: identify the run.
        folder: absolute path of the run's folder.
        config: YAML of the whole config.
        metric: name of a metric that the run must produce.
        on_gpu: whether the run needs a GPU.
        working_directory: folder that relative paths in the config start from.
        environment: environment variables that the process needs.
    """

    arm: str
    seed: int
    folder: Path
    config: str
    metric: str
    on_gpu: bool
    working_directory: Path
    environment: Mapping[str, str]


def execute(
    job: Job,
    environment: Mapping[str, str] | None = None,
    *,
    stopping: threading.Event | None = None,
    keep_open: tuple[int, ...] = (),
) -> Status:
    """Start a run, or resume an interrupted run, and wait until it ends.

    Args:
        environment: further environment variables for the process.
        stopping: set it to end the process. The state is then "stopped", and a further call resumes the run. The same
            holds after a KeyboardInterrupt.
        keep_open: file descriptors that the process inherits.

    Returns:
        The status, which is also in the run's ``status.json``.
    """
    stopping = stopping or threading.Event()
    with run_lock(job.folder, stopping) as lock:
        return _execute(job, environment or {}, stopping, (*keep_open, lock))


def _execute(job: Job, environment: Mapping[str, str], stopping: threading.Event, keep_open: tuple[int, ...]) -> Status:
    earlier = _seconds_so_far(job.folder)
    write_atomically(job.folder / "config.yaml", job.config)
    write_status(job.folder, Status(RUNNING, seconds=earlier))
    start = time.monotonic()
    process = _start(job, environment, keep_open)
    try:
        while process.poll() is None and not stopping.wait(_POLL_SECONDS):
            pass
    except KeyboardInterrupt:
        stopping.set()
        raise
    finally:
        _end(process)
        status = read_status(job.folder)
        if status.state == RUNNING:
            seconds = earlier + time.monotonic() - start
            status = replace(status, seconds=seconds, iterations=steps_done(job.folder))
            if stopping.is_set():
                status = replace(status, state=STOPPED, reason="interrupted")
            else:
                status = replace(status, state=FAILED, reason=_exit_reason(process.returncode, job.folder))
            write_status(job.folder, status)
    return status


def _start(job: Job, environment: Mapping[str, str], keep_open: tuple[int, ...]) -> subprocess.Popen:
    with open(job.folder / CONSOLE_FILE, "a", encoding="utf-8") as console:
        return subprocess.Popen(
            [*WORKER, str(job.folder), "--metric", job.metric],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            cwd=job.working_directory,
            # Colour codes would be noise in the file.
            env={**os.environ, "NO_COLOR": "1", **job.environment, **environment},
            pass_fds=keep_open,
            # Ctrl-C in the terminal must reach only the study, which then stops its runs.
            start_new_session=True,
        )


def _end(process: subprocess.Popen) -> None:
    """End the process and its data-loading processes, if it still runs."""
    for number, patience in ((signal.SIGTERM, _PATIENCE), (signal.SIGKILL, None)):
        if process.poll() is not None:
            return
        os.killpg(process.pid, number)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def _seconds_so_far(folder: Path) -> float:
    """Wall time of earlier starts. A start that was killed with its study ended at its last line of output."""
    status = read_status(folder)
    if status is None:
        return 0.0
    console = folder / CONSOLE_FILE
    if status.state != RUNNING or not console.exists():
        return status.seconds
    return status.seconds + max(0.0, console.stat().st_mtime - (folder / "status.json").stat().st_mtime)


def _exit_reason(code: int, folder: Path) -> str:
    try:
        cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    except ValueError:
        cause = f"was killed by signal {-code}"
    if code == -signal.SIGKILL:
        cause += " (often by the system, because memory ran out)"
    lines = (folder / CONSOLE_FILE).read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
    return "\n".join([f"the process {cause}; its last lines:", *lines])
