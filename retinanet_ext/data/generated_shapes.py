"""A generated detection set in COCO format: coloured shapes on cluttered ground, reproducible from a seed.

Boxes, polygons and keypoints describe the whole shape, including the part that another object covers (amodal);
`shape_drawing.MAX_HIDDEN` limits that part. Every shape lies inside the image.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import zlib
from pathlib import Path

import cv2
import numpy as np

from .shape_drawing import CLASS_NAMES, KEYPOINT_NAMES, SKELETON, Shape, draw_sample

MANIFEST = "shapes_manifest.json"
# Raise this number when the same arguments no longer give the same pixels and annotations.
GENERATOR_VERSION = 3
MIN_IMAGE_SIZE = 64
_JPEG_QUALITY = 95

logger = logging.getLogger(__name__)


def make_sample(
    seed: int,
    split: str,
    index: int,
    image_size: int = 256,
    objects: tuple[int, int] | None = None,
    distractors: int = 0,
) -> tuple[np.ndarray, list[Shape]]:
    """Draw image number `index` of a split; the result depends on the arguments alone.

    Args:
        seed: not negative.
        split: any name, e.g. "train".
        index: not negative.
        image_size: side of the square image in pixels.
        objects, distractors: see :func:`.shape_drawing.draw_sample`.

    Returns:
        The image, uint8 BGR ``(image_size, image_size, 3)``, and its shapes in drawing order.
    """
    sequence = np.random.SeedSequence((seed, zlib.crc32(split.encode()), index))
    # RandomState's streams are frozen by NumPy's policy; those of Generator may change with a release.
    return draw_sample(np.random.RandomState(np.random.MT19937(sequence)), image_size, objects, distractors)


def write_shapes(
    root: str | Path,
    num_train: int = 800,
    num_val: int = 200,
    seed: int = 0,
    image_size: int = 256,
    overwrite: bool = False,
    objects: tuple[int, int] | None = None,
    distractors: int = 0,
) -> bool:
    """Write the set once: ``{train,val}/*.jpg`` and ``annotations/shapes_{train,val}.json`` under `root`.

    A second call with the same arguments checks the files against the manifest and does nothing.

    Args:
        root: folder to create; it must be absent, empty, or hold a set that this function wrote.
        num_train, num_val: numbers of images, at least 1.
        seed: not negative.
        image_size: side of the square images in pixels, at least `MIN_IMAGE_SIZE`.
        overwrite: replace a set written with other arguments, or a damaged one.
        objects: the smallest and the largest number of objects in an image, each number between them equally likely.
            None: 1 to 8, and none in a tenth of the images.
        distractors: shapes of no class in each image, in the colours of the classes.

    Returns:
        True if files were written, False if the set existed already.

    Raises:
        ValueError: an argument is out of range, or `root` holds anything but this set.
    """
    root = Path(root)
    settings = {"num_train": num_train, "num_val": num_val, "seed": seed, "image_size": image_size}
    _check_settings(settings)
    options = _check_options(objects, distractors)
    settings |= options
    settings["generator_version"] = GENERATOR_VERSION
    if root.exists() and _is_current(root, settings, overwrite):
        logger.info("Shapes are in %s already; nothing to do.", root)
        return False
    root.parent.mkdir(parents=True, exist_ok=True)
    # Written next to `root` and then renamed, so that an interrupted run leaves no incomplete set.
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
        new = Path(scratch) / "set"
        new.mkdir()
        for split, count in (("train", num_train), ("val", num_val)):
            _write_split(new, split, count, seed, image_size, options)
        manifest = {**settings, "sha256": _digest(new)}
        (new / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        if root.exists():
            shutil.rmtree(root)
        os.replace(new, root)
    logger.info("Wrote %d + %d images of shapes to %s.", num_train, num_val, root)
    return True


def _check_settings(settings):
    lowest = {"num_train": 1, "num_val": 1, "seed": 0, "image_size": MIN_IMAGE_SIZE}
    for name, value in settings.items():
        if not isinstance(value, int) or value < lowest[name]:
            raise ValueError(f"{name} must be an integer >= {lowest[name]}, found {value!r}.")


def _check_options(objects, distractors):
    """The two arguments as the manifest holds them: only what differs from the default."""
    options = {}
    if objects is not None:
        options["objects"] = list(objects)
        if len(objects) != 2 or not all(isinstance(n, int) for n in objects) or not 0 <= objects[0] <= objects[1]:
            raise ValueError(f"objects must be two integers, 0 <= MIN <= MAX, found {options['objects']}.")
    if not isinstance(distractors, int) or distractors < 0:
        raise ValueError(f"distractors must be an integer >= 0, found {distractors!r}.")
    if distractors:
        options["distractors"] = distractors
    return options


def _is_current(root, settings, overwrite):
    """True if `root` holds exactly this set, False if it may be written or replaced."""
    if not root.is_dir():
        raise ValueError(f"{root} is a file; give the name of a folder to write the shapes to.")
    if not any(root.iterdir()):
        return False
    if not (root / MANIFEST).exists():
        raise ValueError(
            f"{root} holds files but no {MANIFEST}, so it was not written by this command and is left alone. "
            "Choose a new folder, or empty this one yourself."
        )
    found = json.loads((root / MANIFEST).read_text())
    checksum = found.pop("sha256", None)
    different = {k: (found.get(k), settings.get(k)) for k in {**settings, **found} if found.get(k) != settings.get(k)}
    if not different and checksum == _digest(root):
        return True
    if overwrite:
        return False
    if different:
        reason = "was written with " + ", ".join(f"{k}={a} (asked: {b})" for k, (a, b) in different.items())
        if "generator_version" in different:
            reason += "; another version of the generator gives other files for the same arguments"
    else:
        reason = "has files that changed or went missing since it was written"
    raise ValueError(f"The set in {root} {reason}. Choose a new folder, or overwrite it (--overwrite).")


def _digest(root):
    """SHA-256 over names and contents of all images and annotation files."""
    digest = hashlib.sha256()
    for folder in ("annotations", "train", "val"):
        for path in sorted((root / folder).glob("*")):
            digest.update(f"{folder}/{path.name}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _write_split(root, split, count, seed, image_size, options):
    (root / split).mkdir()
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for index in range(count):
        image, shapes = make_sample(seed, split, index, image_size, **options)
        name = f"{index:06d}.jpg"
        if not cv2.imwrite(str(root / split / name), image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]):
            raise OSError(f"Cannot write {root / split / name}; is the disk full or the folder read-only?")
        images.append({"id": index + 1, "file_name": name, "width": image_size, "height": image_size})
        for shape in shapes:
            annotations.append(_annotation(shape, len(annotations) + 1, index + 1))
    content = {
        "info": {"description": "Generated shapes", "version": str(GENERATOR_VERSION)},
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": k + 1, "name": name, "supercategory": "shape",
             "keypoints": list(KEYPOINT_NAMES), "skeleton": [list(pair) for pair in SKELETON]}
            for k, name in enumerate(CLASS_NAMES)
        ],
    }  # fmt: skip
    (root / "annotations" / f"shapes_{split}.json").write_text(json.dumps(content))


def _annotation(shape, annotation_id, image_id):
    """One shape as a COCO annotation; boxes are XYWH.

    COCO measures boxes and polygons from the edge of the image, but counts pixels for keypoints: the centre of the
    first pixel is 0, and readers add the half pixel.
    """
    x0, y0, x1, y1 = (float(v) for v in shape.box_xyxy())
    x, y = shape.polygon.T
    area = 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": shape.class_id + 1,
        "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
        "area": round(area, 2),
        "iscrowd": 0,
        "segmentation": [[float(v) for v in shape.polygon.reshape(-1)]],
        "keypoints": [int(v) if k % 3 == 2 else float(v) - 0.5 for k, v in enumerate(shape.keypoints.reshape(-1))],
        "num_keypoints": len(KEYPOINT_NAMES),
    }
