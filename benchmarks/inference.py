"""Inference of RetinaNet: this package on both engines, Detectron2's own model and torchvision's."""

import json
from collections.abc import Sequence
from pathlib import Path

from .measure import make_parser, print_header
from .workers import Row, add_model_options, format_results, has_detectron2, measure, open_workers


def rows(device: str, compile: bool) -> list[Row]:
    """What can run here. The last is the reference of the others."""
    engines = ["lite", "detectron2"] if has_detectron2() else ["lite"]
    found = [Row("FocalRetinaNet", engine, dtype) for dtype in ("float32", "bfloat16") for engine in engines]
    if device == "cuda":
        found.append(Row("FocalRetinaNet", engines[-1], "bfloat16", "CUDA graphs"))
    if compile:
        found.append(Row("FocalRetinaNet", engines[-1], "bfloat16", "compile"))
    found.append(Row("torchvision", ""))
    if has_detectron2():
        if device == "cuda":
            found.append(Row("RetinaNet", "detectron2", "float16"))
        found.append(Row("RetinaNet", "detectron2"))
    return found


def parse_arguments(words: Sequence[str] | None = None):
    parser = make_parser(__doc__)
    add_model_options(parser)
    parser.add_argument("--compile", action="store_true", help="a row with TEST.COMPILE; takes minutes to begin")
    return parser.parse_args(words)


def main() -> None:
    settings = parse_arguments()
    header = print_header(settings)
    with open_workers(rows(settings.device, settings.compile), settings) as workers:
        results = measure(workers, "inference", settings.repeats)
    print(format_results(results, whole="inference"))
    if settings.json:
        Path(settings.json).write_text(json.dumps({"header": header, "results": results}, indent=1))


if __name__ == "__main__":
    main()
