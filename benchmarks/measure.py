"""Compare models across processes: check that they compute the same, then time them in turns.

The engine of ``retinanet_ext`` is fixed per process. So each model has a worker process of its own, which computes
only when its parent asks, and one step at a time.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

WARMUP_ROUNDS = 2
TIMES = ("forward", "backward", "optimizer", "step", "inference")
# Largest differences between rows that count as rounding: of losses and gradient relative, of detections absolute
# in score and in parts of the longer image side. A ReLU whose input is almost zero may open in one row and stay
# shut in another, which leaves the loss alone but not the gradient.
TOLERANCES = {"loss_cls": 1e-4, "loss_box_reg": 1e-4, "gradient": 1e-3, "detections": 1e-4}


class Disagreement(RuntimeError):
    """The rows do not compute the same, so that their times must not be compared."""


class Row(NamedTuple):
    """A row of the table: a meta-architecture, and the engine it runs on."""

    model: str
    engine: str

    def __str__(self):
        return f"{self.model} on {self.engine}"


class Settings(NamedTuple):
    """What all rows have in common; ``height`` and ``width`` in pixels, ``depth`` of the ResNet."""

    images: int
    height: int
    width: int
    threads: int
    depth: int
    device: str


class Worker:
    """A process that holds one :class:`benchmarks.subject.Subject`."""

    def __init__(self, row: Row, settings: Settings):
        self.row = row
        self._process = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self._process.submit(_build, row, settings).result()

    def ask(self, method: str, *args) -> Any:
        """Call a method of the ``Subject``; what it returns or raises comes back here."""
        return self._process.submit(_call, method, args).result()

    def close(self) -> None:
        self._process.shutdown()


def _build(row: Row, settings: Settings) -> None:
    os.environ["RETINANET_EXT_ENGINE"] = row.engine
    from benchmarks.subject import Subject  # only now: the import chooses the engine

    global _subject
    _subject = Subject(row.model, settings)


def _call(method: str, args: tuple) -> Any:
    return getattr(_subject, method)(*args)


@contextmanager
def open_workers(rows: Sequence[Row], settings: Settings) -> Iterator[list[Worker]]:
    """One worker a row, all with the weights of the first."""
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        weights, workers = Path(folder) / "weights.pth", []
        for row in rows:
            worker = Worker(row, settings)
            stack.callback(worker.close)
            worker.ask("load_weights" if workers else "make_weights", weights)
            workers.append(worker)
        yield workers


def measure(workers: Sequence[Worker], repeats: int) -> list[dict]:
    """Check that the rows agree, then time them in turns, so that a drift of the machine hits all alike.

    Returns:
        For each worker its ``row``, ``differences`` to the last worker, ``seconds`` (for each of ``TIMES`` the
        ``repeats`` single values) and ``peak_mib``.

    Raises:
        Disagreement: a row differs from the last one by more than ``TOLERANCES``; nothing is timed.
    """
    differences = check_agreement(workers)
    seconds = [{name: [] for name in TIMES} for _ in workers]
    for index in range(WARMUP_ROUNDS + repeats):
        first = index % len(workers)
        for step in ("train_step", "inference"):
            for i in [*range(first, len(workers)), *range(first)]:
                for name, value in workers[i].ask(step).items():
                    if index >= WARMUP_ROUNDS:
                        seconds[i][name].append(value)
    return [
        {"row": str(w.row), "differences": d, "seconds": s, "peak_mib": w.ask("peak_mib")}
        for w, d, s in zip(workers, differences, seconds)
    ]


def check_agreement(workers: Sequence[Worker]) -> list[dict[str, float]]:
    """Each worker's largest differences to the last one, under the names of ``TOLERANCES``."""
    outputs, reference = [worker.ask("outputs") for worker in workers], workers[-1].row
    if not all(len(detections) for detections in outputs[-1]["detections"]):
        raise Disagreement(f"{reference} detects nothing in some image: there is nothing to compare")
    differences = []
    for worker, output in zip(workers, outputs):
        difference = _differences(output, outputs[-1])
        # NaN is not below the tolerance either.
        wrong = {name: value for name, value in difference.items() if not value <= TOLERANCES[name]}
        if wrong:
            raise Disagreement(f"{worker.row} differs from {reference} by {wrong}; nothing was timed")
        differences.append(difference)
    return differences


def _differences(actual: dict, expected: dict) -> dict[str, float]:
    scalars = [name for name in TOLERANCES if name != "detections"]
    images = list(zip(actual["detections"], expected["detections"]))
    return {
        **{name: abs(actual[name] / expected[name] - 1) for name in scalars},
        "detections": max(max(_farthest(a, b), _farthest(b, a)) for a, b in images),
    }


def _farthest(detections: np.ndarray, others: np.ndarray) -> float:
    """The largest distance of a detection to the nearest of ``others`` of its class; rows (class, score, box)."""
    distances = np.abs(detections[:, None, 1:] - others[:, 1:]).max(axis=2)
    distances[detections[:, None, 0] != others[:, 0]] = np.inf
    # Of scores that are almost equal, rounding decides which come last and are cut: they may have no counterpart.
    safe = detections[:, 1] > detections[:, 1].min(initial=1) + TOLERANCES["detections"]
    return float(distances.min(axis=1, initial=np.inf)[safe].max(initial=0))
