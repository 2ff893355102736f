"""Preparation of a run: its command line, and its output folder, log, seeds and CUDA switches."""

import argparse
import logging
import os

import torch

from retinanet_ext.training.arguments import add_engine_arguments

from .. import comm
from ..cfg_node import CfgNode
from ..env import collect_env_info, seed_all_rng
from ..logger import setup_logger

logger = logging.getLogger(__name__)


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """The flags of Detectron2's ``train_net.py``, followed by ``KEY VALUE`` overrides, in ``opts``."""
    parser = argparse.ArgumentParser(epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_engine_arguments(parser)
    return parser


def default_setup(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Prepare a run: output folder, log, environment and config on record, seeds, CUDA switches.

    The main process writes ``log.txt`` and ``config.yaml`` to ``cfg.OUTPUT_DIR``. With ``cfg.SEED`` >= 0
    process ``r`` is seeded with ``SEED + r``.
    """
    rank = comm.get_rank()
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    setup_logger(cfg.OUTPUT_DIR, rank, name="fvcore")
    setup_logger(cfg.OUTPUT_DIR, rank)
    logger.info("Process %d of %d", rank, comm.get_world_size())
    logger.info("Environment:\n%s", collect_env_info())
    logger.info("Command line: %s", args)
    if comm.is_main_process():
        path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(cfg.dump())
        logger.info("Config, also in %s:\n%s", path, cfg.dump())
    seed_all_rng(cfg.SEED + rank if cfg.SEED >= 0 else None)
    if cfg.FLOAT32_PRECISION:
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)
    # In evaluation nearly every batch has a new shape, and timing algorithms for each shape costs more than it saves.
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
