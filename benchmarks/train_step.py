"""One training step of RetinaNet: this package on both engines, Detectron2's own model and torchvision's."""

from .workers import available_rows, make_model_parser, report


def main() -> None:
    settings = make_model_parser(__doc__).parse_args()
    report(settings, available_rows(settings.device), "train_step", whole="step")


if __name__ == "__main__":
    main()
