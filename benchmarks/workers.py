"""Models under measurement, each in its own process, because the engine of ``retinanet_ext`` is fixed per process.

A worker computes only when its parent asks it, and only one worker computes at a time.
"""

import argparse
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from .measure import WARMUP_ROUNDS, has_detectron2, make_parser, median, print_header, write_json

# Largest differences between a row and the reference that count as rounding of the row's dtype. They are relative for
# losses and gradient, and relative to the largest output for the network. A ReLU whose input is almost zero may be open
# in one row and shut in another. This changes the gradient but not the loss: in float32 the norm of the gradient is off
# by 1e-3 in every row, while in float64 the rows agree to 1e-7.
# A loss that is not named has the tolerance of loss_cls.
TOLERANCES = {
    "float32": {"loss_cls": 1e-4, "loss_box_reg": 1e-4, "gradient": 1e-2, "network": 1e-3},
    "bfloat16": {"loss_cls": 0.1, "loss_box_reg": 0.1, "gradient": 0.3, "network": 0.2},
    "float16": {"loss_cls": 0.02, "loss_box_reg": 0.02, "gradient": 0.1, "network": 0.02},
}
TWO_STAGE_MODELS = ("MaskRCNN", "GeneralizedRCNN")
# Proposals with nearly equal scores change places by rounding, and the sample is drawn by place: in float32 about ten
# of 1,024 sampled RoIs are others, nearly all of them background. In bfloat16 one of 25 foreground RoIs is missing,
# which changes the box loss by 0.16; on the RoIs of float32 it is equal to 1e-3.
TWO_STAGE_TOLERANCES = {
    "float32": {"loss_cls": 5e-3},
    "bfloat16": {"loss_box_reg": 0.3},
    "float16": {"loss_cls": 0.1, "loss_box_reg": 0.3},
}
# For detections of float32 rows: absolute, for scores and for coordinates divided by the longer image side.
DETECTION_TOLERANCE = 1e-4


class Row(NamedTuple):
    """A row of a table. ``mode`` is empty, ``compile`` or ``CUDA graphs``."""

    model: str
    engine: str
    dtype: str = "float32"
    mode: str = ""

    def __str__(self) -> str:
        words = [self.model] if self.engine == "" else [self.model, "on", self.engine]
        return " ".join([*words, self.dtype, self.mode]).strip()


class Worker(ProcessPoolExecutor):
    """A pool of one process, which holds one subject; see :mod:`benchmarks.subject`."""

    def __init__(self, row: Row, settings: argparse.Namespace):
        super().__init__(1, mp_context=get_context("spawn"))
        self.row = row
        self.submit(_build, row, settings).result()

    def ask(self, method: str, *args):
        """Call a method of the subject; return its result, or raise its error."""
        return self.submit(_call, method, args).result()


def _build(row: Row, settings: argparse.Namespace) -> None:
    global _subject
    os.environ["RETINANET_EXT_ENGINE"] = row.engine or "lite"
    # Imports stand here, because they choose the engine.
    if row.model == "torchvision":
        from benchmarks.torchvision_subject import TorchvisionSubject as Class
    elif row.model in TWO_STAGE_MODELS:
        from benchmarks.two_stage_subject import TwoStageSubject as Class
    else:
        from benchmarks.subject import Subject as Class
    _subject = Class(row, settings)


def _call(method: str, args: tuple):
    return getattr(_subject, method)(*args)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=2, help="images per step")
    parser.add_argument("--height", type=int, default=480, help="height of each image, pixels")
    parser.add_argument("--width", type=int, default=640, help="width of each image, pixels")
    parser.add_argument("--boxes", type=int, default=8, help="ground truth boxes per image")
    parser.add_argument("--classes", type=int, default=80, help="K, without background")
    parser.add_argument("--depth", type=int, default=50, choices=[18, 34, 50, 101], help="depth of the ResNet")


def available_rows(device: str, modes: Sequence[str] = ()) -> list[Row]:
    """Rows that can run here; the last is the reference. Each of ``modes`` adds a row in bfloat16."""
    engines = ["lite", "detectron2"] if has_detectron2() else ["lite"]
    found = [Row("FocalRetinaNet", engine, dtype) for dtype in ("float32", "bfloat16") for engine in engines]
    found += [Row("FocalRetinaNet", engines[-1], "bfloat16", mode) for mode in modes]
    found.append(Row("torchvision", ""))
    if has_detectron2():
        if device == "cuda":  # its mixed precision works only on CUDA
            found.append(Row("RetinaNet", "detectron2", "float16"))
        found.append(Row("RetinaNet", "detectron2"))
    return found


def make_model_parser(description: str) -> argparse.ArgumentParser:
    parser = make_parser(description)
    add_model_options(parser)
    return parser


