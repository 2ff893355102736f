"""Augmentation: an ``Augmentation`` looks at its input and decides on a ``Transform``, which does the work.

Randomness comes from ``np.random`` only. Images are ``(H, W, C)`` or ``(H, W)`` uint8, boxes ``(N, 4)`` floats
``x0, y0, x1, y1`` in pixels, points ``(N, 2)`` floats ``x, y``, both measured from the outer edge of the image.

In reading order:

- ``geometric.py``: what an augmentation is; resize, flip, crop
- ``random_augmentations.py``: rotation, colours, and augmentations applied at random
"""

from fvcore.transforms.transform import (
    BlendTransform,
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    Transform,
    TransformList,
    VFlipTransform,
)

from .geometric import (
    AugInput,
    Augmentation,
    AugmentationList,
    RandomCrop,
    RandomFlip,
    Resize,
    ResizeShortestEdge,
    ResizeTransform,
    apply_augmentations,
)
from .random_augmentations import (
    ColorTransform,
    RandomApply,
    RandomBrightness,
    RandomContrast,
    RandomRotation,
    RandomSaturation,
    RotationTransform,
)

__all__ = [
    "AugInput",
    "Augmentation",
    "AugmentationList",
    "BlendTransform",
    "ColorTransform",
    "CropTransform",
    "HFlipTransform",
    "NoOpTransform",
    "RandomApply",
    "RandomBrightness",
    "RandomContrast",
    "RandomCrop",
    "RandomFlip",
    "RandomRotation",
    "RandomSaturation",
    "Resize",
    "ResizeShortestEdge",
    "ResizeTransform",
    "RotationTransform",
    "Transform",
    "TransformList",
    "VFlipTransform",
    "apply_augmentations",
    "apply_transform_gens",
]

# The name that older mappers use.
apply_transform_gens = apply_augmentations


def __getattr__(name: str) -> None:
    raise AttributeError(
        f"the lite engine has no transforms.{name}; it has {', '.join(__all__)}. Write a subclass of Augmentation or "
        "Transform (a ColorTransform takes any function of the image), or run on Detectron2"
    )
