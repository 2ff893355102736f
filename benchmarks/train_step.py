"""Training step and inference of RetinaNet on both engines and by Detectron2 itself, in one table.

The engine of ``retinanet_ext`` is fixed per process. So each model has a worker process of its own, which
computes only when its parent asks, and one step at a time.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tabulate import tabulate

WARMUP_ROUNDS = 2
# Largest differences between rows that count as rounding: of losses and gradient relative, of detections
# absolute in score and in parts of the longer image side. A ReLU whose input is almost zero may open in one
# row and stay shut in another, which leaves the loss alone but not the gradient: in float32 its norm is off
# by 1e-3 in every row, while in float64 the rows agree to 1e-7.
TOLERANCES = {"loss_cls": 1e-4, "loss_box_reg": 1e-4, "gradient": 1e-2, "detections": 1e-4}


class Worker(ProcessPoolExecutor):
    """A pool of one process, which holds one :class:`benchmarks.subject.Subject`."""

    def __init__(self, model: str, engine: str, settings: argparse.Namespace):
        super().__init__(1, mp_context=get_context("spawn"))
        self.name = f"{model} on {engine}"
        self.submit(_build, model, engine, settings).result()

    def ask(self, method: str, *args):
        """Call a method of the ``Subject``; what it returns or raises comes back here."""
        return self.submit(_call, method, args).result()


def _build(model: str, engine: str, settings: argparse.Namespace) -> None:
    os.environ["RETINANET_EXT_ENGINE"] = engine
    from benchmarks.subject import Subject  # only now: the import chooses the engine

    global _subject
    _subject = Subject(model, settings)


def _call(method: str, args: tuple):
    return getattr(_subject, method)(*args)


def available_rows() -> list[tuple[str, str]]:
    """Pairs of meta-architecture and engine that can run here. The last is the reference of the others."""
    rows = [("FocalRetinaNet", "lite")]
    spec = importlib.util.find_spec("detectron2")
    if spec is not None and spec.origin is not None:  # a mere folder of that name has no origin
        rows += [("FocalRetinaNet", "detectron2"), ("RetinaNet", "detectron2")]
    return rows


@contextmanager
def open_workers(rows: Sequence[tuple[str, str]], settings: argparse.Namespace) -> Iterator[list[Worker]]:
    """One worker a row, all with the weights of the first."""
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        weights, workers = Path(folder) / "weights.pth", []
        for model, engine in rows:
            worker = stack.enter_context(Worker(model, engine, settings))
            worker.ask("load_weights" if workers else "make_weights", weights)
            workers.append(worker)
        yield workers


def measure(workers: Sequence[Worker], repeats: int) -> list[dict]:
    """Check that the rows agree, then time them in turns, so that a drift of the machine hits all alike.

    Returns:
        For each worker its ``model``, ``differences`` to the last worker (see ``TOLERANCES``), ``seconds``
        (``repeats`` values for each part of a step) and ``peak_mib``.

    Raises:
        RuntimeError: a row differs from the last one by more than ``TOLERANCES``; nothing is timed.
    """
    outputs = [worker.ask("outputs") for worker in workers]
    differences = [_differences(output, outputs[-1]) for output in outputs]
    for worker, difference in zip(workers, differences):
        # Written so that NaN, which compares as false, is wrong too.
        wrong = {name: value for name, value in difference.items() if not value <= TOLERANCES[name]}
        if wrong:
            raise RuntimeError(f"{worker.name} differs from {workers[-1].name} by {wrong}; nothing was timed")

    seconds = [defaultdict(list) for _ in workers]
    for index in range(WARMUP_ROUNDS + repeats):
        first = index % len(workers)
        for step in ("train_step", "inference"):
            for i in [*range(first, len(workers)), *range(first)]:
                for name, value in workers[i].ask(step).items():
                    if index >= WARMUP_ROUNDS:
                        seconds[i][name].append(value)
    return [
        {"model": w.name, "differences": d, "seconds": s, "peak_mib": w.ask("peak_mib")}
        for w, d, s in zip(workers, differences, seconds)
    ]


def _differences(actual: dict, expected: dict) -> dict[str, float]:
    relative = {name: abs(actual[name] / expected[name] - 1) for name in TOLERANCES if name != "detections"}
    images = zip(actual["detections"], expected["detections"])
    return {**relative, "detections": max(max(_farthest(a, b), _farthest(b, a)) for a, b in images)}


def _farthest(detections: np.ndarray, others: np.ndarray) -> float:
    """Largest distance of a detection to the nearest of ``others`` of its class; rows (class, score, box)."""
    distances = np.abs(detections[:, None, 1:] - others[:, 1:]).max(axis=2)
    distances[detections[:, None, 0] != others[:, 0]] = np.inf
    # Of almost equal scores, rounding decides which come last and are cut: they may have no counterpart.
    safe = detections[:, 1] > detections[:, 1].min(initial=1) + TOLERANCES["detections"]
    # Without any detection the comparison would be void: infinitely wrong.
    return float(distances.min(axis=1, initial=np.inf)[safe].max()) if safe.any() else np.inf


def format_table(results: Sequence[dict]) -> str:
    """Markdown: medians, interquartile ranges in brackets; ratios to the last row in the same round."""
    lines, reference = [], results[-1]
    for result in results:
        seconds = {name: np.array(values) for name, values in result["seconds"].items()}
        line = {"model": result["model"]} | {f"{name}, ms": _median(1000 * seconds[name]) for name in seconds}
        for name in ("step", "inference"):
            ratios = seconds[name] / reference["seconds"][name]
            line[f"{name}, ratio"] = "1" if result is reference else _median(ratios)
        line["peak, MiB"] = f"{result['peak_mib']:.0f}"
        line |= {f"diff. {name}": f"{value:.0e}" for name, value in result["differences"].items()}
        lines.append(line)
    return tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True)


def _median(values: np.ndarray) -> str:
    low, median, high = np.percentile(values, [25, 50, 75])
    return f"{median:.4g} ({high - low:.2g})"


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="RetinaNet on both engines and Detectron2's own")
    parser.add_argument("--repeats", type=int, default=10, help="timed rounds, after two that are not")
    parser.add_argument("--images", type=int, default=2, help="images a step")
    parser.add_argument("--height", type=int, default=480, help="of each image, in pixels")
    parser.add_argument("--width", type=int, default=640, help="of each image, in pixels")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of PyTorch")
    parser.add_argument("--depth", type=int, default=50, choices=[18, 34, 50, 101], help="of the ResNet")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", metavar="FILE", help="write the header and every single time here")
    return parser.parse_args(words)


def main() -> None:
    arguments, rows = parse_arguments(), available_rows()
    detectron2 = importlib.metadata.version("detectron2") if len(rows) > 1 else "not installed, has no rows"
    header = {"date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"), "CPU": _cpu_model()}
    with open_workers(rows, arguments) as workers:
        header |= workers[0].ask("versions") | {"detectron2": detectron2}
        header |= {name: value for name, value in vars(arguments).items() if name != "json"}
        print("\n".join(f"{name}: {value}" for name, value in header.items()), end="\n\n", flush=True)
        results = measure(workers, arguments.repeats)
    print(format_table(results))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"header": header, "results": results}, indent=1))


if __name__ == "__main__":
    main()
