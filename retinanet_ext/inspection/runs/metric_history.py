"""Reads ``metrics.json``: the curves of a run, and where it was resumed."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

# "bbox/AP", or with several datasets "cells_val/bbox/AP".
_EVALUATION = re.compile(
    r"(?:(?P<dataset>.+?)/)?(?P<task>(?:bbox|segm|keypoints|verification)(?:_[^/]+)?)/(?P<metric>.+)"
)


@dataclass(frozen=True)
class History:
    """What ``metrics.json`` holds.

    Attributes:
        series: name -> (iteration, value), by iteration. Of an iteration that was repeated, the later value counts.
        resumes: iterations from which the run went on after a stop, in the order of the file.
        damaged_lines: lines that are not JSON, such as the one that a killed process was writing.
        not_finite: name -> iterations at which the value was not finite.
    """

    series: Mapping[str, list[tuple[int, float]]] = field(default_factory=dict)
    resumes: tuple[int, ...] = ()
    damaged_lines: int = 0
    not_finite: Mapping[str, list[int]] = field(default_factory=dict)

    @property
    def last_iteration(self) -> int | None:
        """The last training iteration that was written, from 0; None: none was."""
        steps = self.series.get("total_loss") or self.series.get("lr")
        return steps[-1][0] if steps else None

    def losses(self) -> list[str]:
        """Names of the logged losses, the total first."""
        names = [name for name in self.series if "loss" in name.rpartition("/")[2] and not is_evaluated(name)]
        return sorted(names, key=lambda name: (name != "total_loss", name))

    def evaluations(self) -> list[str]:
        """Names of metrics of evaluations, such as ``bbox/AP``."""
        return [name for name in self.series if is_evaluated(name)]

    def last_results(self) -> dict[str, dict[str, dict[str, float]]]:
        """Dataset ("" if the names have none) -> task -> metric -> the last value."""
        results: dict[str, dict[str, dict[str, float]]] = {}
        for name in self.evaluations():
            dataset, task, metric = _EVALUATION.fullmatch(name).group("dataset", "task", "metric")
            results.setdefault(dataset or "", {}).setdefault(task, {})[metric] = self.series[name][-1][1]
        return results


def is_evaluated(name: str) -> bool:
    return _EVALUATION.fullmatch(name) is not None


def read_history(path: Path) -> History:
    """Read the file; an empty history if there is none."""
    values: dict[str, dict[int, float]] = {}
    not_finite: dict[str, list[int]] = {}
    resumes, last, damaged = [], -1, 0
    for row in _rows(path):
        if row is None:
            damaged += 1
            continue
        iteration = row["iteration"]
        if iteration < last or (iteration == last and "total_loss" in row):
            resumes.append(iteration)
        last = iteration
        for name, value in row.items():
            if name == "iteration" or isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
                continue
            if value is None or not math.isfinite(value):
                not_finite.setdefault(name, []).append(iteration)
            else:
                values.setdefault(name, {})[iteration] = float(value)
    series = {name: sorted(points.items()) for name, points in values.items()}
    return History(series, tuple(resumes), damaged, not_finite)


def _rows(path: Path):
    """The rows of the file; None for a line that is damaged."""
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                yield {**row, "iteration": int(row["iteration"])}
            except (ValueError, TypeError, KeyError):
                yield None
