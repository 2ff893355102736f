"""``retinanet-ext train``: train or evaluate a model, as ``train_net.py`` does."""

import argparse

from retinanet_ext.training.arguments import add_train_arguments
from retinanet_ext.training.command import run_command

from .usage import UsageError

HELP = "Train a model, or evaluate one with --eval-only; the flags are those of Detectron2's train_net.py."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_train_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if not args.config_file:
        raise UsageError("--config-file is missing; configs/ and README.md list those that come with the package.")
    return run_command(args)
