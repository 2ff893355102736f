"""Training as a config describes it."""

import logging
import os
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from retinanet_ext.machine.processes import bare_model
from retinanet_ext.training.step import TrainStep

from .. import comm
from ..cfg_node import CfgNode
from ..checkpointer import DetectionCheckpointer
from ..data import build_detection_test_loader, build_detection_train_loader
from ..evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format, verify_results
from ..events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter, get_event_storage
from ..logger import setup_logger
from ..meta_arch import build_model
from ..solver import build_lr_scheduler, build_optimizer
from . import hooks
from .train_loop import HookBase, TrainerBase

logger = logging.getLogger(__name__)


def create_ddp_model(model: nn.Module, **kwargs: Any) -> nn.Module:
    """Wrap a model for a job of several processes; ``kwargs`` go to ``DistributedDataParallel``."""
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    if device.type == "cuda":
        kwargs.setdefault("device_ids", [device.index])
    with warnings.catch_warnings():
        # torch 2.15 renamed `broadcast_buffers`; older versions know only the old name.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
        return DistributedDataParallel(model, **kwargs)


class DefaultTrainer(TrainerBase):
    """Training as ``cfg`` describes it. A subclass replaces a part by overriding its ``build_...`` method.

    Attributes:
        cfg: the config, scaled by :meth:`auto_scale_workers`.
        model, data_loader, optimizer, scheduler, checkpointer: the parts that training uses. All can be replaced.
    """

    def __init__(self, cfg: CfgNode):
        super().__init__()
        if not logging.getLogger("retinanet_ext").isEnabledFor(logging.INFO):
            setup_logger()
        self.cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        self.max_iter = self.cfg.SOLVER.MAX_ITER
        self._last_eval_results: Mapping[str, Any] | None = None
        # Data first: most mistakes are in the data, and should show before a large model is built.
        data_loader = self.build_train_loader(self.cfg)
        model = self.build_model(self.cfg)
        optimizer = self.build_optimizer(self.cfg, model)
        self.scheduler = self.build_lr_scheduler(self.cfg, optimizer)
        # Buffers are not broadcast: frozen statistics are the same in every process, and training does not read running
        # statistics.
        model = create_ddp_model(model, broadcast_buffers=False)
        # The step and the checkpointer get weak references to this trainer: with strong ones, only the garbage
        # collector could free it.
        weak_self = weakref.proxy(self)
        self._trainer = TrainStep.from_config(
            self.cfg, model, data_loader, optimizer,
            storage=get_event_storage, after_backward=lambda: weak_self.after_backward(),
        )  # fmt: skip
        self.checkpointer = DetectionCheckpointer(model, self.cfg.OUTPUT_DIR, trainer=weak_self)
        self.register_hooks(self.build_hooks())

    @property
    def model(self) -> nn.Module:
        """May be replaced; :attr:`optimizer` must then hold the parameters of the new model."""
        return self._trainer.model

    @model.setter
    def model(self, model: nn.Module) -> None:
        self._trainer.model = model
        self.checkpointer.model = bare_model(model)

    @property
    def data_loader(self) -> Iterable[Any]:
        """May be replaced."""
        return self._trainer.data_loader

    @data_loader.setter
    def data_loader(self, data_loader: Iterable[Any]) -> None:
        self._trainer.data_loader = data_loader

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """May be replaced; :attr:`scheduler` must then be built for the new optimizer."""
        return self._trainer.optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self._trainer.optimizer = optimizer

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume from the last checkpoint in ``OUTPUT_DIR`` if ``resume`` is True and a checkpoint exists, else
        load ``MODEL.WEIGHTS``.

        A resumed run starts at the iteration after the saved one, with the same weights, optimizer, learning rates,
        random numbers of the main process, and, if the loader has ``start_batch``, the same data.

        Raises:
            ValueError: the last checkpoint holds weights only, or the processes find different checkpoints.
        """
        resume = resume and self._has_common_checkpoint()
        self.iter = -1
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if not resume:
            return
        path = self.checkpointer.get_checkpoint_file()
        if self.iter == -1:  # `load_state_dict` was not called
            raise ValueError(
                f"{path} holds weights but no trainer state, so training cannot be resumed from it; "
                "to start from its weights, set MODEL.WEIGHTS to it and leave out --resume"
            )
        self.start_iter = self.iter + 1
        if hasattr(self.data_loader, "start_batch"):
            self.data_loader.start_batch = self.start_iter

    def _has_common_checkpoint(self) -> bool:
        found = comm.all_gather(os.path.basename(self.checkpointer.get_checkpoint_file()))
        if len(set(found)) > 1:
            each = ", ".join(f"rank {rank}: {name or 'none'}" for rank, name in enumerate(found))
            raise ValueError(
                f"the processes find different checkpoints to resume from in OUTPUT_DIR {self.cfg.OUTPUT_DIR} "
                f"({each}); all machines of a job must share that folder, or have a copy of its last checkpoint"
            )
        return self.checkpointer.has_checkpoint()

    def build_hooks(self) -> list[HookBase | None]:
        """Timer, learning rate, checkpoints, evaluation, writers; the order matters.

        Checkpoints come before evaluation, so that a failing evaluation loses nothing. Writers come last, so that
        they see what the other hooks put.
        """
        cfg, weak_self = self.cfg, weakref.proxy(self)
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD)
            if comm.is_main_process()
            else None,
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, lambda: weak_self._test_and_remember()),
            hooks.PeriodicWriter(self.build_writers(), period=20) if comm.is_main_process() else None,
        ]

    def _test_and_remember(self) -> Mapping[str, Any]:
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def build_writers(self) -> list[EventWriter]:
        """The log, ``metrics.json`` and TensorBoard. Called on the main process only."""
        folder = self.cfg.OUTPUT_DIR
        os.makedirs(folder, exist_ok=True)
        metrics = JSONWriter(os.path.join(folder, "metrics.json"))
        return [CommonMetricPrinter(self.max_iter), metrics, TensorboardXWriter(folder)]

    def train(self) -> Mapping[str, Any] | None:
        """Train from ``start_iter`` to ``max_iter``.

        Returns:
            The results of the last evaluation, on the main process; ``None`` without one.

        Raises:
            ValueError: the results do not match ``cfg.TEST.EXPECTED_RESULTS``.
        """
        super().train(self.start_iter, self.max_iter)
        if comm.is_main_process():
            verify_results(self.cfg, self._last_eval_results or {})
        return self._last_eval_results

    def run_step(self) -> None:
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def state_dict(self) -> dict[str, Any]:
        random_state = {"torch": torch.get_rng_state()}
        if torch.cuda.is_initialized():
            random_state["cuda"] = torch.cuda.get_rng_state()
        state = {**super().state_dict(), "_trainer": self._trainer.state_dict(), "random_state": random_state}
        if hasattr(self.data_loader, "seed"):
            state["data_seed"] = self.data_loader.seed
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])
        # This is the main process's state. The other processes must draw different numbers, so they keep their states.
        random_state = state_dict.get("random_state", {})
        if random_state and comm.is_main_process():
            torch.set_rng_state(random_state["torch"])
            if "cuda" in random_state and torch.cuda.is_initialized():
                torch.cuda.set_rng_state(random_state["cuda"])
        # A SEED in the config has priority over the checkpoint's; without a SEED the data keep their order.
        if self.cfg.SEED < 0 and hasattr(self.data_loader, "start_batch"):
            if "data_seed" in state_dict:
                self.data_loader.seed = state_dict["data_seed"]
            else:
                logger.warning(
                    "SEED is negative, and the checkpoint does not hold the seed of the data: the remaining data come "
                    "in a new random order"
                )

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_model(cfg)
        logger.info("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(
        cls, cfg: CfgNode, optimizer: torch.optim.Optimizer
    ) -> "torch.optim.lr_scheduler.LRScheduler":
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[Any]:
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Any]:
        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        raise NotImplementedError(
            f"no evaluator for {dataset_name}: override build_evaluator in the trainer, or call test() with evaluators"
        )

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None = None,
    ) -> Mapping[str, Any]:
        """Evaluate a model on every data set of ``cfg.DATASETS.TEST``.

        Args:
            evaluators: one for each data set; ``None``: those of :meth:`build_evaluator`.

        Returns:
            Results by data set name, or, with a single data set, its results. Empty on all but the main process.
        """
        names = cfg.DATASETS.TEST
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if evaluators is not None and len(evaluators) != len(names):
            raise ValueError(f"{len(evaluators)} evaluators for {len(names)} test data sets {tuple(names)}")
        results = OrderedDict()
        for index, name in enumerate(names):
            data_loader = cls.build_test_loader(cfg, name)
            try:
                evaluator = evaluators[index] if evaluators else cls.build_evaluator(cfg, name)
            except NotImplementedError as error:
                logger.warning("%s", error)
                results[name] = {}
                continue
            results[name] = inference_on_dataset(model, data_loader, evaluator)
            if comm.is_main_process():
                logger.info("Results on %s:", name)
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Adapt a schedule written for ``SOLVER.REFERENCE_WORLD_SIZE`` processes to ``num_workers``.

        The batch per process stays the same. The total batch and the learning rate grow in proportion to the number
        of processes, and numbers of iterations shrink (Goyal et al., "Accurate, Large Minibatch SGD").

        Returns:
            A new config, or ``cfg`` itself if there is nothing to do.
        """
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference in (0, num_workers):
            return cfg
        if cfg.SOLVER.IMS_PER_BATCH % reference:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} must be a multiple of "
                f"SOLVER.REFERENCE_WORLD_SIZE {reference}, which gives the batch per process"
            )
        frozen = cfg.is_frozen()
        cfg = cfg.clone()
        cfg.defrost()
        factor = num_workers / reference
        solver = cfg.SOLVER
        solver.REFERENCE_WORLD_SIZE = num_workers
        solver.IMS_PER_BATCH = round(solver.IMS_PER_BATCH * factor)
        solver.BASE_LR *= factor
        for key in ("MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD"):
            solver[key] = round(solver[key] / factor)
        solver.STEPS = tuple(round(step / factor) for step in solver.STEPS)
        cfg.TEST.EVAL_PERIOD = round(cfg.TEST.EVAL_PERIOD / factor)
        logger.info(
            "Config scaled from %d to %d processes: batch %d, learning rate %g, %d iterations, warm-up %d",
            reference, num_workers, solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER,
            solver.WARMUP_ITERS,
        )  # fmt: skip
        if frozen:
            cfg.freeze()
        return cfg
