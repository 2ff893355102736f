"""The network at inference on a CPU: this package, with and without TEST.COMPILE, beside OpenVINO and ONNX Runtime.

All rows compute the same: from normalised pixels to logits and deltas of every level. Rows of libraries that are not
installed are left out: ``pip install openvino onnxruntime onnx onnxscript``.
"""

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from retinanet_ext.inference.fast_copy import optimize_for_inference

from .measure import Case, format_cases, print_header, time_in_turns, write_cases
from .workers import TOLERANCES, Row, make_model_parser

Run = Callable[[], list[np.ndarray]]


class Network(nn.Module):
    """The network of a RetinaNet as a module of tensors, which is what the runtimes take."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Maps ``(N, 3, H, W)`` to the logits ``(N, R, K)`` of each level, followed by the deltas ``(N, R, 4)``."""
        _, logits, deltas = self.model.network(pixels)
        return (*logits, *deltas)


def make_cases(model: nn.Module, pixels: torch.Tensor, threads: int, folder: Path) -> list[Case]:
    """One case for each way to compute; the first is the reference."""
    fused = optimize_for_inference(model)
    cases = [Case("FocalRetinaNet float32", _eager(fused, pixels))]
    cases.append(Case("FocalRetinaNet float32, TEST.COMPILE", _eager(_compiled(model, "float32"), pixels)))
    cases.append(Case("FocalRetinaNet bfloat16", _eager(optimize_for_inference(model, dtype="bfloat16"), pixels)))
    cases.append(Case("FocalRetinaNet bfloat16, TEST.COMPILE", _eager(_compiled(model, "bfloat16"), pixels)))
    if importlib.util.find_spec("openvino"):
        for dtype in ("float32", "bfloat16"):
            cases.append(Case(f"OpenVINO {dtype}", _openvino(fused, pixels, threads, dtype)))
    if importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnxscript"):
        cases.append(Case("ONNX Runtime float32", _onnxruntime(fused, pixels, threads, folder)))
    return cases


def _compiled(model, dtype):
    return optimize_for_inference(model, dtype=dtype, compile=True)


def _eager(model: nn.Module, pixels: torch.Tensor) -> Run:
    network = Network(model)

    @torch.no_grad()
    def run():
        return [output.float().numpy() for output in network(pixels)]

    return run


def _openvino(model: nn.Module, pixels: torch.Tensor, threads: int, dtype: str) -> Run:
    import openvino

    converted = openvino.convert_model(Network(model).eval(), example_input=pixels)
    converted.reshape(list(pixels.shape))
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_PRECISION_HINT"] = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    compiled = openvino.Core().compile_model(converted, "CPU", settings)
    array = pixels.contiguous().numpy()
    return lambda: [np.asarray(output) for output in compiled(array).values()]


def _onnxruntime(model: nn.Module, pixels: torch.Tensor, threads: int, folder: Path) -> Run:
    import onnxruntime

    path = folder / "network.onnx"
    torch.onnx.export(Network(model).eval(), (pixels,), path, dynamo=True, external_data=False, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: pixels.contiguous().numpy()}
    return lambda: session.run(None, inputs)


def check(cases: list[Case]) -> None:
    """Fill in each case's difference to the first, relative to the largest output.

    Raises:
        RuntimeError: a case differs by more than the rounding of its dtype.
    """
    expected = cases[0].run()
    largest = max(float(np.abs(output).max()) for output in expected)
    for case in cases:
        found = case.run()
        case.difference = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True)) / largest
        dtype = "bfloat16" if "bfloat16" in case.name else "float32"
        if not case.difference <= TOLERANCES[dtype]["network"]:
            raise RuntimeError(f"{case.name} differs from {cases[0].name} by {case.difference}; nothing was timed")


def main() -> None:
    settings = make_model_parser(__doc__).parse_args()
    if settings.device != "cpu":
        raise SystemExit("this benchmark compares runtimes on a CPU; leave --device out")
    from .subject import Subject  # importing it chooses the engine

    header = print_header(settings)
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(Row("FocalRetinaNet", ""), settings)
        subject.make_weights(Path(folder) / "weights.pth")
        with torch.no_grad():
            model = subject.model.eval()
            pixels = model.preprocess_image(subject.inputs).tensor
        cases = make_cases(model, pixels, settings.threads, Path(folder))
        check(cases)
        time_in_turns(cases, settings.repeats)
    print(format_cases(cases, cases[0], "network"))
    write_cases(settings.json, header, {"network": cases})


if __name__ == "__main__":
    main()
