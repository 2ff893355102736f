"""How a report writes numbers, times and config values."""

import os
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

NOTHING = "–"
_LONGEST_VALUE = 48


class Spread(Protocol):
    """A mean and its precision, such as ``ablation.statistics.Summary``; None where undefined."""

    n: int
    mean: float | None
    std: float | None
    interval: tuple[float, float] | None


def digits_for(values: Iterable[float | None]) -> int:
    """Decimals of a column: 1, as in papers, or 2 if one decimal would round a value to zero."""
    return 2 if any(value and round(value, 1) == 0 for value in values) else 1


def number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{_rounded(value, digits):.{digits}f}"


def signed(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{_rounded(value, digits):+.{digits}f}"


def mean_and_std(summary: Spread, digits: int) -> str:
    if summary.std is None:
        return number(summary.mean, digits)
    return f"{number(summary.mean, digits)} ± {number(summary.std, digits)}"


def interval(summary: Spread, digits: int) -> str:
    if summary.interval is None:
        return NOTHING
    return " to ".join(number(end, digits) for end in summary.interval)


def mean_and_interval(summary: Spread, digits: int) -> str:
    """A mean with its interval; with n if there is none."""
    if not summary.n:
        return NOTHING
    mean = number(summary.mean, digits)
    if summary.interval is None:
        return f"{mean} [n = {summary.n}]"
    return f"{mean} [{', '.join(number(end, digits) for end in summary.interval)}]"


def difference(summary: Spread | None, digits: int) -> str:
    """A difference between arms with its interval; with n if one seed gives no interval."""
    if summary is None or not summary.n:
        return NOTHING
    mean = signed(summary.mean, digits)
    if summary.interval is None:
        return f"{mean} [n = {summary.n}]"
    low, high = (signed(end, digits) for end in summary.interval)
    return f"{mean} [{low}, {high}]"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


def total_duration(seconds: float) -> str:
    return f"{timedelta(seconds=round(seconds))} h"


def config_value(value: Any) -> str:
    """A config value, shortened to fit into a table; ``arms.csv`` has it in full."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"


def shortened(reason: str) -> str:
    """A reason without the middle of a long traceback; ``runs.csv`` has it in full."""
    return reason if len(reason) <= 240 else f"{reason[:100]} […] {reason[-130:]}"


def readable_path(path: Path) -> str:
    """The path, relative to the working directory if it lies below it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else Path(relative).as_posix()


def distinct(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values)) or "unknown"


def _rounded(value: float, digits: int) -> float:
    return round(value, digits) + 0.0  # no "-0.0"
