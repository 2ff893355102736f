"""Inference of RetinaNet: this package on both engines, Detectron2's own model and torchvision's."""

from .workers import available_rows, make_model_parser, report


def modes(device: str, compile: bool) -> list[str]:
    return (["CUDA graphs"] if device == "cuda" else []) + (["compile"] if compile else [])


def main() -> None:
    parser = make_model_parser(__doc__)
    parser.add_argument("--compile", action="store_true", help="add a row with TEST.COMPILE; it takes minutes to start")
    settings = parser.parse_args()
    rows = available_rows(settings.device, modes(settings.device, settings.compile))
    report(settings, rows, "inference", whole="inference")


if __name__ == "__main__":
    main()
