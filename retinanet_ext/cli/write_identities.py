"""``retinanet-ext identities``: write the generated faces."""

import argparse

from .usage import usage_errors

HELP = "Write a small generated set of faces (a folder per identity) to a folder, unless it is there."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to create")
    parser.add_argument("--train", type=int, default=60, metavar="N", help="training identities (default: 60)")
    parser.add_argument("--val", type=int, default=20, metavar="N", help="validation identities, others (default: 20)")
    parser.add_argument("--images", type=int, default=20, metavar="N", help="images of each (default: 20)")
    parser.add_argument("--size", type=int, default=64, metavar="S", help="side of the images, pixels (default: 64)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="same seed, same set (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace a set that has other settings")


def run(args: argparse.Namespace) -> int:
    from retinanet_ext.data.generated_identities import write_identities

    with usage_errors():
        write_identities(args.output, args.train, args.val, args.images, args.seed, args.size, args.overwrite)
    return 0
