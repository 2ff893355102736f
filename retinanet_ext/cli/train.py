"""``retinanet-ext train``: train or evaluate a model, as ``train_net.py`` does."""

import argparse

from retinanet_ext.training.arguments import add_train_arguments

from .usage import UsageError, usage_errors

HELP = "Train a model, or evaluate one with --eval-only; the flags are those of Detectron2's train_net.py."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_train_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from retinanet_ext.config.loading import load_config
    from retinanet_ext.training.launch import launch, main

    if not args.config_file:
        raise UsageError("--config-file is missing; configs/ and README.md list those that come with the package.")
    with usage_errors():  # mistakes in the config are said without a traceback
        load_config(args.config_file, args.opts, datasets=False)
    launch(main, args)
    return 0
