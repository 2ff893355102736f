"""Which predictions are hits: COCO's greedy matching, image by image, kept for all statistics that follow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as mask_api
from pycocotools.cocoeval import Params

from .coco_columns import object_annotations
from .coco_metrics import KEYPOINT_MAX_DETS, TASK_SIZES, sigmas_for
from .evaluated_dataset import EvaluatedDataset
from .overlaps import overlaps


@dataclass(frozen=True)
class ClassMatches:
    """The D predictions of one class, best score first, and its G objects. T IoU thresholds, A area ranges.

    Equal scores are in the order of images. Only predictions within the number of detections that count are here.

    Args:
        scores: ``(D,)`` float64.
        images: ``(D,)`` int64, index into ``Matches.image_ids``.
        indices: ``(D,)`` int64, index into the predictions of that image.
        hits: bool ``(A, T, D)``: matched with an object that is to be found.
        ignored: bool ``(A, T, D)``: neither hit nor false alarm (matched with a crowd, or of another size).
        objects: int64 ``(T, D)``: the object that a prediction is matched with in the range "all", a crowd included;
            -1: none.
        object_images: ``(G,)`` int64, index into ``Matches.image_ids``.
        object_annotations: ``(G,)`` int64, index into the annotations of the COCO file.
        counted: bool ``(A, G)``: to be found; not a crowd, and of the range's size.
    """

    scores: np.ndarray
    images: np.ndarray
    indices: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray
    objects: np.ndarray
    object_images: np.ndarray
    object_annotations: np.ndarray
    counted: np.ndarray


@dataclass(frozen=True)
class Matches:
    """The matches of a dataset.

    Args:
        task: `bbox`, `segm` or `keypoints`.
        iou_thresholds: ``(T,)``, ascending; of OKS for keypoints.
        area_ranges: names of the A ranges: "all", then letters of sizes.
        image_ids: of the I evaluated images.
        class_names: of the K classes.
        classes: K, in the same order.
        sigmas: ``(J,)`` of the keypoints; None for the other tasks.
    """

    task: str
    iou_thresholds: np.ndarray
    area_ranges: tuple[str, ...]
    image_ids: list
    class_names: list[str]
    classes: list[ClassMatches]
    sigmas: np.ndarray | None = None


def match_dataset(
    data: EvaluatedDataset, task: str = "bbox", *, iou_thresholds: Sequence[float] | None = None, sizes: bool = True
) -> Matches:
    """Match predictions with objects as COCO does.

    Best score first, each prediction takes the free object of its class with which it overlaps most, if the overlap
    reaches the threshold; objects that are to be found come before crowds and objects of another size, which many
    predictions (crowds) may match without counting.

    Args:
        data: ground truth and predictions.
        task: `bbox`, `segm` or `keypoints`.
        iou_thresholds: ascending; None: COCO's ten, 0.5 to 0.95.
        sizes: also match by size; else only the range "all".

    Raises:
        ValueError: annotations or predictions lack what the task needs.
    """
    params = Params(task)
    thresholds = np.asarray(params.iouThrs if iou_thresholds is None else iou_thresholds, dtype=np.float64)
    names = ("all", *TASK_SIZES[task]) if sizes else ("all",)
    ranges = np.asarray(params.areaRng, dtype=np.float64)[: len(names)]
    objects, found, cells, sigmas = _columns(data, task)
    areas = np.array([a["area"] for a in objects], np.float64)
    crowds = np.array([a["iscrowd"] for a in objects], bool)
    is_ignored = crowds | np.array([a.get("num_keypoints") == 0 for a in objects], bool)
    counted = _inside(areas, ranges) & ~is_ignored
    matched = np.full((len(ranges), len(thresholds), len(found["scores"])), -1, dtype=np.int64)
    for rows, columns in cells:
        part = {name: _take(values, rows) for name, values in found.items() if name in ("boxes", "rles", "keypoints")}
        overlap = overlaps(task, part, [objects[g] for g in columns], sigmas)
        local = greedy_match(overlap, ~counted[:, columns], crowds[columns], thresholds)
        matched[:, :, rows] = np.where(local >= 0, columns[local], -1)
    is_hit = np.take_along_axis(_padded(counted)[:, None], matched, axis=2) if len(objects) else matched >= 0
    outside = ~_inside(found["areas"], ranges)[:, None] & (matched < 0)
    ignored = ((matched >= 0) & ~is_hit) | outside
    classes = _by_class(len(data.class_names), objects, found, matched, is_hit, ignored, counted)
    return Matches(task, thresholds, names, data.image_ids, data.class_names, classes, sigmas)


def _padded(counted):
    """With a last column for the index -1, no object."""
    return np.concatenate([counted, np.zeros((len(counted), 1), bool)], axis=1)


def _inside(areas, ranges):
    """(A, N) bool."""
    return (areas >= ranges[:, :1]) & (areas <= ranges[:, 1:])


def _take(values, rows):
    return [values[row] for row in rows] if isinstance(values, list) else values[rows]


def greedy_match(
    overlap: np.ndarray, ignored: np.ndarray, crowds: np.ndarray, thresholds: np.ndarray
) -> np.ndarray:
    """COCO's rule for one class in one image.

    Args:
        overlap: ``(D, G)``, predictions with the best score first.
        ignored: bool ``(A, G)``: objects that need not be found in each area range.
        crowds: bool ``(G,)``: objects that any number of predictions may match.
        thresholds: ``(T,)``, ascending.

    Returns:
        int64 ``(A, T, D)``: index of the object that each prediction is matched with; -1: none.
    """
    matched = np.full((len(ignored), len(thresholds), len(overlap)), -1, dtype=np.int64)
    if not overlap.size:
        return matched
    free = np.ones((len(ignored), len(thresholds), overlap.shape[1]), bool)
    for row in np.flatnonzero(overlap.max(axis=1) >= thresholds[0]):
        legal = free & (overlap[row] >= thresholds[:, None])
        wanted = legal & ~ignored[:, None]
        legal = np.where(wanted.any(axis=2, keepdims=True), wanted, legal)
        # Of equal overlaps the last object wins, as in pycocotools.
        values = np.where(legal, overlap[row], -1.0)[:, :, ::-1]
        chosen = overlap.shape[1] - 1 - values.argmax(axis=2)
        chosen = np.where(legal.any(axis=2), chosen, -1)
        matched[:, :, row] = chosen
        area, threshold = np.nonzero((chosen >= 0) & ~crowds[chosen])
        free[area, threshold, chosen[area, threshold]] = False
    return matched


def _columns(data: EvaluatedDataset, task: str):
    """Objects as dicts; predictions as arrays, by image, class and score; cells of both in one image and class."""
    images = {image_id: n for n, image_id in enumerate(data.image_ids, start=1)}
    category_ids = data.truth.category_ids
    try:
        objects = object_annotations(task, data.truth.coco, images, category_ids)
    except ValueError as error:
        raise ValueError(f"{data.truth.source}: {error}") from error
    known = set(category_ids.values())
    chosen = (
        n for n, a in enumerate(data.truth.coco["annotations"])
        if a["image_id"] in images and a["category_id"] in known
    )  # fmt: skip
    of_cell = defaultdict(list)
    for index, (annotation, number) in enumerate(zip(objects, chosen, strict=True)):
        annotation["number"] = number
        of_cell[annotation["image_id"] - 1, annotation["category_id"] - 1].append(index)
    found = _predictions(data, task, images, {class_id: k for k, class_id in enumerate(category_ids)})
    starts = np.flatnonzero(np.diff(found["images"] * (len(category_ids) + 1) + found["classes"], prepend=-1))
    cells = []
    for start, end in zip(starts, [*starts[1:], len(found["images"])]):
        columns = of_cell.get((int(found["images"][start]), int(found["classes"][start])))
        if columns:
            cells.append((np.arange(start, end), np.array(columns)))
    sigmas = None
    if task == "keypoints":
        labelled = next((len(a["keypoints"]) // 3 for a in objects if a["keypoints"]), 0)
        count = found["keypoints"].shape[1] if len(found["scores"]) else labelled
        if labelled and count != labelled:
            raise ValueError(f"predictions have {count} keypoints, the ground truth {labelled}; is the model for it?")
        sigmas = sigmas_for(count, data.protocol.kpt_oks_sigmas)
    return objects, found, cells, sigmas


def _predictions(data, task, images, class_numbers):
    """The predictions that count, sorted by image, class and score."""
    limit = KEYPOINT_MAX_DETS if task == "keypoints" else data.protocol.max_dets_per_image
    field = {"segm": "rles", "keypoints": "keypoints"}.get(task)
    columns = defaultdict(list)
    for image_id in (i for i in data.image_ids if len(data.predictions.get(i, ()))):
        one = data.predictions[image_id]
        if field and getattr(one, field) is None:
            raise ValueError(f"the task {task!r} needs predictions with {field}, which those of image {image_id} lack")
        classes = np.array([class_numbers[k] for k in one.classes.tolist()], np.int64)
        scores = np.asarray(one.scores, np.float64)
        order = np.lexsort((-scores, classes))
        first = np.searchsorted(classes[order], classes[order], side="left")
        order = order[np.arange(len(order)) - first < limit]
        boxes = np.asarray(one.boxes, np.float64)[order]
        columns["images"].append(np.full(len(order), images[image_id] - 1))
        columns["classes"].append(classes[order])
        columns["scores"].append(scores[order])
        columns["indices"].append(order)
        columns["boxes"].append(boxes)
        if task == "segm":
            columns["rles"] += [one.rles[row] for row in order]
        if task == "keypoints":
            columns["keypoints"].append(np.asarray(one.keypoints)[order])
    empty = {"images": np.zeros(0, np.int64), "classes": np.zeros(0, np.int64), "scores": np.zeros(0)}
    empty |= {"indices": np.zeros(0, np.int64), "boxes": np.zeros((0, 4))}
    found = {
        name: values if name == "rles" else np.concatenate(values) for name, values in columns.items()
    } or {**empty, "rles": [], "keypoints": np.zeros((0, 0, 3))}  # fmt: skip
    boxes = found["boxes"]
    # One by one: with NumPy 2, pycocotools fails on a list of more than 255 masks.
    areas = [mask_api.area(rle) for rle in found["rles"]] if task == "segm" else boxes[:, 2] * boxes[:, 3]
    return {**found, "areas": np.asarray(areas, np.float64)}


def _by_class(num_classes, objects, found, matched, hits, ignored, counted) -> list[ClassMatches]:
    order = np.lexsort((-found["scores"], found["classes"]))
    classes = found["classes"][order]
    object_classes = np.array([a["category_id"] - 1 for a in objects], np.int64)
    object_images = np.array([a["image_id"] - 1 for a in objects], np.int64)
    numbers = np.array([a["number"] for a in objects], np.int64)
    result = []
    for k in range(num_classes):
        rows = order[slice(*np.searchsorted(classes, [k, k + 1]))]
        mine = np.flatnonzero(object_classes == k)
        local = np.full(len(objects) + 1, -1, np.int64)
        local[mine] = np.arange(len(mine))
        result.append(
            ClassMatches(
                found["scores"][rows], found["images"][rows], found["indices"][rows], hits[:, :, rows],
                ignored[:, :, rows], local[matched[0][:, rows]], object_images[mine], numbers[mine], counted[:, mine],
            )
        )  # fmt: skip
    return result
