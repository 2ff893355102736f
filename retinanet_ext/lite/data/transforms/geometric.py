"""What an augmentation is, and the geometric ones: resize, flip, crop.

The transforms are fvcore's, but for the resize.
"""

import functools
import inspect
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fvcore.transforms.transform import (
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    Transform,
    TransformList,
    VFlipTransform,
)
from PIL import Image

SAMPLE_STYLES = ("range", "choice")
CROP_TYPES = ("relative", "relative_range", "absolute", "absolute_range")
# torch's names of Pillow's filters, for float images.
TORCH_FILTERS = {Image.NEAREST: "nearest", Image.BILINEAR: "bilinear", Image.BICUBIC: "bicubic"}


class ResizeTransform(Transform):
    """Resize to ``new_h`` x ``new_w`` pixels; uint8 images with Pillow, which low-pass filters when it shrinks."""

    def __init__(self, h: int, w: int, new_h: int, new_w: int, interp: int | None = None) -> None:
        """
        Args:
            h, w: size of the input in pixels.
            new_h, new_w: size of the output.
            interp: one of Pillow's resampling filters; None is bilinear.
        """
        super().__init__()
        self.h, self.w, self.new_h, self.new_w = h, w, new_h, new_w
        self.interp = Image.BILINEAR if interp is None else interp

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resized copy, which may be read-only, of an image ``(h, w)`` or ``(h, w, C)``; the image itself if it has
        that size.

        uint8 images are resized by Pillow, channel by channel; float images by ``torch.nn.functional.interpolate``,
        as in Detectron2, which does not low-pass filter. ``interp`` overrides the transform's own filter.

        Raises:
            ValueError: ``img`` has another size or dtype, or the filter cannot resize floats.
        """
        if img.shape[:2] != (self.h, self.w) or img.ndim > 3:
            raise ValueError(f"this resize is for images of {self.h}x{self.w} (HxW), got {img.shape}")
        if (self.h, self.w) == (self.new_h, self.new_w):
            return img
        interp = self.interp if interp is None else interp
        if np.issubdtype(img.dtype, np.floating):
            return self._resize_floats(img, interp)
        if img.dtype != np.uint8:
            raise ValueError(
                f"can resize uint8 and float images, got {img.dtype} {img.shape}; convert it, for instance by "
                "image.astype(np.float32)"
            )
        if img.ndim == 2 or img.shape[2] == 3:
            return self._resize_bytes(img, interp)
        # Pillow would take a fourth channel for opacity, and multiply the others by it.
        return np.stack([self._resize_bytes(channel, interp) for channel in np.moveaxis(img, 2, 0)], axis=2)

    def _resize_bytes(self, img: np.ndarray, interp: int) -> np.ndarray:
        image = Image.fromarray(np.ascontiguousarray(img)).resize((self.new_w, self.new_h), interp)
        return np.asarray(image)  # np.array would copy it once more, which costs a quarter of the loading time

    def _resize_floats(self, img: np.ndarray, interp: int) -> np.ndarray:
        if interp not in TORCH_FILTERS:
            raise ValueError(
                f"filter {interp} cannot resize a float image; legal: "
                + ", ".join(f"{int(key)} ({name})" for key, name in TORCH_FILTERS.items())
            )
        mode = TORCH_FILTERS[interp]
        planes = torch.from_numpy(np.ascontiguousarray(img)).view(1, self.h, self.w, -1).permute(0, 3, 1, 2)
        align_corners = None if mode == "nearest" else False
        resized = torch.nn.functional.interpolate(
            planes, (self.new_h, self.new_w), mode=mode, align_corners=align_corners
        )
        return resized[0].permute(1, 2, 0).reshape(self.new_h, self.new_w, *img.shape[2:]).numpy()

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Points ``(N, 2)`` xy of the input image, in the resized image."""
        return coords * np.array([self.new_w / self.w, self.new_h / self.h])

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Resized labels, uint8 or float ``(h, w)``; each is the nearest label of the input."""
        return self.apply_image(segmentation, interp=Image.NEAREST)

    def inverse(self) -> "ResizeTransform":
        return ResizeTransform(self.new_h, self.new_w, self.h, self.w, self.interp)


class AugInput:
    """Input of an augmentation, which may change it: an image and, if given, its boxes ``(N, 4)`` and class map."""

    def __init__(
        self, image: np.ndarray, *, boxes: np.ndarray | None = None, sem_seg: np.ndarray | None = None
    ) -> None:
        """``sem_seg``: the class of each pixel, uint8 ``(H, W)``."""
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Replace image, boxes and class map by their transformed versions."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(self, augmentations: "Sequence[Augmentation | Transform]") -> TransformList:
        """Change this input by all of them, in order; returns their transforms."""
        return AugmentationList(augmentations)(self)


class Augmentation:
    """A policy that picks a transform. Subclasses define :meth:`get_transform`.

    A single parameter of ``get_transform`` receives the image, whatever its name. Of several parameters, each receives
    the input's attribute of the same name: ``image``, ``boxes``, ``sem_seg``, or an attribute that a subclass of
    :class:`AugInput` adds.

    Attributes:
        input_args: names of the input's attributes that ``get_transform`` receives, in order, if they differ from the
            names of its parameters.
    """

    input_args: tuple[str, ...] | None = None

    def get_transform(self, *args: Any) -> Transform:
        """The transform to apply to this input; may be random."""
        raise NotImplementedError(f"{type(self).__name__} does not define get_transform")

    def __call__(self, aug_input: AugInput) -> Transform:
        """Change ``aug_input`` in place; returns the transform, which can be applied to other data of the image."""
        arguments = []
        for name in _parameters(type(self)) if self.input_args is None else self.input_args:
            if not hasattr(aug_input, name):
                raise AttributeError(
                    f"{type(self).__name__}.get_transform asks for {name!r}, which this "
                    f"{type(aug_input).__name__} does not have; pass an AugInput that has it"
                )
            arguments.append(getattr(aug_input, name))
        tfm = self.get_transform(*arguments)
        aug_input.transform(tfm)
        return tfm

    def _init(self, params: dict[str, Any]) -> None:
        """Keep ``locals()`` of a constructor as attributes."""
        vars(self).update((name, value) for name, value in params.items() if name != "self" and name[0] != "_")

    def _rand_range(self, low: float = 1.0, high: float | None = None, size: int | None = None) -> Any:
        """Uniform random numbers in ``[low, high)``; with one bound in ``[0, low)``."""
        return np.random.uniform(*((0, low) if high is None else (low, high)), size)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in vars(self).items())})"


@functools.cache  # reading a signature takes longer than a flip
def _parameters(augmentation: type[Augmentation]) -> tuple[str, ...]:
    """The attributes of the input that ``get_transform`` receives."""
    names = tuple(inspect.signature(augmentation.get_transform).parameters)[1:]
    return ("image",) if len(names) == 1 else names


class AugmentationList(Augmentation):
    """Augmentations and fixed transforms, one after the other."""

    def __init__(self, augs: Sequence[Augmentation | Transform]) -> None:
        for aug in augs:
            if not isinstance(aug, (Augmentation, Transform)):
                raise TypeError(f"expected an Augmentation or a Transform, got {type(aug).__name__}: {aug!r}")
        self.augs = list(augs)

    def __call__(self, aug_input: AugInput) -> TransformList:
        transforms = []
        for aug in self.augs:
            if isinstance(aug, Transform):
                aug_input.transform(aug)
                transforms.append(aug)
            else:
                transforms.append(aug(aug_input))
        return TransformList(transforms)

    def __repr__(self) -> str:
        return f"AugmentationList({self.augs!r})"


def apply_augmentations(
    augmentations: Sequence[Augmentation | Transform], inputs: AugInput | np.ndarray
) -> tuple[AugInput | np.ndarray, TransformList]:
    """Augment ``inputs``: an :class:`AugInput`, which is changed in place, or an image ``(H, W)`` or ``(H, W, C)``.

    Returns:
        The augmented inputs, of the same type, and the transforms.
    """
    if isinstance(inputs, AugInput):
        return inputs, inputs.apply_augmentations(augmentations)
    aug_input = AugInput(inputs)
    transforms = aug_input.apply_augmentations(augmentations)
    return aug_input.image, transforms


class ResizeShortestEdge(Augmentation):
    """Resize so that the short side has a randomly drawn length and the long side does not exceed ``max_size``."""

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = Image.BILINEAR,
    ) -> None:
        """
        Args:
            short_edge_length: with ``range`` the smallest and the largest length in pixels, with ``choice`` the
                lengths to choose from. An int is the only length. A drawn 0 leaves the image as it is.
            max_size: bound on the long side in pixels; if it is exceeded, both sides shrink by the same factor.
            sample_style: ``range`` or ``choice``.
            interp: Pillow's resampling filter.

        Raises:
            ValueError: unknown ``sample_style``, or a ``range`` that is not two lengths.
        """
        if isinstance(short_edge_length, int):
            short_edge_length = (short_edge_length, short_edge_length)
        if sample_style not in SAMPLE_STYLES:
            raise ValueError(f"sample_style is {sample_style!r}; legal values: {', '.join(SAMPLE_STYLES)}")
        if sample_style == "range" and len(short_edge_length) != 2:
            raise ValueError(
                f"with sample_style 'range', short_edge_length is the smallest and the largest length; "
                f"got {tuple(short_edge_length)}. For a fixed set of lengths use 'choice'"
            )
        self.short_edge_length = tuple(short_edge_length)
        self.max_size = max_size
        self.sample_style = sample_style
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """``image`` is ``(H, W)`` or ``(H, W, C)``; only its size is read."""
        if self.sample_style == "range":
            length = np.random.randint(self.short_edge_length[0], self.short_edge_length[1] + 1)
        else:
            length = np.random.choice(self.short_edge_length)
        if length == 0:
            return NoOpTransform()
        h, w = image.shape[:2]
        new_h, new_w = self.get_output_shape(h, w, int(length), self.max_size)
        return ResizeTransform(h, w, new_h, new_w, self.interp)

    @staticmethod
    def get_output_shape(oldh: int, oldw: int, short_edge_length: int, max_size: int) -> tuple[int, int]:
        """Height and width after the resize, each rounded half up: 0 for a side that shrinks below half a pixel.

        The short side is set, not multiplied: ``scale * min(oldh, oldw)`` can miss ``short_edge_length`` by one bit,
        and after the bound on the long side that bit decides how a half is rounded.
        """
        short_edge = float(short_edge_length)
        long_edge = short_edge / min(oldh, oldw) * max(oldh, oldw)
        if long_edge > max_size:
            shrink = max_size / long_edge
            short_edge, long_edge = short_edge * shrink, long_edge * shrink
        short, long = int(short_edge + 0.5), int(long_edge + 0.5)
        return (short, long) if oldh < oldw else (long, short)


class Resize(Augmentation):
    """Resize to a fixed size, whatever the shape of the input."""

    def __init__(self, shape: int | Sequence[int], interp: int = Image.BILINEAR) -> None:
        """
        Args:
            shape: height and width in pixels; an int is both.
            interp: Pillow's resampling filter.
        """
        self.shape = (shape, shape) if isinstance(shape, int) else tuple(shape)
        if len(self.shape) != 2:
            raise ValueError(f"shape is (height, width) or an int, got {shape}")
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """``image`` is ``(H, W)`` or ``(H, W, C)``; only its size is read."""
        return ResizeTransform(*image.shape[:2], *self.shape, self.interp)


class RandomFlip(Augmentation):
    """Mirror the image, left to right or top to bottom, with probability ``prob``."""

    def __init__(self, prob: float = 0.5, *, horizontal: bool = True, vertical: bool = False) -> None:
        """
        Raises:
            ValueError: ``horizontal`` and ``vertical`` are equal; for both directions, use two flips.
        """
        if horizontal == vertical:
            raise ValueError(
                f"horizontal is {horizontal} and vertical is {vertical}; exactly one of them must be True. "
                "For both directions put two RandomFlip in a row"
            )
        self.prob = prob
        self.horizontal = horizontal
        self.vertical = vertical

    def get_transform(self, image: np.ndarray) -> Transform:
        """``image`` is ``(H, W)`` or ``(H, W, C)``; only its size is read."""
        h, w = image.shape[:2]
        if np.random.uniform() >= self.prob:
            return NoOpTransform()
        return HFlipTransform(w) if self.horizontal else VFlipTransform(h)


class RandomCrop(Augmentation):
    """Cut out a window at a random place inside the image."""

    def __init__(self, crop_type: str, crop_size: Sequence[float]) -> None:
        """
        Args:
            crop_type: what ``crop_size`` means. ``relative``: (height, width) of the window as fractions of the
                image; ``relative_range``: the smallest such fractions, drawn up to 1; ``absolute``: (height,
                width) in pixels, at most the image's; ``absolute_range``: (smallest, largest) side in pixels; height
                and width are drawn separately.
            crop_size: two numbers.

        Raises:
            ValueError: unknown ``crop_type``, or ``crop_size`` is not two numbers that fit it.
        """
        if crop_type not in CROP_TYPES:
            raise ValueError(f"crop_type is {crop_type!r}; legal values: {', '.join(CROP_TYPES)}")
        if len(crop_size) != 2 or min(crop_size) <= 0:
            raise ValueError(f"crop_size must be two positive numbers, got {tuple(crop_size)}")
        if crop_type.startswith("relative") and max(crop_size) > 1:
            raise ValueError(f"with crop_type {crop_type!r}, crop_size is in 0..1, got {tuple(crop_size)}")
        if crop_type == "absolute_range" and crop_size[0] > crop_size[1]:
            raise ValueError(f"crop_size is (smallest, largest), got {tuple(crop_size)}")
        self.crop_type = crop_type
        self.crop_size = tuple(crop_size)

    def get_transform(self, image: np.ndarray) -> Transform:
        """``image`` is ``(H, W)`` or ``(H, W, C)``; only its size is read."""
        h, w = image.shape[:2]
        crop_h, crop_w = self.get_crop_size((h, w))
        y0 = np.random.randint(h - crop_h + 1)
        x0 = np.random.randint(w - crop_w + 1)
        return CropTransform(x0, y0, crop_w, crop_h, orig_w=w, orig_h=h)

    def get_crop_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the window in pixels, each at least 1, for an image of (height, width)."""
        h, w = image_size
        if self.crop_type == "absolute":
            crop_h, crop_w = min(int(self.crop_size[0]), h), min(int(self.crop_size[1]), w)
        elif self.crop_type == "absolute_range":
            low, high = self.crop_size
            crop_h = np.random.randint(min(h, low), min(h, high) + 1)
            crop_w = np.random.randint(min(w, low), min(w, high) + 1)
        else:
            fractions = np.asarray(self.crop_size, dtype=np.float64)
            if self.crop_type == "relative_range":
                fractions = fractions + np.random.rand(2) * (1 - fractions)
            crop_h, crop_w = int(h * fractions[0] + 0.5), int(w * fractions[1] + 0.5)
        # A side of a few pixels may round to 0, and a window of no pixels cannot be resized.
        return max(crop_h, 1), max(crop_w, 1)
