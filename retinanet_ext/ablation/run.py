"""One run as a plain function: config in, metrics out, and the process afterwards as it was before."""

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
from retinanet_ext.training.trainer import Trainer

# Those that the engines and this package log to.
_LOGGERS = ("detectron2", "fvcore", "retinanet_ext")
_OF_ALL_OBJECTS = ("AP", "AP50", "AP75")


class DivergedError(FloatingPointError):
    """A loss was not finite at ``iteration``, which counts from 0."""

    def __init__(self, iteration: int, message: str):
        super().__init__(f"iteration {iteration}: {message}")
        self.iteration = iteration


def run(cfg: CfgNode) -> dict[str, float]:
    """Train and evaluate as ``train_net.py --resume`` does: from the last checkpoint in ``OUTPUT_DIR`` if there is one.

    May be called any number of times in one process. Random generators, loggers, precision and cuDNN switches,
    environment variables and the catalogs of datasets are then as they were; only freed memory stays with the process
    (see `cpu_memory`). With ``SEED`` >= 0, two runs on a CPU into two empty folders give the same metrics.

    Args:
        cfg: not changed; its ``DATASETS.CUSTOM`` need not be registered yet.

    Returns:
        "task/metric" -> value, as in ``results.json``: AP in 0-100, NaN where undefined; but AP, AP50 and AP75 are 0 if
        nothing at all was detected, where the evaluators leave them undefined. With several ``DATASETS.TEST`` each name
        begins with that of the dataset; in a job of several processes all but the main one get an empty dict.

    Raises:
        DivergedError: a loss that is not finite.
        ValueError: no ``DATASETS.TEST``, or whatever else of the config or the data cannot be trained with.
    """
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST names no dataset, so the run would have no metrics")
    check_device(cfg.MODEL.DEVICE)
    cfg = cfg.clone()
    cfg.freeze()
    with _process_left_as_it_was(cfg):
        register_custom_datasets(cfg)
        default_setup(cfg, Namespace(config_file="", eval_only=False))
        # Detectron2 sets up its own log only.
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
        results = {**results, **dict.fromkeys(_OF_ALL_OBJECTS, 0.0)}
    for name, value in results.items():
        if isinstance(value, dict):
            metrics |= _flat_metrics(value, f"{prefix}{name}/")
        else:
            metrics[f"{prefix}{name}"] = math.nan if value is None else value
    return metrics


def _nothing_was_detected(results: dict) -> bool:
    """The evaluator then leaves everything undefined, also what is 0: precision with objects, and none of them found.

    The metrics of objects of one size or class stay undefined: there may be no such objects.
    """
    return set(_OF_ALL_OBJECTS) <= set(results) and all(value is None for value in results.values())


@contextmanager
def _process_left_as_it_was(cfg: CfgNode) -> Iterator[None]:
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
                # Detectron2 leaves its files open until the process ends: in a long search there would be too many.
                if stream not in (None, sys.stdout, sys.stderr) and id(stream) not in kept:
                    stream.close()
            logger.handlers[:] = handlers
            logger.setLevel(level)
            logger.propagate = propagate
        _forget_set_up_logs()


def _forget_set_up_logs() -> None:
    """Detectron2 sets a log up once for all; asked again for the same folder, it would log nothing."""
    for function in vars(sys.modules[setup_logger.__module__]).values():
        if getattr(function, "__module__", None) == setup_logger.__module__ and hasattr(function, "cache_clear"):
            function.cache_clear()


@contextmanager
def _environment():
    before = os.environ.get("PYTHONHASHSEED")  # set by Detectron2 along with the seeds
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
    # Seeds are set on all GPUs. Those that nobody uses are not woken up for it.
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
        # Where a dataset has no annotation file, Detectron2's evaluator writes one for the run, and names it here.
        for metadata in MetadataCatalog.values():
            if output_dir in Path(metadata.as_dict().get("json_file") or "/").parents:
                del metadata.json_file
