"""How the cost of a training step and of inference grows with pixels, boxes, classes, images and processes."""

import argparse
import os
import socket
import time
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from tabulate import tabulate
from torch import multiprocessing
from torch.nn.parallel import DistributedDataParallel

from .measure import WARMUP_ROUNDS, has_detectron2, make_parser, median, print_header, write_json
from .workers import Row, add_model_options, measure, open_workers

# The values of each option that is varied, one option at a time. Sizes are (height, width).
FACTORS = {
    "pixels": [(240, 320), (480, 640), (960, 1280)],
    "boxes": [1, 10, 100, 1000],
    "classes": [1, 20, 80, 365],
    "images": [1, 2, 4, 8],
}


def vary(settings: argparse.Namespace, factor: str, value) -> argparse.Namespace:
    changed = {"height": value[0], "width": value[1]} if factor == "pixels" else {factor: value}
    return argparse.Namespace(**{**vars(settings), **changed})


def measure_factor(settings: argparse.Namespace, factor: str) -> list[dict]:
    """A line of the table per value: medians of both steps, and how many times faster than Detectron2 they are."""
    rows, lines = [Row("FocalRetinaNet", "lite")], []
    if has_detectron2():
        rows.append(Row("RetinaNet", "detectron2"))
    for value in FACTORS[factor]:
        line = {"what": factor, "value": "x".join(map(str, value)) if factor == "pixels" else value}
        with open_workers(rows, vary(settings, factor, value)) as workers:
            for step, whole in (("train_step", "step"), ("inference", "inference")):
                results = measure(workers, step, settings.repeats)
                seconds = [np.array(result["seconds"][whole]) for result in results]
                line[f"{step}, ms"] = median(1000 * seconds[0])
                if len(results) > 1:
                    line[f"{step}, times faster"] = median(seconds[1] / seconds[0])
            line["peak, MiB"] = f"{results[0]['peak_mib']:.0f}"
        lines.append(line)
    return lines


def measure_processes(settings: argparse.Namespace, counts: Sequence[int]) -> list[dict]:
    """Images per second of data-parallel training on this machine; the processes share the threads."""
    lines = []
    for count in counts:
        with multiprocessing.get_context("spawn").Manager() as manager:
            seconds = manager.list()
            multiprocessing.spawn(_train_one_process, (count, _free_port(), settings, seconds), nprocs=count)
            images = settings.images * count
            lines.append({"what": "processes", "value": count, "train, images/s": median(images / np.array(seconds))})
    return lines


def _train_one_process(rank: int, count: int, port: int, settings: argparse.Namespace, seconds) -> None:
    """Train with ``settings.images`` images per process and step. Process 0 appends the seconds of each step."""
    os.environ["RETINANET_EXT_ENGINE"] = "lite"
    from benchmarks.subject import Subject

    threads = max(1, settings.threads // count)
    dist.init_process_group(
        "nccl" if settings.device == "cuda" else "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=count
    )
    subject = Subject(Row("FocalRetinaNet", "lite"), argparse.Namespace(**{**vars(settings), "threads": threads}))
    # A single process goes without the wrapper, as in the trainer.
    subject.model = DistributedDataParallel(subject.model, broadcast_buffers=False) if count > 1 else subject.model
    for number in range(WARMUP_ROUNDS + settings.repeats):
        dist.barrier()
        start = time.perf_counter()
        subject.train_step()
        dist.barrier()
        if rank == 0 and number >= WARMUP_ROUNDS:
            seconds.append(time.perf_counter() - start)
    dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser(f"{__doc__} Data-loader workers: benchmarks.loader.", repeats=4)
    add_model_options(parser)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2], help="numbers of processes to compare")
    parser.add_argument("--factors", nargs="*", default=list(FACTORS), choices=list(FACTORS), help="what to vary")
    return parser.parse_args(words)


def main() -> None:
    settings = parse_arguments()
    if settings.device == "cuda":
        settings.processes = [count for count in settings.processes if count <= torch.cuda.device_count()]
    header = print_header(settings)
    lines = []
    for factor in [*settings.factors, "processes"]:
        is_model = factor != "processes"
        found = measure_factor(settings, factor) if is_model else measure_processes(settings, settings.processes)
        print(tabulate(found, headers="keys", tablefmt="github", disable_numparse=True), end="\n\n", flush=True)
        lines += found
    write_json(settings.json, {"header": header, "lines": lines})


if __name__ == "__main__":
    main()
