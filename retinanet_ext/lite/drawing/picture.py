"""A finished picture, and how it may be coloured."""

from __future__ import annotations

import os
from enum import Enum

import numpy as np
from PIL import Image


class ColorMode(Enum):
    """How the picture is coloured. Objects without masks have the colour of their class in all modes."""

    IMAGE = 0
    """The image as it is. Each mask has another colour, so that touching objects of one class can be told apart."""
    SEGMENTATION = 1
    """The image as it is. Masks have the colour of their class."""
    IMAGE_BW = 2
    """The image in grey outside of the masks, or of the boxes where there are no masks."""


class VisImage:
    """A finished picture."""

    def __init__(self, image: Image.Image):
        self._image = image

    def get_image(self) -> np.ndarray:
        """uint8 (H, W, 3), RGB."""
        return np.array(self._image)

    def save(self, filepath: str | os.PathLike) -> None:
        """Writes the picture; the format follows the extension.

        Raises:
            ValueError: unknown extension.
        """
        self._image.save(filepath)
