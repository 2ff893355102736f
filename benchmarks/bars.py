"""A picture of one or two runs of the whole-model benchmarks: time of each row, as bars.

The files are what ``python -m benchmarks.train_step`` and ``python -m benchmarks.inference`` write with ``--json``.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

OURS, OTHERS = "#0b65c2", "#9aa1a9"


def bars(run: dict) -> list[tuple[str, float, tuple[float, float], float]]:
    """For each row of a run: its name, median seconds, quartiles of the seconds, and times faster than the last row.

    The last is the median over the rounds of the ratio within the round.
    """
    whole = "step" if "step" in run["results"][0]["seconds"] else "inference"
    reference = np.array(run["results"][-1]["seconds"][whole])
    rows = []
    for result in run["results"]:
        seconds = np.array(result["seconds"][whole])
        low, high = np.quantile(seconds, [0.25, 0.75])
        rows.append((result["row"], float(np.median(seconds)), (low, high), float(np.median(reference / seconds))))
    return rows


def draw(runs: Sequence[dict]) -> Figure:
    figure = Figure(figsize=(8.5, 0.7 + 0.36 * max(len(run["results"]) for run in runs)), layout="constrained")
    for axes, run in zip(np.atleast_1d(figure.subplots(1, len(runs), sharey=False)), runs):
        rows = sorted(bars(run), key=lambda row: row[1])
        names, centers, spans, ratios = zip(*rows)
        colors = [OURS if name.startswith("FocalRetinaNet") else OTHERS for name in names]
        errors = np.abs(np.array(spans).T - np.array(centers))
        axes.barh(range(len(rows)), centers, color=colors, xerr=errors, ecolor="#1f2328", height=0.7)
        axes.set_yticks(range(len(rows)), names, fontsize=7.5)
        axes.invert_yaxis()
        for index, (center, span, ratio) in enumerate(zip(centers, spans, ratios)):
            axes.text(max(center, span[1]) * 1.02, index, f" {center:.2f} s, {ratio:.1f}x", va="center", fontsize=7.5)
        axes.set_xlim(0, 1.35 * max(span[1] for span in spans))
        is_training = "step" in run["results"][0]["seconds"]
        header = run["header"]
        size = f"{header['images']} images of {header['height']}x{header['width']}"
        axes.set_title(f"{'training step' if is_training else 'inference'}, {size}", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(axis="x", labelsize=7.5)
    return figure


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="JSON")
    parser.add_argument("--output", type=Path, required=True, metavar="PICTURE", help="a .png or .svg file")
    arguments = parser.parse_args(words)
    figure = draw([json.loads(path.read_text()) for path in arguments.files])
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.output, dpi=110)


if __name__ == "__main__":
    main()
