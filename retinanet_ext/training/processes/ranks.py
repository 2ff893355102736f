"""The processes that one command starts on its machine: their start, their end, and nothing left behind."""

import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path

import torch.multiprocessing as mp

from .. import stops
from ..run_errors import killed_text

# How long the other processes have to end by themselves once one has failed.
GRACE_SECONDS = 3.0
_POLL_SECONDS = 0.5


class RankFailed(mp.ProcessRaisedException):
    """A process of the job raised. The message holds the traceback, ``for_user`` a text and an exit code."""

    def __init__(self, message: str, index: int, pid: int, text: str = "", code: int = 1) -> None:
        super().__init__(message, index, pid)
        self.for_user = (text, code)


def run_ranks(run: Callable, arguments: tuple, processes: int, first_rank: int = 0) -> None:
    """Run ``run(index, *arguments)`` in new processes, which end with this one.

    Args:
        run: importable by name. Its error may have ``for_user``, a text and an exit code, and ``by_other_rank``.
        arguments: can be pickled.
        processes: how many to start.
        first_rank: the rank of the first one, for messages.

    Raises:
        RankFailed: one of them raised. The others are ended.
        torch.multiprocessing.ProcessExitedException: one of them was killed, or ended by itself.
        StopRequested: they stopped early.
    """
    context = multiprocessing.get_context("spawn")
    children: list = []
    # It unblocks signals when it starts, so it must not start between the two lines below.
    resource_tracker.ensure_running()
    with tempfile.TemporaryDirectory(prefix="retinanet_ext_ranks_") as folder:
        try:
            # Until a new process has its handlers, which takes as long as importing torch.
            stops.block_signals()
            for index in range(processes):
                report = os.path.join(folder, f"{index}.json")
                words = (run, index, arguments, report, os.getpid())
                children.append(context.Process(target=_child, args=words))
                children[-1].start()
            with stops.polled():
                stops.unblock_signals()
                ended = _supervise(children)
        finally:
            stops.unblock_signals()
            for child in children:
                if child.is_alive():
                    child.kill()
                child.join()
        _raise_first(children, ended, folder, first_rank)


def _child(run: Callable, index: int, arguments: tuple, report: str, parent: int) -> None:
    stops.end_with(parent)
    if sys.platform == "linux":
        # Workers of data loaders are forked, as in a job of one process or of torchrun. Spawned ones, which Python
        # takes in a spawned process, would import torch anew, and a signal to the whole group would end them.
        multiprocessing.set_start_method("fork", force=True)
    try:
        run(index, *arguments)
    except stops.StopRequested as stop:
        _write(report, {"reason": stop.reason, "text": stop.message})
        code = stops.STOPPED_EARLY
    except BaseException as error:
        text, code = getattr(error, "for_user", None) or (f"{type(error).__name__}: {error}", 1)
        by_other = getattr(error, "by_other_rank", False)
        content = {"text": text, "code": code, "traceback": traceback.format_exc(), "by_other": by_other}
        _write(report, content)
        code = 1
    else:
        return
    stops.kill_workers()
    sys.exit(code)


def _write(report: str, content: dict) -> None:
    Path(report).write_text(json.dumps(content))


def _supervise(children: list) -> list[int]:
    """Wait until all have ended, or one has failed and the others had time to follow; returns those that ended."""
    forwarded = False
    while alive := [child for child in children if child.is_alive()]:
        multiprocessing.connection.wait([child.sentinel for child in alive], timeout=_POLL_SECONDS)
        if stops.stop_wanted() and not forwarded:
            forwarded = True
            for child in alive:
                os.kill(child.pid, signal.SIGTERM)
        if any(child.exitcode not in (None, 0, stops.STOPPED_EARLY) for child in children):
            deadline = time.monotonic() + GRACE_SECONDS
            while any(child.is_alive() for child in children) and time.monotonic() < deadline:
                time.sleep(0.05)
            break
    return [index for index, child in enumerate(children) if child.exitcode is not None]


def _raise_first(children: list, ended: list[int], folder: str, first_rank: int) -> None:
    """Raise for the process that is the cause: one that raised by itself, else one that was killed from outside."""
    reports = {}
    for index in ended:
        try:
            reports[index] = json.loads(Path(folder, f"{index}.json").read_text())
        except (OSError, ValueError):  # it wrote none, or was killed while it did
            continue
    # A signal before an exit code of its own: a process ends with one after it has lost another.
    killed = sorted((i for i in ended if children[i].exitcode and i not in reports), key=lambda i: children[i].exitcode)
    raised = sorted((i for i in reports if "code" in reports[i]), key=lambda i: reports[i]["by_other"])
    if raised and (not reports[raised[0]]["by_other"] or not killed):
        _raise_reported(children[raised[0]], raised[0], reports[raised[0]], first_rank)
    stopped = sorted((report for report in reports.values() if "reason" in report), key=lambda r: not r["text"])
    if stopped:
        raise stops.StopRequested(stopped[0]["reason"], stopped[0]["text"])
    if killed:
        _raise_killed(children[killed[0]], killed[0], killed[0] + first_rank)


def _raise_reported(child, index: int, report: dict, first_rank: int) -> None:
    message = f"\n\n-- Process {index} terminated with the following error:\n{report['traceback']}"
    text = report["text"] if report["by_other"] else f"rank {index + first_rank}: {report['text']}"
    raise RankFailed(message, index, child.pid, text, report["code"])


def _raise_killed(child, index: int, rank: int) -> None:
    code = child.exitcode
    name = signal.Signals(-code).name if code < 0 else None
    reason = stops.stop_wanted()
    if reason and name in ("SIGTERM", "SIGINT"):  # before it had its handlers
        raise stops.StopRequested(reason)
    error = mp.ProcessExitedException(
        f"process {index} terminated with {f'signal {name}' if name else f'exit code {code}'}",
        error_index=index, error_pid=child.pid, exit_code=code, signal_name=name,
    )  # fmt: skip
    error.for_user = (killed_text(rank, name, code), 1)
    raise error
