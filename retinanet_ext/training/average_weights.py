"""A moving average of the weights: kept beside them, saved, resumed and evaluated."""

import contextlib
import logging
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from retinanet_ext.checkpoint.checked_checkpointer import CheckedCheckpointer
from retinanet_ext.d2 import CfgNode, FrozenBatchNorm2d, comm, hooks
from retinanet_ext.inference.encoded_mask_output import encoded_masks
from retinanet_ext.inference.fast_copy import inference_model
from retinanet_ext.machine.processes import bare_model

from .explained_results import with_reasons
from .processes.running_statistics import average_over_processes
from .run_record import write_results

ENTRY, SUFFIX, FINAL_FILE = "ema", "_EMA", "model_final_ema"

logger = logging.getLogger(__name__)


class AverageWeights:
    """``average = d * average + (1 - d) * weights`` after each step, for parameters and floating-point buffers.

    ``d = min(decay, (1 + n) / (10 + n))`` after ``n`` updates, so that the first weights are soon forgotten. Parameters
    that do not train and buffers of frozen batch norms are not doubled: they are those of the model.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """
        Args:
            model: perhaps wrapped in ``DistributedDataParallel``. The average begins with its weights of now.
            decay: from 0 to below 1.
        """
        self.decay, self.updates = decay, 0
        self._model = bare_model(model)
        self._average: dict[str, torch.Tensor] = {}
        self.restart()

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew with the model's weights of now."""
        self.updates = 0
        self._average = {name: tensor.detach().clone() for name, tensor in _averaged(self._model).items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's weights of now."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        weights = _averaged(self._model)
        torch._foreach_lerp_(list(self._average.values()), [weights[name] for name in self._average], 1 - decay)

    def average_buffers(self) -> None:
        """Make the averages of buffers equal in all processes, in place; those of parameters are. All call it."""
        buffers = dict(self._model.named_buffers())
        average_over_processes([tensor for name, tensor in self._average.items() if name in buffers])

    @contextlib.contextmanager
    def in_model(self) -> Iterator[None]:
        """Within the block the model has the average weights; afterwards its own, bit for bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        # The values, not the tensors: the optimizer and DistributedDataParallel hold the model's.
        weights = _averaged(self._model)
        for name, average in self._average.items():
            own = weights[name].clone()
            weights[name].copy_(average)
            average.copy_(own)

    def model_state(self) -> dict[str, torch.Tensor]:
        """The model's ``state_dict`` with the average weights: tensors ``(...)`` of any shape, by name."""
        return {**self._model.state_dict(), **self._average}

    def state_dict(self) -> dict[str, Any]:
        """``updates``, and ``weights`` by name."""
        return {"updates": self.updates, "weights": dict(self._average)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`.

        Raises:
            ValueError: it is the average of another model.
        """
        weights = state["weights"]
        wrong = set(weights) ^ set(self._average)
        wrong |= {n for n in set(weights) & set(self._average) if weights[n].shape != self._average[n].shape}
        if wrong:
            raise ValueError(
                f"the average weights in the checkpoint (MODEL.EMA) are those of another model: {len(wrong)} names or "
                f"shapes differ, such as {min(wrong)}"
            )
        for name, tensor in self._average.items():
            tensor.copy_(weights[name])
        self.updates = int(state["updates"])


def _averaged(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of the model that its average has, by name."""
    frozen = {
        id(buffer) for module in model.modules() if isinstance(module, FrozenBatchNorm2d) for buffer in module.buffers()
    }
    constant = {id(parameter) for parameter in model.parameters() if not parameter.requires_grad} | frozen
    tensors = model.state_dict(keep_vars=True)
    return {n: t for n, t in tensors.items() if t.is_floating_point() and id(t) not in constant}


class AveragedModel:
    """Stands for a model in a checkpointer that saves the average weights."""

    def __init__(self, model: nn.Module, average: AverageWeights) -> None:
        self._model, self.state_dict = bare_model(model), average.model_state

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class AverageHook(hooks.HookBase):
    """Updates the average after each step. Register it on every process, before the hook that saves checkpoints."""

    def __init__(self, average: AverageWeights, save_period: int, output_dir: str) -> None:
        """``save_period``: that of the checkpoints."""
        self._average, self._period, self._output_dir = average, save_period, output_dir

    def before_train(self) -> None:
        if self.trainer.start_iter == 0:
            self._average.restart()  # weights were loaded after the hook was made
        elif self._average.updates == 0:
            logger.warning("the checkpoint has no average weights (MODEL.EMA); the average begins with its weights")
            self._average.restart()

    def after_step(self) -> None:
        self._average.update()
        done = self.trainer.iter + 1
        if done >= self.trainer.max_iter or (self._period > 0 and done % self._period == 0):
            self._average.average_buffers()

    def after_train(self) -> None:
        if self.trainer.iter != self.trainer.max_iter or not comm.is_main_process():
            return
        saver = _FinalCheckpointer(self.trainer.model, self._output_dir)
        saver.model = AveragedModel(self.trainer.model, self._average)
        saver.save(FINAL_FILE, iteration=self.trainer.iter - 1)


class _FinalCheckpointer(CheckedCheckpointer):
    """Saves a checkpoint that a resumed run does not continue from."""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        pass


def start_average(trainer) -> list[AverageHook]:
    """With MODEL.EMA.ENABLED, give the trainer an ``average``, saved with its checkpoints, and return its hook."""
    cfg, trainer.average = trainer.cfg, None
    if not cfg.MODEL.EMA.ENABLED:
        return []
    trainer.average = AverageWeights(trainer.model, cfg.MODEL.EMA.DECAY)
    trainer.checkpointer.add_checkpointable(ENTRY, trainer.average)
    return [AverageHook(trainer.average, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.OUTPUT_DIR)]


def model_of_metric(trainer, metric: str) -> Any:
    """What ``model_best.pth`` holds as its weights: the average, if the metric is one of the average."""
    if trainer.average is None or not is_of_average(metric):
        return bare_model(trainer.model)
    return AveragedModel(trainer.model, trainer.average)


def is_of_average(metric: str) -> bool:
    """Whether a metric such as ``bbox_EMA/AP`` is of the average weights."""
    return any(part.endswith(SUFFIX) for part in metric.split("/")[:-1])


def evaluate_average(
    cfg: CfgNode, model: nn.Module, average: AverageWeights, test: Callable, build_evaluator: Callable
) -> dict:
    """Evaluate the average weights; ``results.json`` gets further entries, ``bbox_EMA`` and so on.

    The weights of the model, its running statistics and the random numbers are afterwards as before.

    Args:
        test: the engine's, ``test(cfg, model, evaluators)``.
        build_evaluator: ``build_evaluator(cfg, dataset_name, output_folder)``.
    """
    names = cfg.DATASETS.TEST
    try:
        evaluators = [build_evaluator(cfg, name, os.path.join(cfg.OUTPUT_DIR, "inference_EMA", name)) for name in names]
    except NotImplementedError:  # a trainer without an evaluator for this dataset
        return {}
    average.average_buffers()
    logger.info("Evaluating the average weights (MODEL.EMA)")
    with _random_numbers_kept(), average.in_model():
        tested = inference_model(cfg, model)
        with encoded_masks(tested):
            tested_results = test(cfg, tested, evaluators)
    results = tested_results
    if len(names) == 1:
        results = _with_suffix(results)
    else:
        results = {name: _with_suffix(entries) for name, entries in results.items()}
    if comm.is_main_process():
        kept = with_reasons(cfg, tested_results, "inference_EMA", SUFFIX) if len(names) == 1 else _flat(results)
        write_results(cfg.OUTPUT_DIR, kept, add=True)
    return results


@contextlib.contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """After the block, the generators of Python, NumPy and torch are as before: evaluating must not change training."""
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


def _with_suffix(results: dict) -> dict:
    return {f"{entry}{SUFFIX}": metrics for entry, metrics in results.items()}


def _flat(results: dict) -> dict:
    # A dataset's own entry in results.json would be replaced.
    return {f"{name}/{entry}": metrics for name, entries in results.items() for entry, metrics in entries.items()}
