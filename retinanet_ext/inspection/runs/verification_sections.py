"""The sections of a run's report on a verification, from the files that its evaluator leaves."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from retinanet_ext.report.document import Block, Figure, Heading, Paragraph, Table
from retinanet_ext.report.formats import NOTHING
from retinanet_ext.report.verification_plots import draw_distances, draw_roc

from .run_folder import RunFolder

_MAX_PAIRS = 1_000_000  # whose distances are read for the histogram


def verification_sections(run: RunFolder, problems: list[str]) -> list[Block]:
    """Sections for each dataset with a ``verification.json``; files that cannot be read are named in `problems`."""
    blocks: list[Block] = []
    paths = sorted((run.path / "inference").glob("*/verification.json"))
    for path in paths:
        suffix = f": {path.parent.name}" if len(paths) > 1 else ""
        try:
            blocks += _sections(json.loads(path.read_text(encoding="utf-8")), path.parent, suffix)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            problems.append(f"{path.relative_to(run.path)} cannot be read: {error!r}")
    return blocks


def _sections(record: dict[str, Any], folder: Path, suffix: str) -> list[Block]:
    metrics = record["metrics"]
    blocks: list[Block] = [Heading(f"Verification{suffix}")]
    far, val = (np.array(record["roc"][name], float) for name in ("far", "val"))
    threshold = metrics.get("threshold")
    if threshold is not None and metrics.get("num_different"):
        marks = [
            (_point(at["far"], at["target"]), at["val"], _or_nan(at["val_error"]), f"{at['target']:g}")
            for at in record["val_at_far"]
            if at["val"] is not None and at["far"] is not None
        ]
        index = int(np.searchsorted(record["roc"]["threshold"], threshold, side="right")) - 1
        point = float(far[max(index, 0)]), float(val[max(index, 0)])
        caption = (
            f"ROC. Area under it: {_percent(metrics.get('AUC'))}; equal error rate: {_percent(metrics.get('EER'))}"
        )
        blocks.append(
            Figure(f"roc{suffix}.svg", caption, draw_roc(far, val, int(metrics["num_different"]), marks, point))
        )
        blocks += _distances(folder / "distances.csv", threshold, suffix)
    rows = [
        (f"{at['target']:g}", _rate(at["val"], at["val_error"]), _share(at["far"]), at["problem"] or "")
        for at in record["val_at_far"]
    ]
    header = ("FAR asked for", "VAL (%)", "measured FAR", "remark")
    if not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    blocks += [
        Table(header, rows, numbers=(0, 1, 2)),
        Paragraph(
            "VAL: same pairs that are accepted; FAR: different pairs that are accepted. The threshold of each fold "
            f"comes from the other folds. {folder.name}/verification.html shows the folds and the worst mistakes."
        ),
    ]
    return blocks


def _distances(path: Path, threshold: float, suffix: str) -> list[Block]:
    if not path.is_file():
        return []
    same, different = [], []
    with open(path, newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file)):
            if number == _MAX_PAIRS:
                break
            (same if row["same"] == "1" else different).append(float(row["distance"]))
    if not same or not different:
        return []
    drawing = draw_distances(np.array(same), np.array(different), threshold)
    return [Figure(f"distances{suffix}.svg", "Distances; pairs up to the threshold are answered “same”", drawing)]


def _point(far, target):
    return far if far > 0 else target


def _or_nan(value):
    return np.nan if value is None else value


def _rate(value, error) -> str:
    if value is None:
        return NOTHING
    return f"{100 * value:.2f}" + (f" ± {100 * error:.2f}" if error is not None else "")


def _share(value) -> str:
    return NOTHING if value is None else f"{value:.2g}"


def _percent(value) -> str:
    return NOTHING if value is None else f"{value:.2f} %"
