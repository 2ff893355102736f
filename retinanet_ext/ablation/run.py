"""One run as a plain function: config in, metrics out. It restores the state of the process."""

import json
import logging
import math
import os
import random
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from retinanet_ext.d2 import CfgNode, DatasetCatalog, MetadataCatalog, comm, default_setup, setup_logger
from retinanet_ext.data.registration import register_custom_datasets
from retinanet_ext.machine.devices import check_device
from retinanet_ext.training.explained_results import INTERVALS, REASONS
from retinanet_ext.training.trainer import Trainer

# Loggers of the engines and of this package.
_LOGGERS = ("detectron2", "fvcore", "retinanet_ext")
_OVERALL_METRICS = ("AP", "AP50", "AP75")


class DivergedError(FloatingPointError):
    """A loss was not finite at ``iteration``, which counts from 0."""

    def __init__(self, iteration: int, message: str):
        super().__init__(f"iteration {iteration}: {message}")
        self.iteration = iteration


def run(cfg: CfgNode) -> dict[str, float]:
    """Train and evaluate as ``train_net.py --resume`` does: from the last checkpoint in ``OUTPUT_DIR`` if there is one.

    May be called any number of times in one process: it restores random generators, loggers, precision and cuDNN
    switches, environment variables and the catalogs of datasets. Only freed memory stays with the process (see
    `keep_freed_memory`). With ``SEED`` >= 0, two runs on a CPU into two empty folders give the same metrics.

    Args:
        cfg: not changed; its ``DATASETS.CUSTOM`` need not be registered yet.

    Returns:
        "task/metric" -> value, as in ``results.json``: AP in 0-100, NaN where undefined. If nothing was detected, AP,
        AP50 and AP75 are 0, although the evaluators leave them undefined. With several ``DATASETS.TEST``, each name
        starts with that of the dataset. In a job of several processes, all but the main process get an empty dict.

    Raises:
        DivergedError: a loss is not finite.
        ValueError: ``DATASETS.TEST`` is empty, or something else in the config or the data makes training impossible.
    """
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST names no dataset, so the run would have no metrics")
    check_device(cfg.MODEL.DEVICE)
    cfg = cfg.clone()
    cfg.freeze()
    with _restored_process_state(cfg):
        register_custom_datasets(cfg)
        default_setup(cfg, Namespace(config_file="", eval_only=False))
        # Detectron2 sets up only its own log.
        setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="retinanet_ext")
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=any(comm.all_gather(trainer.checkpointer.has_checkpoint())))
        try:
            trainer.train()
        except FloatingPointError as error:
            raise DivergedError(trainer.iter, str(error)) from error
    if not comm.is_main_process():
        return {}
    return _flat_metrics(json.loads((Path(cfg.OUTPUT_DIR) / "results.json").read_text()))


def _flat_metrics(results: dict, prefix: str = "") -> dict[str, float]:
    metrics = {}
    if _nothing_was_detected(results):
        results = {**results, **dict.fromkeys(_OVERALL_METRICS, 0.0)}
    for name, value in results.items():
        if name in (REASONS, INTERVALS):
            continue
        if isinstance(value, dict):
            metrics |= _flat_metrics(value, f"{prefix}{name}/")
        else:
            metrics[f"{prefix}{name}"] = math.nan if value is None else value
    return metrics


def _nothing_was_detected(results: dict) -> bool:
    """Whether all overall metrics are undefined, because the evaluator saw no detection.

    With objects to find and none found, precision is 0, not undefined. The metrics of objects of one size or class stay
    undefined, because there may be no such objects.
    """
    return set(_OVERALL_METRICS) <= set(results) and all(value is None for value in results.values())


@contextmanager
def _restored_process_state(cfg: CfgNode) -> Iterator[None]:
    with _logging(), _environment(), _switches(), _random_generators(cfg), _catalogs(Path(cfg.OUTPUT_DIR)):
        yield


@contextmanager
def _logging():
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger, logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    kept = {id(getattr(handler, "stream", None)) for *_, handlers in before for handler in handlers}
    try:
        yield
    finally:
        for logger, level, propagate, handlers in before:
            for handler in [handler for handler in logger.handlers if handler not in handlers]:
                logger.removeHandler(handler)
                stream = getattr(handler, "stream", sys.stdout)
                handler.close()
                # Detectron2 keeps its log files open until the process ends; a long search would open too many.
                if stream not in (None, sys.stdout, sys.stderr) and id(stream) not in kept:
                    stream.close()
            logger.handlers[:] = handlers
            logger.setLevel(level)
            logger.propagate = propagate
        _forget_set_up_logs()


def _forget_set_up_logs() -> None:
    """Clear the caches of Detectron2's log set-up; else a second run in the same folder would log nothing."""
    for function in vars(sys.modules[setup_logger.__module__]).values():
        if getattr(function, "__module__", None) == setup_logger.__module__ and hasattr(function, "cache_clear"):
            function.cache_clear()


@contextmanager
def _environment():
    before = os.environ.get("PYTHONHASHSEED")  # Detectron2 sets it together with the seeds
    try:
        yield
    finally:
        os.environ.pop("PYTHONHASHSEED", None)
        if before is not None:
            os.environ["PYTHONHASHSEED"] = before


@contextmanager
def _switches():
    cudnn_benchmark, cudnn_tf32 = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    matmul = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = cudnn_benchmark, cudnn_tf32
        torch.set_float32_matmul_precision(matmul)


@contextmanager
def _random_generators(cfg: CfgNode):
    python, numpy = random.getstate(), np.random.get_state()
    # Seeding changes the generators of all GPUs. A run on a CPU must not initialise CUDA just to save them.
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda") or torch.cuda.is_initialized()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if on_gpu else ()):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _catalogs(output_dir: Path):
    before = [(catalog, set(catalog)) for catalog in (DatasetCatalog, MetadataCatalog)]
    try:
        yield
    finally:
        for catalog, names in before:
            for name in set(catalog) - names:
                catalog.remove(name)
        # For a dataset without annotation file, Detectron2's evaluator writes one for the run and stores its path here.
        for metadata in MetadataCatalog.values():
            if output_dir in Path(metadata.as_dict().get("json_file") or "/").parents:
                del metadata.json_file
