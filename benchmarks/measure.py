"""Timing of functions that compute the same: in turns, with spread, peak memory and differences, in one table."""

import ctypes
import datetime
import gc
import importlib.metadata
import importlib.util
import json
import platform
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from retinanet_ext.machine.cpu import processor_name

WARMUP_ROUNDS = 2
PROC_STATUS = Path("/proc/self/status")


@dataclass
class Case:
    """One way to do the work under measurement.

    Attributes:
        name: its row in the table.
        run: does the work once and returns its result. This call is timed.
        difference: largest difference between its result and the reference's; the benchmark's check fills it in.
        seconds: one time per round.
        peak_mib: memory that a run takes in addition to what was in use before it.
    """

    name: str
    run: Callable[[], Any]
    difference: float | None = None
    seconds: list[float] = field(default_factory=list)
    peak_mib: float | None = None


def time_in_turns(cases: Sequence[Case], repeats: int, device: str = "cpu") -> None:
    """Fill in ``seconds`` and ``peak_mib`` of all ``cases``.

    Every round runs every case once, and starts with another case, so that a drift of the machine hits all alike.
    """
    for case in cases:
        case.peak_mib = _peak_mib(case.run, device)
    for number in range(WARMUP_ROUNDS + repeats):
        first = number % len(cases)
        for case in [*cases[first:], *cases[:first]]:
            start = now(device)
            case.run()
            seconds = now(device) - start
            if number >= WARMUP_ROUNDS:
                case.seconds.append(seconds)


def now(device: str) -> float:
    """A clock in seconds, read after the device has finished all its work."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak_mib(run: Callable[[], Any], device: str) -> float | None:
    """CUDA: memory of PyTorch's tensors. CPU: growth of the resident set during the run, on Linux only."""
    run()  # allocates what stays allocated, and loads code on first use
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # otherwise freed memory would be used again without being counted
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark to the present size
    except OSError:
        return None
    before = status_mib("VmHWM")
    run()
    return status_mib("VmHWM") - before


def status_mib(name: str) -> float:
    line = next(line for line in PROC_STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def format_cases(cases: Sequence[Case], reference: Case, title: str = "case") -> str:
    """Markdown: medians in milliseconds with the interquartile range in brackets, and differences from the reference.

    ``times faster`` compares with the reference in the same round.
    """
    lines = []
    for case in cases:
        seconds = np.array(case.seconds)
        line = {title: case.name, "time, ms": median(1000 * seconds)}
        line["times faster"] = "1" if case is reference else median(np.array(reference.seconds) / seconds)
        line["memory, MiB"] = "" if case.peak_mib is None else f"{case.peak_mib:.1f}"
        line["difference"] = "" if case.difference is None else f"{case.difference:.0e}"
        lines.append(line)
    return tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True)


def median(values: np.ndarray) -> str:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.4g} ({high - low:.2g})"


def make_parser(description: str, repeats: int = 10) -> ArgumentParser:
    """A parser with the options that all benchmarks share."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=repeats, help="timed rounds, after two rounds of warm-up")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of PyTorch")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", metavar="FILE", help="write the header and every single time to this file")
    return parser


def print_header(settings: Namespace, **more: Any) -> dict[str, Any]:
    """Print and return what the figures depend on: date, machine, versions and settings."""
    header = {"date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"), "CPU": processor_name()}
    if settings.device == "cuda":
        header["GPU"] = torch.cuda.get_device_name()
    header |= {"python": platform.python_version()} | {name: version(name) for name in ("torch", "torchvision")}
    header |= {"detectron2": version("detectron2")} | more
    header |= {name: value for name, value in vars(settings).items() if name != "json"}
    print("\n".join(f"{name}: {value}" for name, value in header.items()), end="\n\n", flush=True)
    return header


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def has_detectron2() -> bool:
    spec = importlib.util.find_spec("detectron2")
    return spec is not None and spec.origin is not None  # a folder that only has that name has no origin


def write_cases(file: str | None, header: dict, tables: dict[str, Sequence[Case]]) -> None:
    """Write every single time to ``file``, unless it is None."""
    names = ("name", "seconds", "peak_mib", "difference")
    rows = {table: [{name: getattr(case, name) for name in names} for case in cases] for table, cases in tables.items()}
    write_json(file, {"header": header, "tables": rows})


def write_json(file: str | None, content: dict) -> None:
    """Write ``content`` to ``file``, unless it is None."""
    if file is not None:
        Path(file).write_text(json.dumps(content, indent=1) + "\n")
        print(f"\nwrote {file}", file=sys.stderr)
