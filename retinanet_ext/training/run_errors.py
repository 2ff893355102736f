"""What an error of a run says to the user: one message, with the traceback in the log of the run only."""

import copy
import logging
import os
import sys

# Set to 1, it shows tracebacks on the screen too.
SHOW_TRACEBACK = "RETINANET_EXT_TRACEBACK"
ERROR, WRONG_INPUT = 1, 2
# What the package raises for wrong usage, config or data: their message says it all, the type adds nothing.
_INPUT_ERRORS = (ValueError, TypeError, KeyError, OSError, NotImplementedError)
logger = logging.getLogger(__name__)


class _Run:
    """What errors need to know of the run of this process."""

    log: str | None = None
    working = False
    on_command_line = False


def on_command_line() -> None:
    """This process belongs to a command: the screen shows messages, and the log tracebacks."""
    _Run.log, _Run.working, _Run.on_command_line = None, False, True


def begin_log(output_dir: str, rank: int) -> None:
    """The log is set up: from now on it gets the tracebacks."""
    _Run.log = os.path.join(output_dir, f"log.txt.rank{rank}" if rank else "log.txt")
    if _Run.on_command_line and not shows_tracebacks():
        for name in ("retinanet_ext", "detectron2", "fvcore"):
            _without_tracebacks(logging.getLogger(name))


def begin_work() -> None:
    """Usage, config and data are checked: errors from now on are errors of the run itself."""
    _Run.working = True


def shows_tracebacks() -> bool:
    return os.environ.get(SHOW_TRACEBACK, "") not in ("", "0")


def describe(error: BaseException) -> tuple[str, int]:
    """The message for the user, which names the log, and the exit code. The traceback goes to the log."""
    known = getattr(error, "for_user", None)
    if known:
        return known
    text = message_of(error)
    code = WRONG_INPUT if isinstance(error, _INPUT_ERRORS) and not _Run.working else ERROR
    if _Run.log is None:
        return (text if shows_tracebacks() else f"{text}\n({SHOW_TRACEBACK}=1 shows the traceback)"), code
    logger.error("%s", text, exc_info=error, extra={"log_only": True})
    return f"{text}\nThe traceback is in {_Run.log}", code


def message_of(error: BaseException) -> str:
    """The error in words, without the traceback that a worker of a data loader puts into its message."""
    # The text of a KeyError would be in quotes.
    text = str(error.args[0] if isinstance(error, KeyError) and len(error.args) == 1 else error)
    kind = type(error).__name__
    if "Traceback (most recent call last):" in text:
        last = text.rpartition("Traceback (most recent call last):")[2].splitlines()
        end = [line for line in last if line.strip()]
        while end and end[0].startswith("  "):
            end.pop(0)
        kind, _, text = "\n".join(end).partition(": ")
        kind = kind.rpartition(".")[2]
    if not text.strip():
        return kind
    plain = {cls.__name__ for cls in _INPUT_ERRORS} | {"FileNotFoundError", "FloatingPointError"}
    return text if kind in plain else f"{kind}: {text}"


class _Message(logging.Formatter):
    """Formats as another formatter, with the last line of a traceback in place of the traceback."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        if record.exc_info and record.exc_info[1] is not None:
            error = message_of(record.exc_info[1]).splitlines() or [""]
            record = copy.copy(record)
            record.msg, record.args = f"{record.getMessage()} {error[0]}", None
            record.exc_info = record.exc_text = None
        return self.inner.format(record)


def _without_tracebacks(named: logging.Logger) -> None:
    for handler in named.handlers:
        on_screen = getattr(handler, "stream", None) in (sys.stdout, sys.stderr)
        if on_screen and not isinstance(handler.formatter, _Message):
            handler.setFormatter(_Message(handler.formatter or logging.Formatter()))
            handler.addFilter(_is_for_the_screen)


def _is_for_the_screen(record: logging.LogRecord) -> bool:
    return not getattr(record, "log_only", False)


def killed_text(rank: int, signal_name: str | None, code: int) -> str:
    """What to say of a process that ended without a report."""
    if signal_name == "SIGKILL":
        return f"rank {rank} was killed (SIGKILL): out of memory (see `dmesg`), or by a scheduler. --resume goes on"
    how = f"signal {signal_name}" if signal_name else f"exit code {code}"
    return f"rank {rank} ended with {how}. See its log in OUTPUT_DIR; --resume goes on from the last checkpoint"
