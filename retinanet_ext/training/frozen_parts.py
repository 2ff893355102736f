"""Refuses to train a model whose frozen parts hold no trained weights."""

from collections.abc import Iterable, Iterator

from torch import nn

from retinanet_ext.d2 import FrozenBatchNorm2d
from retinanet_ext.machine.processes import bare_model


def refuse_unfilled_frozen_parts(model: nn.Module, loaded: Iterable[str]) -> None:
    """Check that all that training keeps fixed was loaded from a file.

    Frozen layers with random weights never learn, and frozen batch norms that hold no statistics do not normalise: the
    activations of a deep network then grow until the loss is NaN within a few steps.

    Args:
        model: as it will be trained; may be wrapped in ``DistributedDataParallel``.
        loaded: names of the parameters and buffers that came from MODEL.WEIGHTS.

    Raises:
        ValueError: a frozen part was not loaded; the message names the keys to set.
    """
    names = sorted(set(_unfilled(bare_model(model), set(loaded))))
    if names:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise ValueError(
            f"{len(names)} frozen layers have no trained weights ({shown}): MODEL.WEIGHTS is empty or does not hold "
            "them. Frozen layers never learn, and frozen batch norms that no checkpoint has filled let the loss become "
            "NaN. Either start from a trained model (MODEL.WEIGHTS FILE; see configs/own_data/fine_tune.yaml), or "
            "train everything from scratch: MODEL.BACKBONE.FREEZE_AT 0 and MODEL.RESNETS.NORM BN (see "
            "configs/own_data/from_scratch.yaml)."
        )


def _unfilled(model: nn.Module, loaded: set[str]) -> Iterator[str]:
    for name, module in model.named_modules():
        tensors = {f"{name}.{key}" for key, value in module.named_parameters(recurse=False) if not value.requires_grad}
        if tensors - loaded:
            yield name
        # Older checkpoints hold only the scale and the shift of a frozen norm, which already contain the statistics.
        buffers = (f"{name}.{key}" for key, _ in module.named_buffers(recurse=False))
        if isinstance(module, FrozenBatchNorm2d) and loaded.isdisjoint(buffers):
            yield name
