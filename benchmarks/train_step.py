"""Training step and inference of RetinaNet on both engines and by Detectron2 itself, in one table."""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tabulate import tabulate

from benchmarks.measure import TIMES, Row, Settings, Worker, measure, open_workers


def available_rows() -> list[Row]:
    """The rows that can run here. The last one is the reference of the others."""
    rows = [Row("FocalRetinaNet", "lite")]
    if _detectron2_is_installed():
        rows += [Row("FocalRetinaNet", "detectron2"), Row("RetinaNet", "detectron2")]
    return rows


def _detectron2_is_installed() -> bool:
    spec = importlib.util.find_spec("detectron2")
    return spec is not None and spec.origin is not None  # a mere folder of that name has no origin


def format_header(worker: Worker, repeats: int, settings: Settings) -> str:
    """When, where and with what a run was done."""
    installed = _detectron2_is_installed()
    header = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "CPU": _cpu_model(),
        **worker.ask("describe"),
        "detectron2": importlib.metadata.version("detectron2") if installed else "not installed, so it has no rows",
        **settings._asdict(),
        "repeats": repeats,
    }
    return "\n".join(f"{name}: {value}" for name, value in header.items())


def format_table(results: Sequence[dict]) -> str:
    """Markdown: medians, with the interquartile range in brackets; ratios to the last row in the same round."""
    lines, reference = [], results[-1]
    for result in results:
        seconds = {name: np.array(values) for name, values in result["seconds"].items()}
        line = {"model": result["row"]} | {f"{name}, ms": _median(1000 * seconds[name]) for name in TIMES}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10, help="timed rounds, after 2 that are not")
    parser.add_argument("--images", type=int, default=2, help="images a step")
    parser.add_argument("--height", type=int, default=480, help="of each image, in pixels")
    parser.add_argument("--width", type=int, default=640, help="of each image, in pixels")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of PyTorch")
    parser.add_argument("--depth", type=int, default=50, choices=[18, 34, 50, 101], help="of the ResNet")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the header and every single time here")
    arguments = parser.parse_args()

    settings = Settings(*(getattr(arguments, name) for name in Settings._fields))
    with open_workers(available_rows(), settings) as workers:
        header = format_header(workers[0], arguments.repeats, settings)
        print(header, end="\n\n", flush=True)
        results = measure(workers, arguments.repeats)
    print(format_table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps({"header": header.splitlines(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
