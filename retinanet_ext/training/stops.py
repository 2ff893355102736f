"""Stops: SIGTERM, SIGINT and a time limit, and what they may interrupt. Independent of the engine, and of torch.

A stop is a request. While data are checked and models are built, nothing can be lost, so the request raises
:class:`StopRequested` in the main thread at once. Inside :func:`polled` (training) it is only noted: code that reaches
a state worth saving asks :func:`stop_wanted`, and raises after all processes have agreed.
"""

import _thread
import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

# Exit code of a run that stopped early with everything saved (EX_TEMPFAIL): the same command with --resume goes on.
STOPPED_EARLY = 75
# Exit code after a second SIGINT, as shells report it.
ABORTED = 128 + signal.SIGINT
TIME_LIMIT = "--time-limit"
# Processes exchange a reason as its index + 1, beside their losses; 0 means no stop.
REASONS = ("SIGTERM", "SIGINT", TIME_LIMIT)
# After a second SIGINT the main thread has this long to raise; code in C may hold it for longer.
_ABORT_SECONDS = 2.0
_PR_SET_PDEATHSIG = 1


class StopRequested(BaseException):
    """A run stops early on request. Like KeyboardInterrupt no ``Exception``: ``except Exception`` must not hide it.

    Attributes:
        reason: one of REASONS.
        message: what was saved and how to go on; empty if nothing had to be saved.
    """

    def __init__(self, reason: str, message: str = ""):
        super().__init__(reason, message)
        self.reason, self.message = reason, message

    def __str__(self) -> str:
        return self.message or f"stopped by {self.reason}"


