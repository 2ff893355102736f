"""The interface of a dense detector's losses: what they see, what they return, and where they are registered.

N images, R anchors per image (all levels, order: level, H, W, A), K classes, M foreground anchors in the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from retinanet_ext.registry import Registry

CLS_LOSS_REGISTRY = Registry("CLS_LOSS", config_key="MODEL.RETINANET.CLS_LOSS.NAME")
CLS_LOSS_REGISTRY.__doc__ = """
Classification losses, named by ``MODEL.RETINANET.CLS_LOSS.NAME``.

A registered object is called as ``obj(cfg)`` and returns a module. The module is called as
``loss(predictions, targets)`` with :class:`DensePredictions` and :class:`DenseTargets`. It returns the loss summed
over the anchors of each image, ``(N,)``.
"""

BOX_LOSS_REGISTRY = Registry("BOX_LOSS", config_key="MODEL.RETINANET.BOX_LOSS.NAME")
BOX_LOSS_REGISTRY.__doc__ = """
Box regression losses, named by ``MODEL.RETINANET.BOX_LOSS.NAME``; calls and results are as in CLS_LOSS_REGISTRY.
"""

REDUCTIONS = ("none", "mean", "sum")


@dataclass(frozen=True)
class DensePredictions:
    """Raw outputs of the head for a batch, all levels joined.

    Attributes:
        logits: ``(N, R, K)``.
        deltas: ``(N, R, 4)``, the encoded boxes.
        anchors: ``(R, 4)``, xyxy in pixels of the padded input.
        encode: ``(anchors (M, 4), boxes (M, 4)) -> deltas (M, 4)``.
        decode: ``(deltas (M, 4), anchors (M, 4)) -> boxes (M, 4)``.
    """

    logits: torch.Tensor
    deltas: torch.Tensor
    anchors: torch.Tensor
    encode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    decode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class DenseTargets:
    """What the anchors of a batch should predict.

    Attributes:
        labels: ``(N, R)`` int64: -1 ignored, 0..K-1 a class, K background.
        image_index: ``(M,)`` int64, the image of each foreground anchor.
        anchor_index: ``(M,)`` int64, its index among the R anchors.
        gt_boxes: ``(M, 4)``, the ground truth box that it is matched to, xyxy in pixels of the padded input.
    """

    labels: torch.Tensor
    image_index: torch.Tensor
    anchor_index: torch.Tensor
    gt_boxes: torch.Tensor

    @property
    def num_foreground(self) -> torch.Tensor:
        """Foreground anchors of each image, ``(N,)`` int64."""
        # bincount would wait for the device, to learn the size of its result.
        counts = self.image_index.new_zeros(self.labels.shape[0])
        return counts.index_add(0, self.image_index, torch.ones_like(self.image_index))


def sum_per_image(loss: torch.Tensor, targets: DenseTargets) -> torch.Tensor:
    """Sum a loss of the foreground anchors, ``(M,)``, into its images: ``(N,)``. Keeps the graph when M is 0."""
    zeros = loss.new_zeros(targets.labels.shape[0])
    return zeros.index_add(0, targets.image_index, loss)


def reduce_loss(loss: torch.Tensor, reduction: str) -> torch.Tensor:
    """Reduce an elementwise loss of any shape; ``mean`` and ``sum`` give a scalar.

    The mean over no elements is 0 with a graph, not NaN: an image without objects is normal input.

    Raises:
        ValueError: ``reduction`` is not one of ``none``, ``mean``, ``sum``.
    """
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.mean() if loss.numel() else loss.sum()
    raise ValueError(f"reduction is {reduction!r}; legal values: {', '.join(REDUCTIONS)}")


def upcast(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of any shape in at least float32: losses of half-precision predictions need full precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
