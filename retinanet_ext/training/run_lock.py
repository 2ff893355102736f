"""Lets one training at a time write to an output folder.

``run.lock`` says who trains there. The main process holds the operating system's lock on that file, which ends with the
process, however it ends. Where a file system has no such locks, and between machines that do not share them, the file's
content and age decide: the holder touches it every minute.
"""

import errno
import fcntl
import functools
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from retinanet_ext.checkpoint.checkpoint_file import together

logger = logging.getLogger(__name__)

LOCK = "run.lock"
# Seconds between two touches of the file, and the age from which a holder on another host counts as dead.
_HEARTBEAT, _DEAD_AFTER = 60, 600


class FolderInUse(RuntimeError):
    """Another training writes to the output folder."""


# Of this process. A second descriptor of a locked file, when closed, would end the lock.
_held: dict[Path, "RunLock"] = {}


def lock_run_folder(folder: str, is_main: bool, all_gather: Callable[[Any], list]) -> None:
    """Lock an output folder until the function with :func:`releasing_run_folders` ends.

    The main process of a job does so for all, and all learn if it cannot. A folder may be locked again by its holder.

    Raises:
        FolderInUse: another process holds it: says who, since when, and what to do.
    """

    def acquire() -> None:
        if is_main and _key(folder) not in _held:
            lock = RunLock(folder)
            lock.acquire()
            _held[_key(folder)] = lock
            _remove_unfinished(folder)

    together(acquire, f"the output folder {folder} cannot be used", all_gather)


def _remove_unfinished(folder: str) -> None:
    """Remove what a killed run was writing. Only the holder may: the files of a living run look the same."""
    for path in Path(folder).glob("*.unfinished"):
        with suppress(OSError):
            path.unlink()
            logger.info("removed %s, which an earlier run had not finished", path)


def releasing_run_folders(function: Callable) -> Callable:
    """``function``, after which this process holds no lock of an output folder any more."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        finally:
            while _held:
                _held.popitem()[1].release()

    return wrapper


def warn_of_holder(folder: str) -> None:
    """Say in the log that an evaluation writes to the folder of a running training."""
    who = holder(folder)
    if who is not None:
        logger.warning(
            "a training writes to this OUTPUT_DIR (%s); this evaluation replaces its results.json and its files in "
            "inference/. Set OUTPUT_DIR to another folder to keep them apart", who,
        )  # fmt: skip


def holder(folder: str) -> str | None:
    """Who trains in a folder, in words, as far as the lock file says; None if nobody does."""
    if _key(folder) in _held:
        return None
    path = Path(folder) / LOCK
    try:
        with open(path, "rb") as file:
            content = _parse(file.read())
            age = time.time() - os.fstat(file.fileno()).st_mtime
    except OSError:
        return None
    return _describe(content) if content and not _is_own(content) and _is_alive(content, age) else None


class RunLock:
    """The lock of one folder, for this process."""

    def __init__(self, folder: str):
        self._path = Path(folder) / LOCK
        self._file = None
        self._released = threading.Event()

    def acquire(self) -> None:
        """Take the lock, also from a process that is dead.

        Raises:
            FolderInUse: another process holds it.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while self._file is None:
            file = open(self._path, "ab+", buffering=0)  # noqa: SIM115, open as long as the lock is held
            try:
                self._check(file)
            except BaseException:
                file.close()
                raise
            # The last holder may have removed the file between our opening and locking it.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self._path)):
                    self._file = file
                    continue
            file.close()
        self._file.truncate(0)
        self._file.write(json.dumps(_own_record()).encode())
        threading.Thread(target=self._touch, name="run lock", daemon=True).start()

    def release(self) -> None:
        """Give the lock back; without one, do nothing."""
        self._released.set()
        if self._file is None:
            return
        with suppress(OSError):
            # Not if somebody followed the advice to remove it, and another run has made its own.
            if os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path)):
                os.unlink(self._path)
        self._file.close()
        self._file = None

    def _check(self, file) -> None:
        """Lock the file and look who had it."""
        free = _try_lock(file)
        file.seek(0)
        content = _parse(file.read())
        age = time.time() - os.fstat(file.fileno()).st_mtime
        if content and _is_own(content):
            return
        if not free or (content and _is_alive(content, age)):
            raise FolderInUse(self._in_use(content, age))
        if content:
            logger.warning("%s was left by %s, which has ended; taken over", self._path, _describe(content))

    def _in_use(self, content: dict | None, age: float) -> str:
        who = _describe(content) if content else "a process that has just begun"
        remedy = "Wait for it, stop it, or choose another OUTPUT_DIR."
        if content and content["host"] != socket.gethostname():
            remedy += f" It gave its last sign of life {age:.0f} s ago; if you know that it has ended, remove the file."
        return f"another training writes to this OUTPUT_DIR: {self._path} is held by {who}. {remedy}"

    def _touch(self) -> None:
        while not self._released.wait(_HEARTBEAT):
            with suppress(OSError):
                os.utime(self._path)


def _key(folder: str) -> Path:
    return Path(folder).resolve()


def _try_lock(file) -> bool:
    """False if another process holds the operating system's lock. Forked loader workers do not inherit this kind."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Any other error means that this file system has no locks; the content then decides.
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _own_record() -> dict:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_start": _process_start(os.getpid()),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [sys.executable, *sys.argv],
    }


def _parse(text: bytes) -> dict | None:
    """The record in a lock file; None if it is empty or damaged, as after a crash while it was written."""
    try:
        content = json.loads(text)
        known = isinstance(content["host"], str) and isinstance(content["pid"], int)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return content if known else None


def _describe(content: dict) -> str:
    command = content.get("command")
    words = " ".join(map(str, command)) if isinstance(command, list) else "unknown command"
    started = content.get("started", "at an unknown time")
    return f"process {content['pid']} on {content['host']}, started {started}: {words}"


def _is_own(content: dict) -> bool:
    mine = (socket.gethostname(), os.getpid(), _process_start(os.getpid()))
    return (content["host"], content["pid"], content.get("process_start")) == mine


def _is_alive(content: dict, age: float) -> bool:
    if content["host"] != socket.gethostname():
        return age < _DEAD_AFTER
    try:
        os.kill(content["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    # A later process may have the same number.
    return content.get("process_start") in (None, _process_start(content["pid"]))


def _process_start(pid: int) -> int | None:
    """When a process began, in ticks since the machine did; None where the system does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        return int(stat.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
