"""Mask R-CNN, ResNet-50-FPN: training step and inference beside Detectron2's own model; parts; the cost of each branch.

The last two tables are of this package alone, in float32, on the first engine that is installed of Detectron2 and lite.
"""

import argparse

import numpy as np
from tabulate import tabulate

from .measure import has_detectron2, make_parser, median, print_header, write_json
from .workers import Row, add_model_options, format_results, measure, open_workers

BRANCHES = ("masks", "keypoints")
HEADS_OF_COSTS = ([], ["masks"], ["keypoints"], ["masks", "keypoints"])
PARTS = {"train_step": "step", "inference": "inference"}


def main() -> None:
    parser = make_parser(__doc__, repeats=5)
    add_model_options(parser)
    parser.add_argument("--heads", nargs="*", choices=BRANCHES, default=["masks"], help="branches beside the boxes")
    parser.add_argument("--tables", nargs="+", choices=[*PARTS, "parts", "costs"], default=[*PARTS, "parts", "costs"])
    settings = parser.parse_args()
    content = {"header": print_header(settings)}
    if set(PARTS) & set(settings.tables):
        with open_workers(available_rows(settings.device), settings) as workers:
            for step in (step for step in PARTS if step in settings.tables):
                content[step] = measure(workers, step, settings.repeats)
                print(format_results(content[step], PARTS[step]), end="\n\n", flush=True)
    if "parts" in settings.tables:
        content["parts"] = inference_parts(settings)
    if "costs" in settings.tables:
        content["costs"] = costs(settings)
    write_json(settings.json, content)


def available_rows(device: str) -> list[Row]:
    """Rows that can run here; the last is the reference."""
    engines = ["lite", "detectron2"] if has_detectron2() else ["lite"]
    rows = [Row("MaskRCNN", engine, dtype) for dtype in ("float32", "bfloat16") for engine in engines]
    return rows + ([Row("GeneralizedRCNN", "detectron2")] if has_detectron2() else rows[:1])


def inference_parts(settings: argparse.Namespace) -> list[dict]:
    """Print and return the milliseconds of each part of an inference with all branches."""
    settings = argparse.Namespace(**{**vars(settings), "heads": list(BRANCHES)})
    lines = []
    with open_workers([_own_row("float32"), _own_row("bfloat16")], settings) as workers:
        for worker in workers:
            times = [worker.ask("inference_parts") for _ in range(settings.repeats + 1)][1:]
            milliseconds = {name: 1000 * np.array([time[name] for time in times]) for name in times[0]}
            lines.append({"inference": str(worker.row)} | {name: median(v) for name, v in milliseconds.items()})
    print(tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True), end="\n\n")
    return lines


def costs(settings: argparse.Namespace) -> list[dict]:
    """Print and return the time of boxes alone, and how many times as long the other branches make it."""
    seconds = {}
    for heads in HEADS_OF_COSTS:
        own = argparse.Namespace(**{**vars(settings), "heads": heads})
        with open_workers([_own_row("float32")], own) as (worker,):
            for step, whole in PARTS.items():
                times = [worker.ask(step)[whole] for _ in range(settings.repeats + 1)][1:]
                seconds["boxes" + "".join(f" + {name}" for name in heads), step] = float(np.median(times))
    lines = []
    for name in dict.fromkeys(name for name, _ in seconds):
        line = {"branches": name}
        for step in PARTS:
            line |= {f"{step}, ms": f"{1000 * seconds[name, step]:.0f}"}
            line |= {f"{step}, times boxes": f"{seconds[name, step] / seconds['boxes', step]:.2f}"}
        lines.append(line)
    print(tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True))
    return lines


def _own_row(dtype: str) -> Row:
    return Row("MaskRCNN", "detectron2" if has_detectron2() else "lite", dtype)


if __name__ == "__main__":
    main()
