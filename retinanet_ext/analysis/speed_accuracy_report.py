"""The files of ``retinanet-ext speed-accuracy``: the picture, the table and the values."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from .picture_style import save_figure
from .timed_models import Row, draw


def write_report(rows: Sequence[Row], about: dict[str, str], output: Path) -> str:
    """Write ``speed_accuracy.png``, ``.json``, ``.csv`` and ``.md``; return the table and its conditions as text.

    Args:
        rows: the measurements, at least one.
        about: what they depend on, with the keys ``device`` and ``dataset``.
        output: the folder; it is made if it does not exist.
    """
    output.mkdir(parents=True, exist_ok=True)
    save_figure(draw(rows, about["device"], about["dataset"]), output / "speed_accuracy.png")
    values = [
        {"name": row.name, "AP": row.ap, "AP50": row.ap50, "ms_median": row.quartiles[1],
         "ms_lower_quartile": row.quartiles[0], "ms_upper_quartile": row.quartiles[2], "images": len(row.milliseconds)}
        for row in rows
    ]  # fmt: skip
    (output / "speed_accuracy.json").write_text(json.dumps({**about, "runs": values}, indent=2) + "\n")
    with (output / "speed_accuracy.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, values[0])
        writer.writeheader()
        writer.writerows(values)
    table = tabulate(
        [[v["name"], v["AP"], v["AP50"], f"{v['ms_median']:.1f}",
          f"{v['ms_lower_quartile']:.1f} to {v['ms_upper_quartile']:.1f}"] for v in values],
        ["model", "AP", "AP50", "ms per image", "quartiles"], tablefmt="github", floatfmt=".1f", missingval="undefined",
    )  # fmt: skip
    conditions = "\n".join(f"- {name}: {value}" for name, value in about.items())
    conditions += f"\n- time: median of {values[0]['images']} images, one at a time, without reading and resizing them"
    (output / "speed_accuracy.md").write_text(f"# Speed and accuracy\n\n{table}\n\n{conditions}\n")
    return f"{table}\n\n{conditions}"
