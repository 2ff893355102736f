"""A step whose losses or gradients are not finite, and the error for it. It names the loss, the process, the images."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from retinanet_ext.machine.processes import bare_model

if TYPE_CHECKING:
    from .state_before_step import StateBeforeStep


@dataclass
class NonFiniteStep:
    """A step that was stopped before the update, because a loss of any process or a gradient is not finite.

    Attributes:
        step: the :class:`TrainStep`. Its optimizer still holds the gradients.
        batch: the inputs of this process.
        micro_batches: the same, as they were computed.
        losses_by_rank: the losses of every process, the same in all of them.
        gradient_norms: L2 norm of each gradient, in the order of the optimizer's parameters, the same in all processes.
        before: random numbers and buffers of this process before the forward pass.
    """

    step: Any
    batch: list[dict]
    micro_batches: list[list[dict]]
    losses_by_rank: list[dict[str, float]]
    gradient_norms: list[float]
    before: "StateBeforeStep"

    @property
    def has_finite_losses(self) -> bool:
        """Whether only gradients are not finite."""
        return all(math.isfinite(loss) for losses in self.losses_by_rank for loss in losses.values())


def raise_nonfinite(failed: NonFiniteStep) -> None:
    """Raise the error for a failed step. All processes call this together."""
    raise FloatingPointError(
        f"{describe_nonfinite(failed)}. The weights are those before this step. Usual causes, most likely "
        "first: SOLVER.BASE_LR is too high for SOLVER.IMS_PER_BATCH (a batch of half the size needs half of it), "
        "SOLVER.WARMUP_ITERS is too short, SOLVER.CLIP_GRADIENTS.ENABLED is False, MODEL.WEIGHTS does not fit, an "
        "image or box among those named is broken."
    )


def describe_nonfinite(failed: NonFiniteStep) -> str:
    """Name the losses or gradients that are not finite, and the images. All processes call this together."""
    images_by_rank = _images_by_rank(failed.losses_by_rank, failed.batch)
    if failed.has_finite_losses:
        return f"gradient is not finite: {_bad_gradients(failed)}. Images in the batch: {_joined(images_by_rank)}"
    found = []
    for rank, losses in enumerate(failed.losses_by_rank):
        bad = {name: value for name, value in losses.items() if not math.isfinite(value)}
        if bad:
            where = f"rank {rank}: " if len(failed.losses_by_rank) > 1 else ""
            named = ", ".join(f"{name} = {value}" for name, value in bad.items())
            images = ", ".join(images_by_rank[rank])
            found.append(f"{where}{named} (all: {dict(losses)}). Images in the batch: {images}")
    return f"loss is not finite: {'. '.join(found)}"


def norms_by_parameter(failed: NonFiniteStep) -> dict[str, float]:
    """The norm of each gradient by the name of its parameter."""
    names = {parameter: name for name, parameter in bare_model(failed.step.model).named_parameters()}
    parameters = [parameter for group in failed.step.optimizer.param_groups for parameter in group["params"]]
    named = (names.get(parameter, "(not of the model)") for parameter in parameters)
    return dict(zip(named, failed.gradient_norms))


def _bad_gradients(failed: NonFiniteStep) -> str:
    norms = norms_by_parameter(failed)
    bad = [name for name, norm in norms.items() if not math.isfinite(norm)]
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    return f"that of {', '.join(bad[:3])}{more}, of {len(norms)} parameters; all losses are finite"


def _images_by_rank(losses_by_rank: Sequence[Mapping[str, float]], batch: Sequence[dict]) -> list[list[str]]:
    images_by_rank = [[_name(inputs) for inputs in batch]]
    if len(losses_by_rank) > 1:
        images_by_rank *= len(losses_by_rank)
        dist.all_gather_object(images_by_rank, images_by_rank[0])
    return images_by_rank


def _joined(images_by_rank: list[list[str]]) -> str:
    return ", ".join(name for images in images_by_rank for name in images)


def _name(inputs: object) -> str:
    return str(inputs.get("file_name", "(no file name)")) if isinstance(inputs, Mapping) else "(no file name)"