def report(settings: argparse.Namespace, rows: Sequence[Row], step: str, whole: str) -> None:
    """Measure the rows and print their table; for the arguments see :func:`measure` and :func:`format_results`."""
    header = print_header(settings)
    with open_workers(rows, settings) as workers:
        results = measure(workers, step, settings.repeats)
    print(format_results(results, whole))
    write_json(settings.json, {"header": header, "results": results})


@contextmanager
def open_workers(rows: Sequence[Row], settings: argparse.Namespace) -> Iterator[list[Worker]]:
    """One worker per row, all with the weights of the first."""
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        weights, workers = Path(folder) / "weights.pth", []
        for row in rows:
            worker = stack.enter_context(Worker(row, settings))
            worker.ask("load_weights" if workers else "make_weights", weights)
            workers.append(worker)
        yield workers


def measure(workers: Sequence[Worker], step: str, repeats: int) -> list[dict]:
    """Check that the rows agree with the last row, then time them in turns, so that a drift of the machine hits all.

    Args:
        step: ``train_step`` or ``inference``, a method of the subjects that returns the seconds of its parts.

    Returns:
        For each worker its ``row``, ``differences`` to the last worker (see ``TOLERANCES``), ``seconds``
        (``repeats`` values for each part of a step) and ``peak_mib``.

    Raises:
        RuntimeError: a row differs from the last row by more than rounding. Nothing is timed then.
    """
    outputs = [worker.ask(f"{step}_outputs") for worker in workers]
    differences = [_differences(w.row, output, outputs[-1]) for w, output in zip(workers, outputs)]
    for worker, difference in zip(workers, differences):
        legal = TOLERANCES[worker.row.dtype] | {"detections": DETECTION_TOLERANCE}
        unnamed = legal["loss_cls"]
        if worker.row.model in TWO_STAGE_MODELS:
            legal |= TWO_STAGE_TOLERANCES[worker.row.dtype]
        # This form also catches NaN, which compares as false.
        wrong = {name: value for name, value in difference.items() if not value <= legal.get(name, unnamed)}
        if wrong:
            raise RuntimeError(f"{worker.row} differs from {workers[-1].row} by {wrong}; nothing was timed")

    seconds = [defaultdict(list) for _ in workers]
    for index in range(WARMUP_ROUNDS + repeats):
        first = index % len(workers)
        for i in [*range(first, len(workers)), *range(first)]:
            for name, value in workers[i].ask(step).items():
                if index >= WARMUP_ROUNDS:
                    seconds[i][name].append(value)
    return [
        {"row": str(w.row), "differences": d, "seconds": s, "peak_mib": w.ask("peak_mib")}
        for w, d, s in zip(workers, differences, seconds)
    ]


def _differences(row: Row, actual: dict, expected: dict) -> dict[str, float]:
    scalars = [name for name in expected if name not in ("network", "detections") and name in actual]
    found = {name: abs(actual[name] / expected[name] - 1) for name in scalars}
    network, reference = actual["network"], expected["network"]
    found["network"] = float(np.abs(network - reference).max() / np.abs(reference).max())
    # Not comparable: torchvision clips boxes before NMS, Detectron2 after it; half precision changes their order.
    if row.dtype == "float32" and "detections" in actual and "detections" in expected:
        images = zip(actual["detections"], expected["detections"])
        found["detections"] = max(max(_farthest(a, b), _farthest(b, a)) for a, b in images)
    return found


def _farthest(detections: np.ndarray, others: np.ndarray) -> float:
    """Largest distance of a detection to the nearest of ``others`` of its class; both ``(D, 6)``: class, score, box."""
    distances = np.abs(detections[:, None, 1:] - others[:, 1:]).max(axis=2)
    distances[detections[:, None, 0] != others[:, 0]] = np.inf
    # Detections with almost the lowest score may have no counterpart, because rounding decides which ones are cut.
    safe = detections[:, 1] > detections[:, 1].min(initial=1) + DETECTION_TOLERANCE
    # Without detections nothing is compared, which counts as infinitely wrong.
    return float(distances.min(axis=1, initial=np.inf)[safe].max()) if safe.any() else np.inf


def format_results(results: Sequence[dict], whole: str) -> str:
    """Markdown: medians in milliseconds, with interquartile ranges in brackets.

    ``times faster`` compares the part ``whole`` with the last row in the same round.
    """
    lines, reference = [], results[-1]
    for result in results:
        seconds = {name: np.array(values) for name, values in result["seconds"].items()}
        line = {"model": result["row"]} | {f"{name}, ms": median(1000 * seconds[name]) for name in seconds}
        ratios = reference["seconds"][whole] / seconds[whole]
        line["times faster"] = "1" if result is reference else median(ratios)
        line["peak, MiB"] = f"{result['peak_mib']:.0f}"
        line["peak, part"] = f"{result['peak_mib'] / reference['peak_mib']:.2f}"
        line |= {f"diff. {name}": f"{value:.0e}" for name, value in result["differences"].items()}
        lines.append(line)
    return tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True)
