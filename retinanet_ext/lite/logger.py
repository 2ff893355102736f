"""Log lines on the terminal and in files."""

import logging
import os
import sys

from termcolor import colored

_DATE = "%m/%d %H:%M:%S"
_COLORS = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}


class _TerminalFormatter(logging.Formatter):
    """``[date name]: message``, after the level unless it is INFO; the level is coloured on a terminal."""

    def __init__(self, color: bool):
        super().__init__("[%(asctime)s %(name)s]: %(message)s", datefmt=_DATE)
        self._color = color

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        if record.levelno == logging.INFO:
            return line
        level = record.levelname
        if self._color and record.levelno in _COLORS:
            level = colored(level, _COLORS[record.levelno], attrs=["bold"])
        return f"{level} {line}"


def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "retinanet_ext",
    configure_stdout: bool = True,
) -> logging.Logger:
    """Send a logger to the terminal (main process only) and to a file. A second call changes the file.

    Args:
        output: a file (``.txt`` or ``.log``), or a folder, where the file is ``log.txt``; ``None``: no file.
            Ranks above 0 append ``.rank<N>`` to the file's name.
        distributed_rank: number of this process in the job.
        color: whether to colour the levels, if standard output is a terminal.
        name: name of the logger; by default the root logger of this package.
        configure_stdout: whether to log to the terminal.

    Returns:
        The logger, at level DEBUG and not propagating to the root logger.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    if configure_stdout and distributed_rank == 0 and not _has_handler(logger, _TerminalHandler):
        handler = _TerminalHandler()
        handler.setFormatter(_TerminalFormatter(color and sys.stdout.isatty()))
        logger.addHandler(handler)
    if output is not None:
        _log_to_file(logger, output, distributed_rank)
    return logger


class _TerminalHandler(logging.StreamHandler):
    """Looks up ``sys.stdout`` for every line, because test runners and notebooks replace it."""

    @property
    def stream(self):
        return sys.stdout

    @stream.setter
    def stream(self, _):
        pass


class _RunFileHandler(logging.FileHandler):
    pass


def _has_handler(logger: logging.Logger, kind: type[logging.Handler]) -> bool:
    return any(isinstance(handler, kind) for handler in logger.handlers)


def _log_to_file(logger: logging.Logger, output: str, rank: int) -> None:
    path = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    path = os.path.abspath(f"{path}.rank{rank}" if rank else path)
    for handler in [h for h in logger.handlers if isinstance(h, _RunFileHandler)]:
        if handler.baseFilename == path:
            return
        # A second run in the same process gets its own file; the first run's file is complete.
        logger.removeHandler(handler)
        handler.close()
    os.makedirs(os.path.dirname(path), exist_ok=True)
    handler = _RunFileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", datefmt=_DATE))
    logger.addHandler(handler)
