"""A generated detection set in COCO format: coloured shapes on cluttered ground, reproducible from a seed.

Boxes, polygons and keypoints describe the whole shape, including the part that another object covers (amodal);
`shape_drawing.MAX_HIDDEN` limits that part. Every shape lies inside the image.
"""

import json
import logging
import zlib
from pathlib import Path

import cv2
import numpy as np

from .generated_set import check_settings, write_once
from .shape_drawing import CLASS_NAMES, KEYPOINT_NAMES, SKELETON, Shape, draw_sample

MANIFEST = "shapes_manifest.json"
# Raise this number when the same arguments no longer give the same pixels and annotations.
GENERATOR_VERSION = 3
MIN_IMAGE_SIZE = 64
_JPEG_QUALITY = 95
_FOLDERS = ("annotations", "train", "val")

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
    check_settings(settings, {"num_train": 1, "num_val": 1, "seed": 0, "image_size": MIN_IMAGE_SIZE})
    options = _check_options(objects, distractors)
    settings |= options
    settings["generator_version"] = GENERATOR_VERSION

    def write(new: Path) -> None:
        for split, count in (("train", num_train), ("val", num_val)):
            _write_split(new, split, count, seed, image_size, options)

    if not write_once(root, settings, write, manifest=MANIFEST, folders=_FOLDERS, overwrite=overwrite):
        logger.info("Shapes are in %s already; nothing to do.", root)
        return False
    logger.info("Wrote %d + %d images of shapes to %s.", num_train, num_val, root)
    return True


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
