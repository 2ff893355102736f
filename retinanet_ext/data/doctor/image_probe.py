"""Check that image files exist and open, and read their sizes, without loading the data set."""

import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image

# Exceptions that Pillow raises for damaged files: SyntaxError for PNG, EOFError for truncated streams.
IMAGE_ERRORS = (OSError, SyntaxError, EOFError, Image.DecompressionBombError)
PROGRESS_SECONDS = 10.0
_EXIF_ORIENTATION = 274
_EXIF_QUARTER_TURNS = (5, 6, 7, 8)
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_THREADS = 16
logger = logging.getLogger(__name__)


class ImageInfo(NamedTuple):
    """``size``: (width, height) in pixels after the EXIF rotation. ``mode``: Pillow's."""

    size: tuple[int, int]
    mode: str

    @property
    def is_deep(self) -> bool:
        """Whether a conversion to 8 bits a channel would clip it (Pillow's modes I, I;16, F and their like)."""
        return self.mode.split(";")[0] in ("I", "F")


class OutsideFolderError(ValueError):
    """An image file that a dataset names, and that does not lie in the folder of its images."""


def outside_error(path: str, root: str | None) -> OutsideFolderError | None:
    """The error for a path that leads out of ``root``; None if it does not, or if there is no such folder.

    Links are not followed: they are the user's own.
    """
    if root is None or os.path.abspath(path).startswith(os.path.abspath(root).rstrip(os.sep) + os.sep):
        return None
    return OutsideFolderError(f"a file in {root}; DATASETS.ALLOW_FILES_OUTSIDE True allows others")


def probe_images(
    paths: Sequence[str], decode: bool = False, what: str = "images", *, root: str | None = None
) -> list[ImageInfo | Exception]:
    """Open each file, in parallel. The log shows the progress every few seconds.

    Args:
        paths: any number of files.
        decode: read all pixels; otherwise only the header, which misses later damage.
        what: names the files in the log.
        root: files outside of this folder are not opened, and get an :class:`OutsideFolderError`.

    Returns:
        For each path, in order: its size and mode, or the error.
    """

    def probe(path: str) -> ImageInfo | Exception:
        return outside_error(path, root) or _probe(path, decode)

    found: list[ImageInfo | Exception] = []
    last = time.perf_counter()
    pool = ThreadPoolExecutor(_THREADS)
    try:
        for info in pool.map(probe, paths):
            found.append(info)
            now = time.perf_counter()
            if now - last >= PROGRESS_SECONDS:
                last = now
                verb = "decoded" if decode else "opened"
                logger.info("%s: %d of %d image files %s", what, len(found), len(paths), verb)
    finally:
        # A run that is stopped meanwhile must not wait for images that nobody will look at.
        pool.shutdown(cancel_futures=True)
    return found


def _probe(path, decode):
    if not os.path.isfile(path):
        return FileNotFoundError("no such file")
    try:
        with Image.open(path) as image:
            # Before loading, which turns a TIFF and removes its orientation.
            size = upright_size(image)
            if decode:
                image.load()
            return ImageInfo(size, image.mode)
    except Exception as error:
        return error


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) after the EXIF rotation, of an image that was opened and not loaded."""
    size = image.size
    if image.format == "TIFF":
        # Some versions of Pillow turn the size of a TIFF already when they open it.
        size = (image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT])
    return size[::-1] if exif_orientation(image) in _EXIF_QUARTER_TURNS else size


def exif_orientation(image: Image.Image) -> int:
    """1 (upright) to 8; 1 where the file says nothing that can be read."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:
        return 1
    return value if value in range(1, 9) else 1
