"""``evaluation.json``: the metrics of an evaluation, and why some are undefined."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from retinanet_ext.machine.atomic_file import write_atomically

RECORD_FILE = "evaluation.json"

Reasons = dict[str, dict[str, str]]
"""Task -> metric -> why it is undefined."""


def write_record(folder: str | os.PathLike, dataset: str, results: Mapping[str, Mapping], reasons: Reasons) -> None:
    """Write metrics (undefined ones as null) and reasons by task into the folder of the predictions."""
    record = {"dataset": dataset, "metrics": _plain(results), "reasons": {t: r for t, r in reasons.items() if r}}
    write_atomically(Path(folder) / RECORD_FILE, json.dumps(record, indent=1, allow_nan=False) + "\n")


def read_reasons(folder: str | os.PathLike, results: Mapping[str, Mapping]) -> Reasons:
    """The reasons of the metrics ``results``; empty if the folder has no record, or one of another evaluation."""
    path = Path(folder) / RECORD_FILE
    try:
        record = json.loads(path.read_text())
        same = {task: record["metrics"].get(task) for task in results} == _plain(results)
        return record["reasons"] if same else {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _plain(results):
    return {task: {name: _number(value) for name, value in metrics.items()} for task, metrics in results.items()}


def _number(value):
    value = float(value)
    return value if math.isfinite(value) else None
