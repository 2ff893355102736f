"""Reads the log of a run: its warnings and errors, counted, and the peak memory."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

_MAX_BYTES = 50 * 2**20  # of each log; what comes before is not read
_LINE = re.compile(
    r"\[(?P<time>\d\d/\d\d \d\d:\d\d:\d\d)\] (?P<logger>\S+) (?P<level>WARNING|ERROR|CRITICAL): (?P<text>.*)"
)
_RESUMED = re.compile(r"\bgoing on at iteration (\d+) of |\bStarting training from iteration ([1-9]\d*)")
_MEMORY = re.compile(r"\bmemory (\d+) MB|\bmax_mem: (\d+)M")
# What differs between repetitions of one message.
_VARIABLE = re.compile(r"'[^']*'|\"[^\"]*\"|\S*/\S+|\d[\d.,e+-]*")


@dataclass(frozen=True)
class Message:
    """A warning or an error; messages that differ in numbers, paths and quoted words only are one.

    Attributes:
        level: WARNING, ERROR or CRITICAL.
        text: the first such message, its first line.
        count: how often it came.
        time: of the first, month/day hour:minute:second, as in the log.
    """

    level: str
    text: str
    count: int
    time: str


@dataclass(frozen=True)
class LogSummary:
    """
    Attributes:
        messages: errors first, then by count.
        peak_memory_mb: the highest memory that the log states; None: it states none.
        files: the logs that were read.
        resumes: iterations at which the run went on after a stop.
        skipped_bytes: bytes at the beginnings of large logs that were not read.
    """

    messages: tuple[Message, ...]
    peak_memory_mb: int | None
    files: tuple[str, ...]
    resumes: tuple[int, ...]
    skipped_bytes: int


def read_logs(folder: Path) -> LogSummary:
    """Read ``log.txt`` of the main process and ``log.txt.rank<N>`` of the others."""
    counts: Counter = Counter()
    first: dict[tuple[str, str], tuple[str, str]] = {}
    memory, skipped, files, resumes = None, 0, [], set()
    for path in sorted(path for path in folder.glob("log.txt*") if path.is_file()):
        files.append(path.name)
        skipped += max(0, path.stat().st_size - _MAX_BYTES)
        for line in _lines(path):
            for match in _MEMORY.finditer(line):
                memory = max(memory or 0, int(match[1] or match[2]))
            resumes.update(int(match[1] or match[2]) for match in _RESUMED.finditer(line))
            found = _LINE.match(line)
            if found:
                key = found["level"], _VARIABLE.sub("#", found["text"])
                counts[key] += 1
                first.setdefault(key, (found["text"], found["time"]))
    messages = [Message(key[0], first[key][0], count, first[key][1]) for key, count in counts.items()]
    messages.sort(key=lambda message: (message.level == "WARNING", -message.count))
    return LogSummary(tuple(messages), memory, tuple(files), tuple(sorted(resumes)), skipped)


def _lines(path: Path):
    with open(path, "rb") as file:
        start = max(0, path.stat().st_size - _MAX_BYTES)
        file.seek(start)
        if start:
            file.readline()
        for line in file:
            yield line.decode("utf-8", errors="replace").rstrip()
