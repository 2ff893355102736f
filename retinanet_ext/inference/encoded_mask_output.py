"""Lets a model return masks as run lengths while it is evaluated."""

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def encoded_masks(model: nn.Module) -> Iterator[None]:
    """Set ``encode_masks`` of each module that has it, and restore them at the end, also after an exception.

    Such modules then return ``pred_masks`` as ``EncodedMasks``, made mask by mask, so that memory does not grow with
    the number of masks times the size of the image. Modules inside wrappers, such as DistributedDataParallel, are found
    too.
    """
    modules = [module for module in model.modules() if hasattr(module, "encode_masks")]
    before = [module.encode_masks for module in modules]
    try:
        for module in modules:
            module.encode_masks = True
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.encode_masks = value
