"""What a detector can know about a micro-batch before it runs, so that several micro-batches share one normaliser."""

from collections.abc import Sequence

import torch
from torch import nn

from retinanet_ext.d2 import ImageList
from retinanet_ext.losses import DenseTargets


def expected_maps(
    batched_inputs: list[dict], backbone: nn.Module, names: Sequence[str], device: torch.device
) -> list[torch.Tensor]:
    """Stand-ins ``(1, 1, H, W)`` for ``backbone``'s feature maps ``names``: only their height and width count.

    The images are padded to a common size that the backbone can divide. A map of stride s then has ``ceil(size / s)``
    rows and columns: convolutions and poolings of stride 2 round up, if their padding would keep the size at stride 1.
    """
    padded = ImageList.from_tensors(
        [inputs["image"][:1] for inputs in batched_inputs],
        backbone.size_divisibility,
        padding_constraints=backbone.padding_constraints,
    ).tensor
    shapes = backbone.output_shape()
    strides = [shapes[name].stride for name in names]
    sizes = [[-(-side // stride) for side in padded.shape[-2:]] for stride in strides]
    return [torch.empty(1, 1, *size, device=device) for size in sizes]


def check_targets_fit(targets: DenseTargets, num_images: int, num_anchors: int) -> None:
    """Refuse targets that were prepared for another micro-batch or for maps of other sizes.

    Raises:
        ValueError: the targets are not for ``num_images`` images with ``num_anchors`` anchors each.
    """
    if targets.labels.shape != (num_images, num_anchors):
        raise ValueError(
            f"SOLVER.ACCUMULATE: targets were prepared for {tuple(targets.labels.shape)} images and anchors, but the "
            f"model sees {(num_images, num_anchors)}. Call the model with the micro-batches in order; if the "
            "backbone's maps have other sizes than ceil(input / stride), use SOLVER.ACCUMULATE 1."
        )
