"""How many pixels an image has, before it is decoded: the bound on memory, and on the size of one image."""

from os import PathLike, fspath

import numpy as np
from PIL import Image

from retinanet_ext.data.doctor.image_probe import IMAGE_ERRORS

# Decoded images that wait for a model have at most this many pixels together, and more only if it is a single image.
PIXELS_AHEAD = 100_000_000


class TooManyPixelsError(ValueError):
    """An image that is larger than INPUT.MAX_PIXELS."""


def count_pixels(given: str | PathLike | np.ndarray | Image.Image) -> int:
    """Width times height of a path, an array ``(H, W, ...)`` or a Pillow image; of a file only the header is read.

    0 for what is no image: whoever decodes it has the better message.
    """
    if isinstance(given, np.ndarray):
        return int(np.prod(given.shape[:2])) if given.ndim >= 2 else 0
    try:
        if isinstance(given, Image.Image):
            return given.width * given.height
        with Image.open(fspath(given)) as image:
            return image.width * image.height
    except (*IMAGE_ERRORS, TypeError, ValueError):
        return 0


def refuse_large(given: str | PathLike | np.ndarray | Image.Image, max_pixels: int) -> None:
    """Refuse an image before it is decoded.

    Args:
        given: a path, an array ``(H, W, ...)`` or a Pillow image.
        max_pixels: INPUT.MAX_PIXELS.

    Raises:
        TooManyPixelsError: it has more than ``max_pixels`` pixels.
    """
    pixels = count_pixels(given)
    if pixels > max_pixels:
        raise TooManyPixelsError(
            f"the image has {pixels / 1e6:.0f} million pixels, more than INPUT.MAX_PIXELS ({max_pixels / 1e6:g} "
            "million); cut it into tiles, or raise that key if the memory is there: decoding takes about 10 bytes a "
            "pixel"
        )
