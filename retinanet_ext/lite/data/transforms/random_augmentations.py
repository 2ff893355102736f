"""Augmentation beyond resize, flip and crop: rotation, colours, and other augmentations applied at random.

For the same state of ``np.random`` they draw the same numbers as Detectron2's.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from fvcore.transforms.transform import BlendTransform, NoOpTransform, Transform

from .geometric import SAMPLE_STYLES, AugInput, Augmentation

# Rec. 601: how much red, green and blue add to the brightness that an eye sees.
GREY_WEIGHTS = (0.299, 0.587, 0.114)


class ColorTransform(Transform):
    """Changes colours by a function of the image ``(H, W, C)``; boxes and points stay where they are."""

    def __init__(self, op: Callable[[np.ndarray], np.ndarray]) -> None:
        if not callable(op):
            raise TypeError(f"op must be a function of an image, got {op!r}")
        super().__init__()
        self.op = op

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """``op`` of the image ``(H, W, C)``."""
        return self.op(img)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """The points ``(N, 2)`` themselves."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """The class map ``(H, W)`` itself."""
        return segmentation

    def inverse(self) -> Transform:
        """No transform: colours are not restored, and places do not change."""
        return NoOpTransform()


class RotationTransform(Transform):
    """Rotate by ``angle`` degrees, counter-clockwise; what comes into view is 0."""

    def __init__(
        self,
        h: int,
        w: int,
        angle: float,
        expand: bool = True,
        center: Sequence[float] | None = None,
        interp: int | None = None,
    ) -> None:
        """
        Args:
            h, w: size of the input in pixels.
            expand: whether the output grows to show the whole input; else it has the input's size.
            center: x, y of the point that stays in place, in pixels; None: the middle of the image. It has no effect
                if ``expand`` is True.
            interp: OpenCV's interpolation; None is bilinear.
        """
        super().__init__()
        self.h, self.w, self.angle, self.expand, self.center = h, w, angle, expand, center
        self.interp = cv2.INTER_LINEAR if interp is None else interp
        middle = (w / 2, h / 2)
        fixed = middle if expand or center is None else tuple(map(float, center))
        self._matrix = cv2.getRotationMatrix2D(fixed, float(angle), 1.0)  # maps points of the input to the output
        self._output_size = (w, h)
        if expand:
            cosine, sine = np.abs(self._matrix[0, :2])
            self._output_size = (round(w * cosine + h * sine), round(w * sine + h * cosine))
            self._matrix[:, 2] += np.array(self._output_size) / 2 - middle

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """The rotated image, of the input's dtype; ``(h, w)`` or ``(h, w, C)``, and so is the result.

        ``interp`` overrides the transform's own interpolation.
        """
        if img.shape[:2] != (self.h, self.w):
            raise ValueError(f"this rotation is for images of {self.h}x{self.w} (HxW), got {img.shape}")
        matrix = self._matrix.copy()
        # OpenCV counts from the middle of the first pixel, points are measured from its outer corner.
        matrix[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5
        rotated = cv2.warpAffine(img, matrix, self._output_size, flags=self.interp if interp is None else interp)
        return rotated.reshape(*rotated.shape[:2], *img.shape[2:])  # OpenCV drops a channel axis of length 1

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Points ``(N, 2)`` xy of the input image, in the rotated image."""
        return np.asarray(coords, dtype=np.float64) @ self._matrix[:, :2].T + self._matrix[:, 2]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Rotated labels ``(h, w)``; each is the nearest label of the input."""
        return self.apply_image(segmentation, interp=cv2.INTER_NEAREST)

    def inverse(self) -> "RotationTransform":
        """Rotates points back exactly; of an image, what the rotation left in view."""
        inverse = copy.copy(self)
        inverse.angle = -self.angle
        inverse._matrix = cv2.invertAffineTransform(self._matrix)
        (inverse.w, inverse.h), inverse._output_size = self._output_size, (self.w, self.h)
        return inverse


class RandomApply(Augmentation):
    """Apply an augmentation or a transform with probability ``prob``."""

    def __init__(self, tfm_or_aug: Transform | Augmentation, prob: float = 0.5) -> None:
        """
        Raises:
            ValueError: ``prob`` is outside 0..1.
            TypeError: ``tfm_or_aug`` is neither a transform nor an augmentation.
        """
        if not 0 <= prob <= 1:
            raise ValueError(f"prob is {prob}; legal values: 0 to 1")
        if not isinstance(tfm_or_aug, (Transform, Augmentation)):
            raise TypeError(f"expected an Augmentation or a Transform, got {type(tfm_or_aug).__name__}: {tfm_or_aug!r}")
        self.aug = tfm_or_aug
        self.prob = prob

    def get_transform(self, *args: Any) -> Transform:
        """Takes what ``get_transform`` of the wrapped augmentation takes."""
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        return self.aug if isinstance(self.aug, Transform) else self.aug.get_transform(*args)

    def __call__(self, aug_input: AugInput) -> Transform:
        if self._rand_range() >= self.prob:
            return NoOpTransform()
        if isinstance(self.aug, Transform):
            aug_input.transform(self.aug)
            return self.aug
        return self.aug(aug_input)


class RandomRotation(Augmentation):
    """Rotate by a randomly drawn angle, counter-clockwise."""

    def __init__(
        self,
        angle: float | Sequence[float],
        expand: bool = True,
        center: Sequence[Sequence[float]] | None = None,
        sample_style: str = "range",
        interp: int | None = None,
    ) -> None:
        """
        Args:
            angle: in degrees; with ``range`` the smallest and the largest angle, with ``choice`` the angles to choose
                from. A number is the only angle.
            expand: whether the output grows to show the whole input; else it has the input's size.
            center: the points that may stay in place, x, y in fractions of width and height: with ``range`` the
                smallest and the largest, with ``choice`` those to choose from. None: the middle of the image.
            sample_style: ``range`` or ``choice``.
            interp: OpenCV's interpolation; None is bilinear.

        Raises:
            ValueError: unknown ``sample_style``, or a ``range`` that is not two angles, or not two points.
        """
        if sample_style not in SAMPLE_STYLES:
            raise ValueError(f"sample_style is {sample_style!r}; legal values: {', '.join(SAMPLE_STYLES)}")
        angle = (angle, angle) if isinstance(angle, (int, float)) else tuple(angle)
        if sample_style == "range":
            for name, value in {"angle": angle, "center": center}.items():
                if value is not None and len(value) != 2:
                    raise ValueError(
                        f"with sample_style 'range', {name} is the smallest and the largest value; got {value}. "
                        "For a fixed set use 'choice'"
                    )
        self.angle = angle
        self.expand = expand
        self.center = center
        self.sample_style = sample_style
        self.interp = interp

    def get_transform(self, image: np.ndarray) -> Transform:
        """``image`` is ``(H, W)`` or ``(H, W, C)``; only its size is read."""
        h, w = image.shape[:2]
        center = None
        if self.sample_style == "range":
            angle = np.random.uniform(*self.angle)
            if self.center is not None:
                (x0, y0), (x1, y1) = self.center
                center = np.random.uniform(x0, x1), np.random.uniform(y0, y1)
        else:
            angle = np.random.choice(self.angle)
            if self.center is not None:
                center = self.center[np.random.choice(len(self.center))]
        if center is not None:
            center = center[0] * w, center[1] * h
        if angle % 360 == 0:
            return NoOpTransform()
        return RotationTransform(h, w, float(angle), expand=self.expand, center=center, interp=self.interp)


class _RandomBlend(Augmentation):
    """Blend the image with another: ``w * image + (1 - w) * other``, with ``w`` drawn from a range.

    uint8 images are clipped to 0..255 and truncated; float images keep their range.
    """

    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        """``intensity_min``, ``intensity_max``: range of ``w``; 1 leaves the image as it is."""
        self.intensity_min = intensity_min
        self.intensity_max = intensity_max

    def get_transform(self, image: np.ndarray) -> Transform:
        """``image`` is ``(H, W)`` or ``(H, W, C)``, uint8 or float."""
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=self._other(image), src_weight=1 - weight, dst_weight=weight)

    def _other(self, image: np.ndarray) -> Any:
        raise NotImplementedError


class RandomBrightness(_RandomBlend):
    """Multiply the image by a randomly drawn factor: below 1 it gets darker."""

    def _other(self, image: np.ndarray) -> Any:
        return 0


class RandomContrast(_RandomBlend):
    """Multiply the distance of the pixels from the image's mean by a randomly drawn factor."""

    def _other(self, image: np.ndarray) -> Any:
        return image.mean()


class RandomSaturation(_RandomBlend):
    """Multiply the distance of the colours from grey by a randomly drawn factor. Channels are in RGB order."""

    def _other(self, image: np.ndarray) -> Any:
        if image.shape[2:] != (3,):
            raise ValueError(f"saturation is defined for RGB images (H, W, 3), got shape {image.shape}")
        return image.dot(GREY_WEIGHTS)[:, :, np.newaxis]
