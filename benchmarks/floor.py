"""The least time that a training step and an inference can take here: their operations divided by the measured rate."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode

from .measure import make_parser, median, now, print_header, write_json
from .workers import Row, add_model_options


def operations(settings) -> dict[str, int]:
    """Floating-point operations (a multiplication and an addition are two) of the convolutions of both steps."""
    from benchmarks.subject import Subject  # here, because it imports an engine

    subject = Subject(Row("FocalRetinaNet", "lite"), settings)
    found = {}
    for name, run in (("inference", subject.inference), ("train step", subject.train_step)):
        with FlopCounterMode(display=False) as counter:
            run()
        found[name] = counter.get_total_flops()
    return found


def rates(settings, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Operations/s of a matrix product and of the network's commonest convolution, bytes/s of a copy: ``(M,)`` each."""
    device, generator = settings.device, torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    a, b = random(4096, 2304), random(2304, 2048)
    maps = random(settings.images, 256, settings.height // 8, settings.width // 8)
    maps = maps.contiguous(memory_format=torch.channels_last)
    kernel = random(256, 256, 3, 3).contiguous(memory_format=torch.channels_last)
    large, target = random(64, 2**20), torch.empty(64, 2**20, dtype=dtype, device=device)
    work = {
        "matrix product": (lambda: a @ b, 2 * a.numel() * b.shape[1]),
        "convolution": (lambda: F.conv2d(maps, kernel, padding=1), 2 * maps.numel() * kernel[:, :, 0, 0].shape[0] * 9),
        "copy": (lambda: target.copy_(large), 2 * large.numel() * large.element_size()),
    }
    return {name: amount / _seconds(run, settings) for name, (run, amount) in work.items()}


@torch.no_grad()
def _seconds(run: Callable[[], object], settings) -> np.ndarray:
    times = []
    for number in range(2 + 5 * settings.repeats):
        start = now(settings.device)
        run()
        if number >= 2:
            times.append(now(settings.device) - start)
    return np.array(times)


def parse_arguments(words: Sequence[str] | None = None):
    parser = make_parser(__doc__, repeats=4)
    add_model_options(parser)
    return parser.parse_args(words)


def main() -> None:
    settings = parse_arguments()
    torch.set_num_threads(settings.threads)
    header = print_header(settings)
    counted, lines = operations(settings), []
    found = {"operations": counted}
    for dtype in (torch.float32, torch.bfloat16):
        measured = rates(settings, dtype)
        found[str(dtype)] = {name: values.tolist() for name, values in measured.items()}
        line = {"dtype": str(dtype).removeprefix("torch.")}
        line |= {f"{name}, GFLOP/s": median(measured[name] / 1e9) for name in ("matrix product", "convolution")}
        line["copy, GB/s"] = median(measured["copy"] / 1e9)
        fastest = max(np.median(measured["matrix product"]), np.median(measured["convolution"]))
        line |= {f"{name}, ms at least": f"{1000 * count / fastest:.0f}" for name, count in counted.items()}
        lines.append(line)
    print(", ".join(f"{name}: {count / 1e9:.0f} GFLOP" for name, count in counted.items()), end="\n\n")
    print(tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True))
    write_json(settings.json, {"header": header, **found})


if __name__ == "__main__":
    main()
