"""The flags of a training run. Independent of the engine, and of torch."""

import argparse


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of Detectron2's ``train_net.py``, followed by ``KEY VALUE`` overrides, in ``opts``."""
    parser.add_argument("--config-file", default="", metavar="FILE", help="YAML config")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, do not train")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes per machine, one per GPU (or on CPU)")
    parser.add_argument("--num-machines", type=int, default=1, help="machines in the job")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    parser.add_argument(
        "--dist-url",
        default="auto",
        help="tcp://ADDRESS:PORT of machine 0; auto: a free port of this machine",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="pairs that override keys of the config"
    )
