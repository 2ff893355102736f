"""Check that image files exist and open, and read their sizes, without loading the data set."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

# Exceptions that Pillow raises for damaged files: SyntaxError for PNG, EOFError for truncated streams.
IMAGE_ERRORS = (OSError, SyntaxError, EOFError, Image.DecompressionBombError)

_EXIF_ORIENTATION = 274
_EXIF_QUARTER_TURNS = (5, 6, 7, 8)
_THREADS = 16


def probe_images(paths: Sequence[str], decode: bool = False) -> list[tuple[int, int] | Exception]:
    """Open each file.

    Args:
        paths: any number of files.
        decode: read all pixels; otherwise only the header, which misses later damage.

    Returns:
        For each path, in order: (width, height) after the EXIF rotation, or the error.
    """

    def probe(path: str) -> tuple[int, int] | Exception:
        return _probe(path, decode)

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(probe, paths))


def _probe(path, decode):
    if not os.path.isfile(path):
        return FileNotFoundError("no such file")
    try:
        with Image.open(path) as image:
            if decode:
                image.load()
            return image.size[::-1] if _is_turned(image) else image.size
    except Exception as error:
        return error


def _is_turned(image):
    try:
        return image.getexif().get(_EXIF_ORIENTATION) in _EXIF_QUARTER_TURNS
    except Exception:
        return False