class _State:
    """The stop of this process. One per process, because signals belong to the process."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.signalled = False
        self.polled = 0
        self.raised = False
        self.interrupts = 0
        self.deadline: float | None = None
        self.save_seconds = 0.0
        self.step_seconds: deque[float] = deque(maxlen=20)
        self.tell_others: Callable[[str], None] | None = None
        self.handles_signals = False
        self.forked_by_main_thread, self.forking_pid = True, 0


_state = _State()


def stop_wanted() -> str | None:
    """The reason to stop, one of REASONS, or None. A time limit counts from when only a checkpoint still fits."""
    if _state.reason is None and _state.deadline is not None and time.monotonic() + _margin() >= _state.deadline:
        request(TIME_LIMIT)
    return _state.reason


def raise_if_wanted() -> None:
    """Raise for a stop that came where nothing could raise, such as inside a callback of another library."""
    reason = stop_wanted()
    if reason is not None and not _state.polled:
        _state.raised = True
        raise StopRequested(reason)


def request(reason: str, *, tell_others: bool = True) -> None:
    """Note a stop. The first reason stays. Other processes of the job hear of it, unless it comes from them."""
    if _state.reason is not None:
        return
    _state.reason = reason
    if tell_others and _state.tell_others is not None:
        _state.tell_others(reason)


def request_from_thread(reason: str) -> None:
    """As :func:`request`, from another process; wakes the main thread where a stop may raise at once."""
    request(reason, tell_others=False)
    if not _state.polled and _state.handles_signals:
        _wake_main_thread()


def code_of(reason: str | None) -> int:
    """The number under which processes exchange a reason; 0 for None."""
    return 0 if reason is None else REASONS.index(reason) + 1


def reason_of(code: float) -> str | None:
    """The reason for a number of :func:`code_of`."""
    return REASONS[int(code) - 1] if code else None


@contextlib.contextmanager
def polled() -> Iterator[None]:
    """Within the block, a stop raises nothing by itself; the code asks :func:`stop_wanted`."""
    raise_if_wanted()
    _state.polled += 1
    try:
        yield
    finally:
        _state.polled -= 1


def deadline() -> float | None:
    """The time limit of this process in seconds of ``time.monotonic()``; None: no limit."""
    return _state.deadline


def expect_saving(seconds: float) -> None:
    """Tell how long a checkpoint takes, estimated or measured: a time limit keeps this much. The longest counts."""
    _state.save_seconds = max(_state.save_seconds, seconds)


def step_took(seconds: float) -> None:
    """Tell how long a step took: a time limit stops before another one would not fit."""
    _state.step_seconds.append(seconds)


def _margin() -> float:
    return 1.0 + 1.5 * _state.save_seconds + 1.5 * max(_state.step_seconds, default=0.0)


def tell_others_by(function: Callable[[str], None] | None) -> None:
    """Set how a stop of this process reaches the other processes of its job; None: not at all."""
    _state.tell_others = function
    if function is not None and _state.reason is not None:
        function(_state.reason)


@contextlib.contextmanager
def handled_signals(deadline: float | None = None, parent: int | None = None) -> Iterator[None]:
    """Within the block, SIGTERM, SIGINT and the deadline are stops, and forked workers end with this process.

    Call it in the main thread.

    Args:
        deadline: in seconds of ``time.monotonic()``; None: no time limit.
        parent: id of the process that this one must not outlive; None: any.
    """
    state = _state
    state.__init__()
    state.deadline, state.handles_signals = deadline, True
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    _reset_forked_workers()
    earlier = {number: signal.signal(number, _on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    # A signal reaches the thread below also while the main thread is inside a long call in C.
    earlier_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, state, parent), daemon=True, name="stops").start()
    unblock_signals()
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier_fd)
        # The launcher passes a stop on to its ranks, which may have got it already. The second one would otherwise end
        # a rank that is about to say why it ends.
        is_ending_rank = parent is not None and state.reason
        for number, handler in earlier.items():
            signal.signal(number, signal.SIG_IGN if is_ending_rank else handler)
        state.handles_signals = False
        state.__init__()
        writer.close()


def _on_signal(number: int, frame: object) -> None:
    if number == signal.SIGINT:
        _state.interrupts += 1
        if _state.interrupts > 1:
            raise KeyboardInterrupt
    request(signal.Signals(number).name)
    # A signal to a whole group comes twice, for the launcher passes it on: the second must not break off the end.
    again, _state.signalled = _state.signalled, True
    if not _state.polled and not _state.raised and not again:
        _state.raised = True
        raise StopRequested(_state.reason)


def _watch(reader: socket.socket, state: _State, parent: int | None) -> None:
    """Run in a thread: note signals at once, watch the deadline and the parent."""
    interrupts = 0
    while True:
        ready, _, _ = select.select([reader], [], [], 1.0)
        numbers = reader.recv(64) if ready else None
        if numbers == b"":
            return
        for number in numbers or b"":
            if number in (signal.SIGTERM, signal.SIGINT):
                request(signal.Signals(number).name)
            interrupts += number == signal.SIGINT
        if interrupts > 1:
            time.sleep(_ABORT_SECONDS)
            if state.handles_signals:
                sys.stderr.write("aborted by a second SIGINT\n")
                os._exit(ABORTED)
            return
        if parent is not None and os.getppid() != parent:
            os._exit(1)
        if not state.polled and not state.raised and stop_wanted() == TIME_LIMIT and state.handles_signals:
            _wake_main_thread()


def _wake_main_thread() -> None:
    """Run the handler of SIGTERM in the main thread; the reason that is noted already stays."""
    if hasattr(signal, "pthread_kill"):  # it also ends waiting
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
    else:  # Windows
        _thread.interrupt_main(signal.SIGTERM)


def end_with(parent: int) -> None:
    """End this process as soon as its parent ends, however that happens. On Linux; elsewhere it does nothing."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def block_signals() -> None:
    """Hold signals back, also in processes started from here, until :func:`handled_signals` takes them there."""
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})


def unblock_signals() -> None:
    """Take back :func:`block_signals` for this process."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})


_fork_hooks_installed = False


def _reset_forked_workers() -> None:
    """Let workers that are forked from here leave stops to this process, and end with it."""
    global _fork_hooks_installed
    if _fork_hooks_installed or not hasattr(os, "register_at_fork"):  # Windows does not fork
        return
    _fork_hooks_installed = True
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_forked_worker)


def _before_fork() -> None:
    _state.forked_by_main_thread = threading.current_thread() is threading.main_thread()
    _state.forking_pid = os.getpid()
    # Before the fork, so that no signal finds the worker without this. Blocked, not ignored: torch's loaders install a
    # handler of their own for SIGTERM. A signal to the whole process group would otherwise end the workers, and the
    # step that should still be finished would fail.
    if _state.handles_signals:
        block_signals()


def _after_fork() -> None:
    if _state.handles_signals:
        unblock_signals()


def _in_forked_worker() -> None:
    if not _state.handles_signals:
        return
    signal.set_wakeup_fd(-1)
    _state.handles_signals = False
    if _state.forked_by_main_thread:  # the system sends the signal when the thread that forked ends
        end_with(_state.forking_pid)


def kill_workers() -> None:
    """End the workers of this process that are left: they do not heed SIGTERM, and Python would wait for them."""
    import multiprocessing

    for worker in multiprocessing.active_children():
        if worker.daemon:
            worker.kill()
