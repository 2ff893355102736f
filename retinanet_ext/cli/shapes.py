"""``retinanet-ext shapes``: write the generated data set."""

import argparse

from .usage import usage_errors

HELP = "Write a small generated detection set (coloured shapes, COCO format) to a folder, unless it is there."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--train", type=int, default=800, metavar="N", help="training images (default: 800)")
    parser.add_argument("--val", type=int, default=200, metavar="N", help="validation images (default: 200)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="same seed, same set (default: 0)")
    parser.add_argument("--size", type=int, default=256, metavar="S", help="side of the images, pixels (default: 256)")
    parser.add_argument(
        "--objects", type=int, nargs=2, metavar=("MIN", "MAX"),
        help="objects in an image, each number equally likely (default: 1 to 8, and none in a tenth of the images)",
    )  # fmt: skip
    parser.add_argument(
        "--distractors", type=int, default=0, metavar="N",
        help="in each image, shapes of no class in the colours of the classes (default: 0)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace a set that has other settings")


def run(args: argparse.Namespace) -> int:
    from retinanet_ext.data.generated_shapes import write_shapes

    with usage_errors():
        write_shapes(
            args.output, args.train, args.val, args.seed, args.size, args.overwrite, args.objects, args.distractors
        )
    return 0
