"""A generated set of faces for FaceNet: a folder for each identity, the same for the same arguments.

An identity is a head with its colours and proportions; each of its images has a pose, an expression, light, noise and a
background of its own. The identities of ``train`` and ``val`` are different.
"""

import logging
import zlib
from pathlib import Path

import cv2
import numpy as np

from .face_drawing import draw_face, draw_identity, draw_view
from .generated_set import check_settings, write_once

MANIFEST = "identities_manifest.json"
# Raise this number when the same arguments no longer give the same pixels.
GENERATOR_VERSION = 1
MIN_IMAGE_SIZE = 32
_FOLDERS = ("train", "val")

logger = logging.getLogger(__name__)


def make_face(seed: int, split: str, identity: int, index: int, image_size: int = 64) -> np.ndarray:
    """Draw image number `index` of an identity; the result depends on the arguments alone.

    Args:
        seed, identity, index: not negative.
        split: any name, e.g. "train"; identities of two splits differ.
        image_size: side of the square image in pixels.

    Returns:
        uint8 BGR ``(image_size, image_size, 3)``.
    """
    entropy = (seed, zlib.crc32(split.encode()), identity)
    # A seed sequence takes a last 0 for nothing, so images begin at 1.
    random = _random(*entropy, index + 1)
    return draw_face(draw_identity(_random(*entropy)), draw_view(random), image_size, random)


def write_identities(
    root: str | Path,
    num_train: int = 60,
    num_val: int = 20,
    num_images: int = 20,
    seed: int = 0,
    image_size: int = 64,
    overwrite: bool = False,
) -> bool:
    """Write the set once: ``{train,val}/<identity>/<identity>_0001.png`` under `root`.

    A second call with the same arguments checks the files against the manifest and does nothing.

    Args:
        root: folder to create; it must be absent, empty, or hold a set that this function wrote.
        num_train, num_val: numbers of identities, at least 2.
        num_images: images of each identity, at least 2.
        seed: not negative.
        image_size: side of the square images in pixels, at least `MIN_IMAGE_SIZE`.
        overwrite: replace a set written with other arguments, or a damaged one.

    Returns:
        True if files were written, False if the set existed already.

    Raises:
        ValueError: an argument is out of range, or `root` holds anything but this set.
    """
    settings = {
        "num_train": num_train, "num_val": num_val, "num_images": num_images, "seed": seed, "image_size": image_size,
    }  # fmt: skip
    check_settings(settings, {"num_train": 2, "num_val": 2, "num_images": 2, "seed": 0, "image_size": MIN_IMAGE_SIZE})
    settings["generator_version"] = GENERATOR_VERSION

    def write(new: Path) -> None:
        for split, count in zip(_FOLDERS, (num_train, num_val), strict=True):
            for identity in range(count):
                _write_identity(new / split / f"{split}_{identity:04d}", seed, identity, num_images, image_size)

    if not write_once(Path(root), settings, write, manifest=MANIFEST, folders=_FOLDERS, overwrite=overwrite):
        logger.info("Identities are in %s already; nothing to do.", root)
        return False
    logger.info("Wrote %d + %d identities with %d images each to %s.", num_train, num_val, num_images, root)
    return True


def _write_identity(folder, seed, identity, num_images, image_size):
    folder.mkdir(parents=True)
    for index in range(num_images):
        path = folder / f"{folder.name}_{index + 1:04d}.png"
        if not cv2.imwrite(str(path), make_face(seed, folder.parent.name, identity, index, image_size)):
            raise OSError(f"Cannot write {path}; is the disk full or the folder read-only?")


def _random(*entropy):
    # RandomState's streams are frozen by NumPy's policy; those of Generator may change with a release.
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(entropy)))
