"""Counts and sizes of a dataset: by class, by COCO size, boxes per image, aspect ratios, sizes of images."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from retinanet_ext.d2 import CfgNode

from .record_findings import box_of, resize_scale

# Areas in pixels: the limits of small, medium and large of COCO.
COCO_SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, float("inf"))}
QUANTILES = {"min": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "max": 1.0}
_MOST_FREQUENT_SIZES = 10


def dataset_statistics(
    cfg: CfgNode,
    records: Sequence[dict],
    sizes: Sequence[tuple[int, int] | None],
    class_names: Sequence[str],
    tested: bool,
) -> dict[str, Any]:
    """Statistics of the records, as JSON values.

    Args:
        cfg: its sizes of images are those of the resize.
        records: dataset dicts; boxes without area are not counted.
        sizes: (width, height) of each image; None if unknown.
        class_names: by class number.
        tested: take the image sizes of the test.
    """
    classes, boxes, scales, per_image, crowds = [], [], [], [], 0
    largest = np.finfo(np.float32).max  # a side beyond it is a fault, whose area would be infinite
    for record, size in zip(records, sizes, strict=True):
        count = 0
        scale = resize_scale(cfg, size, tested) if size else np.nan
        for annotation in record.get("annotations", ()):
            box = box_of(annotation) if isinstance(annotation, dict) else None
            if box is None or not (0 < box[2] - box[0] < largest and 0 < box[3] - box[1] < largest):
                continue
            if annotation.get("iscrowd", 0):
                crowds += 1
                continue
            count += 1
            category = annotation.get("category_id")
            classes.append(category if type(category) is int else -1)
            boxes.append(box)
            scales.append(scale)
        per_image.append(count)
    sides = np.asarray(boxes, np.float64).reshape(-1, 4)
    sides = sides[:, 2:] - sides[:, :2]
    by_size = _by_size(sides.prod(axis=1), np.asarray(classes, np.int64), class_names)
    return {
        "images": len(records),
        "objects": len(boxes),
        "crowds": crowds,
        "images without objects": sum(not count for count in per_image),
        **by_size,
        "boxes per image": _quantiles(per_image),
        "boxes per image, histogram": _histogram(Counter(per_image)),
        "aspect ratio (height / width)": _quantiles(sides[:, 1] / sides[:, 0]),
        "aspect ratio, histogram": _log_histogram(sides[:, 1] / sides[:, 0]),
        "side after the resize": _quantiles(np.sqrt(sides.prod(axis=1)) * np.asarray(scales)),
        "side after the resize, histogram": _log_histogram(np.sqrt(sides.prod(axis=1)) * np.asarray(scales)),
        "image sizes": _image_sizes([size for size in sizes if size]),
    }


def identity_statistics(records: Sequence[dict], names: Sequence[str], sizes: Sequence) -> dict[str, Any]:
    """Images and identities of data without boxes, as JSON values; arguments as for :func:`dataset_statistics`."""
    counts = Counter(record.get("identity") for record in records)
    return {
        "images": len(records),
        "identities": len(names),
        "identities with one image": sum(count == 1 for count in counts.values()),
        "images per identity": _quantiles(list(counts.values())),
        "images per identity, histogram": _histogram(Counter(counts.values())),
        "image sizes": _image_sizes([size for size in sizes if size]),
    }


def _by_size(areas, classes, class_names):
    masks = {name: (areas >= low) & (areas < high) for name, (low, high) in COCO_SIZES.items()}
    by_class = {}
    for index, name in enumerate(class_names):
        chosen = classes == index
        counts = {size: int((mask & chosen).sum()) for size, mask in masks.items()}
        # Names may occur twice in faulty data.
        key = name if name not in by_class else f"{name} ({index})"
        by_class[key] = {"objects": int(chosen.sum()), **counts}
    return {"objects by size": {name: int(mask.sum()) for name, mask in masks.items()}, "classes": by_class}


def _quantiles(values):
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    found = {name: float(np.quantile(values, share)) for name, share in QUANTILES.items()}
    return {**found, "mean": float(values.mean())}


def _histogram(counts):
    return [[value, counts[value]] for value in sorted(counts)]


def _log_histogram(values):
    """[[left edge, right edge, count], ...] with 4 bins for each doubling."""
    values = values[np.isfinite(values) & (values > 0)]
    bins = Counter(np.floor(4 * np.log2(values)).astype(int).tolist())
    return [[2 ** (place / 4), 2 ** ((place + 1) / 4), bins[place]] for place in sorted(bins)]


def _image_sizes(sizes):
    counts = Counter(sizes)
    sides = np.asarray(sizes, np.float64).reshape(-1, 2)
    return {
        "different": len(counts),
        "most frequent": [[*size, count] for size, count in counts.most_common(_MOST_FREQUENT_SIZES)],
        "width": _quantiles(sides[:, 0]),
        "height": _quantiles(sides[:, 1]),
    }
