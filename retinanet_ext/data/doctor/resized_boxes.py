"""The boxes of a dataset as a model sees them in training: after the config's crop and resize, as numbers alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from retinanet_ext.d2 import BoxMode, CfgNode

from .image_probe import probe_images

# Lengths of the short side that stand for all of INPUT.MIN_SIZE_TRAIN_SAMPLING "range", at even distances.
RANGE_LENGTHS = 16
# With random crops, objects are cropped and resized this many times at least.
CROPS = 8
# Slivers at the border of a random crop are not what anchors are for: an object counts if this much of it is left.
LEAST_PART = 0.5


@dataclass(frozen=True)
class ObjectArrays:
    """The objects of a dataset, without crowds and without boxes that have no area.

    Attributes:
        boxes: ``(N, 4)`` float64, xyxy in pixels of the image.
        classes: ``(N,)`` int64.
        image: ``(N,)`` int64, index of the record, and in ``sizes``.
        annotation: ``(N,)`` int64, index in the annotations of the record.
        sizes: ``(M, 2)`` int64, width and height of every image.
    """

    boxes: np.ndarray
    classes: np.ndarray
    image: np.ndarray
    annotation: np.ndarray
    sizes: np.ndarray


@dataclass(frozen=True)
class ResizedBoxes:
    """What one draw of crop and resize makes of :class:`ObjectArrays`.

    Attributes:
        boxes: ``(N, 4)`` float32, xyxy in pixels of the network's input, without area if the crop leaves nothing.
        sizes: ``(M, 2)`` int64, width and height of every image.
        visible: bool ``(N,)``, whether the crop leaves at least ``LEAST_PART`` of the object's area.
    """

    boxes: np.ndarray
    sizes: np.ndarray
    visible: np.ndarray


def object_arrays(records: Sequence[dict]) -> ObjectArrays:
    """The objects of dataset dicts. Sizes that records do not state are read from the image files.

    Raises:
        OSError: such a file cannot be read.
    """
    boxes, origins = [], []
    for index, record in enumerate(records):
        for place, annotation in enumerate(record.get("annotations") or ()):
            if annotation.get("iscrowd", 0):
                continue
            x0, y0, x1, y1 = map(float, annotation["bbox"])
            if annotation["bbox_mode"] == BoxMode.XYWH_ABS:
                x1, y1 = x0 + x1, y0 + y1
            if x1 > x0 and y1 > y0:
                boxes.append((x0, y0, x1, y1))
                origins.append((annotation["category_id"], index, place))
    origins = np.array(origins, dtype=np.int64).reshape(-1, 3)
    return ObjectArrays(np.array(boxes, dtype=np.float64).reshape(-1, 4), *origins.T, _sizes(records))


def _sizes(records: Sequence[dict]) -> np.ndarray:
    sizes = [(record.get("width"), record.get("height")) for record in records]
    unknown = [index for index, size in enumerate(sizes) if None in size]
    for index, info in zip(unknown, probe_images([records[index]["file_name"] for index in unknown])):
        if isinstance(info, Exception):
            raise OSError(f"{records[index]['file_name']}: the size of the image cannot be read: {info}") from info
        sizes[index] = info.size
    return np.array(sizes, dtype=np.int64).reshape(-1, 2)


def short_sides(cfg: CfgNode) -> list[int]:
    """The lengths of the short side that training draws from, as often as it draws them; 0: not resized."""
    lengths = cfg.INPUT.MIN_SIZE_TRAIN
    lengths = [int(lengths)] if isinstance(lengths, (int, float)) else [int(length) for length in lengths]
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(lengths) == 2 and lengths[1] > lengths[0]:
        count = min(RANGE_LENGTHS, lengths[1] - lengths[0] + 1)
        return [int(length) for length in np.linspace(*lengths, count).round()]
    return lengths


def resized_boxes(cfg: CfgNode, objects: ObjectArrays, seed: int = 0) -> Iterator[ResizedBoxes]:
    """The objects for each length of :func:`short_sides`; with INPUT.CROP, for several random crops.

    A crop cuts boxes off at its border. (With masks, training makes boxes anew from what is left of the masks, which
    may be smaller.) Mirroring changes nothing here.
    """
    lengths, crop = short_sides(cfg), cfg.INPUT.CROP
    rng = np.random.default_rng(seed)
    for _ in range(-(-CROPS // len(lengths)) if crop.ENABLED else 1):
        for length in lengths:
            boxes, sizes = _cropped(crop, objects, rng) if crop.ENABLED else (objects.boxes, objects.sizes)
            visible = _areas(boxes) >= LEAST_PART * _areas(objects.boxes)
            new_sizes = resized_sizes(sizes, length, cfg.INPUT.MAX_SIZE_TRAIN)
            scale, limits = (np.tile(values, 2)[objects.image] for values in (new_sizes / sizes, new_sizes))
            resized = np.clip(boxes * scale, 0, limits).astype(np.float32)
            yield ResizedBoxes(resized, new_sizes, visible & (_areas(resized) > 0))


def _areas(boxes: np.ndarray) -> np.ndarray:
    """``(N,)``, 0 for boxes that lie outside the image."""
    return (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1)


def resized_sizes(sizes: np.ndarray, length: int, max_size: int) -> np.ndarray:
    """Width and height ``(M, 2)`` after the engines' resize to a short side of ``length``, 0 for none."""
    if length == 0:
        return sizes
    short, long = sizes.min(axis=1).astype(np.float64), sizes.max(axis=1)
    new_short, new_long = np.full(len(sizes), float(length)), length / short * long
    shrink = np.where(new_long > max_size, max_size / new_long, 1.0)
    new_short, new_long = ((side * shrink + 0.5).astype(np.int64) for side in (new_short, new_long))
    is_wide = sizes[:, 1] < sizes[:, 0]
    resized = np.stack([np.where(is_wide, new_long, new_short), np.where(is_wide, new_short, new_long)], axis=1)
    return np.maximum(resized, 1)


def _cropped(crop: CfgNode, objects: ObjectArrays, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and image sizes after a random crop of each image."""
    sizes = objects.sizes
    given = np.array(crop.SIZE, dtype=np.float64)
    if crop.TYPE == "absolute":
        window = np.minimum(given[::-1].astype(np.int64), sizes)
    elif crop.TYPE == "absolute_range":
        low, high = (np.minimum(sizes, int(bound)) for bound in given)
        window = rng.integers(low, high + 1)
    else:
        fractions = np.tile(given[::-1], (len(sizes), 1))
        if crop.TYPE == "relative_range":
            fractions += rng.random(sizes.shape) * (1 - fractions)
        window = (sizes * fractions + 0.5).astype(np.int64)
    window = np.maximum(window, 1)
    corner = rng.integers(0, sizes - window + 1)
    boxes = objects.boxes - np.tile(corner, 2)[objects.image]
    return np.clip(boxes, 0, np.tile(window, 2)[objects.image]), window
