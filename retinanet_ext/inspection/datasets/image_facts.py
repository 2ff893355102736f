"""What is read from image files once, by worker threads: size, damage, rotation, digest and perceptual hash."""

import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from retinanet_ext.data.doctor.image_probe import ImageInfo, exif_orientation, outside_error, upright_size
from retinanet_ext.inference.progress_report import ProgressReport
from retinanet_ext.inference.threaded_map import map_ahead

THUMBNAIL = 16  # pixels a side
# A JPEG is decoded at the smallest of its own scales that is at least this large: all of the file is read, at a third
# of the time.
_DECODED_SIDE = 128
# Standard deviation of the thumbnail in grey levels, below which two images cannot be told apart by their pattern.
FLAT = 2.0
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class ImageFacts(NamedTuple):
    """Of one file. ``info``: size and mode, or the error; then the others say nothing but the digest.

    ``orientation``: of EXIF. ``digest``: of the bytes; b"" without a file. ``hash``: 64 bits of `difference_hash`.
    ``thumbnail``: uint8 ``(16, 16)``, grey, upright.
    """

    info: ImageInfo | Exception
    orientation: int
    digest: bytes
    hash: int
    thumbnail: np.ndarray


@dataclass
class ImageTable:
    """The facts of N images, in the order of their paths.

    ``digests`` has an entry per image; ``hashes`` is uint64 ``(N,)``, ``thumbnails`` uint8 ``(N, 16, 16)``. ``flat``,
    bool ``(N,)``: the image could not be read, or is of one colour.
    """

    infos: list[ImageInfo | Exception]
    orientations: np.ndarray
    digests: list[bytes]
    hashes: np.ndarray
    thumbnails: np.ndarray
    flat: np.ndarray


def examine_images(paths: Sequence[str], workers: int, roots: Sequence[str | None] | None = None) -> ImageTable:
    """Read all files, each once, with a bar or lines of progress.

    Args:
        paths: of N images.
        roots: for each image, the folder that it must lie in to be opened, or None; None: anywhere.
        workers: number of threads. Pillow decodes outside Python's lock.
    """
    count = len(paths)
    hashes, flat = np.zeros(count, np.uint64), np.zeros(count, bool)
    table = ImageTable([], np.ones(count, np.uint8), [], hashes, _nothing(count), flat)
    with ProgressReport(count, "image") as progress:
        for index, facts in enumerate(_in_order(paths, roots or [None] * count, workers)):
            table.infos.append(facts.info)
            table.digests.append(facts.digest)
            table.orientations[index] = facts.orientation
            table.hashes[index] = facts.hash
            table.thumbnails[index] = facts.thumbnail
            table.flat[index] = facts.thumbnail.std() < FLAT
            progress.update()
    return table


def image_facts(path: str, root: str | None = None) -> ImageFacts:
    """Read one file, if it lies in the folder `root`; nothing is raised."""
    outside = outside_error(path, root)
    if outside is not None:
        return ImageFacts(outside, 1, b"", 0, _nothing(1)[0])
    if os.path.exists(path) and not os.path.isfile(path):  # reading a pipe or a device may never end
        return ImageFacts(OSError("a folder, a pipe or a device"), 1, b"", 0, _nothing(1)[0])
    try:
        content = Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return ImageFacts(FileNotFoundError("no such file"), 1, b"", 0, _nothing(1)[0])
    except (OSError, ValueError) as error:
        return ImageFacts(error, 1, b"", 0, _nothing(1)[0])
    digest = hashlib.blake2b(content, digest_size=16).digest()
    try:
        with Image.open(io.BytesIO(content)) as image:
            info, orientation = ImageInfo(upright_size(image), image.mode), exif_orientation(image)
            is_turned_on_loading = image.format == "TIFF"
            image.draft("L", (_DECODED_SIDE, _DECODED_SIDE))
            image.load()
            grey = image.convert("L").resize((_DECODED_SIDE, _DECODED_SIDE), Image.Resampling.BOX)
    except Exception as error:  # damaged files raise errors of nearly any kind
        return ImageFacts(error, 1, digest, 0, _nothing(1)[0])
    if orientation in _TURNS and not is_turned_on_loading:
        grey = grey.transpose(_TURNS[orientation])
    thumbnail = np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
    return ImageFacts(info, orientation, digest, difference_hash(grey), thumbnail)


def difference_hash(grey: Image.Image) -> int:
    """64 bits: whether each of 8 x 8 places of a grey image is darker than its neighbour on the right."""
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    return int.from_bytes(np.packbits(small[:, :-1] < small[:, 1:]).tobytes(), "big")


def _in_order(paths: Sequence[str], roots: Sequence[str | None], workers: int) -> Iterator[ImageFacts]:
    return map_ahead(lambda both: image_facts(*both), zip(paths, roots, strict=True), workers, ahead=8 * workers)


def _nothing(count):
    return np.zeros((count, THUMBNAIL, THUMBNAIL), np.uint8)
