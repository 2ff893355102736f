"""The images with the most errors, drawn with their ground truth and with what was predicted."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_api

from retinanet_ext.d2 import Visualizer, detection_utils
from retinanet_ext.evaluation.image_counts import worst_images
from retinanet_ext.report.document import Block, Bullets, Heading, Paragraph, Pictures

from .detection_statistics import IOU, Clock, DetectionStatistics

NUMBER = 6
_SIDE = 480  # pixels of the longer side of a picture
_JPEG_QUALITY = 82
_FONT_SCALE = 1.5  # the page shows the pictures at about half their size
_MAX_OBJECTS = 30  # drawn in one picture
_RIGHT, _WRONG = (0.1, 0.6, 1.0), (1.0, 0.45, 0.0)  # RGB
_HOW_TO_READ = (
    "Lowest F1 first. Of each image first the ground truth, then the detections above the score thresholds of their "
    f"classes; blue is found or right, orange is missed or wrong, at IoU 0.5. At most {_MAX_OBJECTS} objects are drawn."
)


@dataclass(frozen=True)
class _Object:
    """Something to draw. Box XYXY ``(4,)``, mask as RLE or polygons, keypoints ``(J, 3)``; in pixels of the image."""

    box: np.ndarray
    label: str
    is_right: bool
    mask: Any = None
    keypoints: np.ndarray | None = None


def worst_images_section(statistics: DetectionStatistics, suffix: str, clock: Clock) -> list[Block]:
    """`suffix`: ends the heading. Files that are missing or cannot be read are named."""
    counts = statistics.counts
    if counts is None:
        return []
    blocks: list[Block] = [Heading(f"Worst images{suffix}")]
    chosen = [index for index in worst_images(counts, NUMBER) if counts.fp[index] + counts.fn[index]]
    if not chosen:
        return [*blocks, Paragraph("No image has an error at the operating thresholds.")]
    drawer = _Drawer(statistics)
    groups, problems = [], []
    for index in chosen:
        if clock.is_over:
            problems.append("Further pictures are left out, because the time for this page was used up.")
            break
        name = os.path.basename(statistics.data.image_path(drawer.image_id(index)))
        try:
            pictures = drawer.draw(index)
        except Exception as error:  # any type: a picture is no reason to lose the page
            problems.append(f"No picture of {name} ({_numbers(counts, index)}): {type(error).__name__}: {error}")
            continue
        groups.append((pictures, (name, _numbers(counts, index))))
    blocks += [Paragraph(_HOW_TO_READ), Pictures(groups, large=True)] if groups else []
    return [*blocks, *([Bullets(problems)] if problems else [])]


def _numbers(counts, index) -> str:
    tp, fp, fn = (int(values[index]) for values in (counts.tp, counts.fp, counts.fn))
    return f"F1 {counts.f1[index]:.2f}: {tp} right, {fp} wrong, {fn} missed"


class _Drawer:
    """Draws images of a dataset, at most `_SIDE` pixels a side, whatever their own size."""

    def __init__(self, statistics: DetectionStatistics):
        self._data = statistics.data
        self._classes = statistics.tasks[0].matches.classes
        self._thresholds = statistics.score_thresholds
        ids = self._data.truth.category_ids
        self._class_of_category = {category: k for k, category in enumerate(ids.values())}
        self._class_of_id = {class_id: k for k, class_id in enumerate(ids)}
        annotations = self._data.truth.coco.get("annotations", [])
        self._places = {id(annotation): index for index, annotation in enumerate(annotations)}
        self._metadata = _skeleton(self._data.truth.coco["categories"])

    def image_id(self, index: int) -> Any:
        return self._data.image_ids[index]

    def draw(self, index: int) -> list[bytes]:
        """JPEG files: the ground truth of an image, and its detections."""
        path = self._data.image_path(self.image_id(index))
        image = np.ascontiguousarray(detection_utils.read_image(path, format="RGB"))
        return [self._picture(image, self._truth(index)), self._picture(image, self._detections(index))]

    def _truth(self, index: int) -> list[_Object]:
        found = self._found_objects(index)
        objects = []
        for annotation in self._data.objects(self.image_id(index)):
            class_id = self._class_of_category.get(annotation["category_id"])
            if class_id is None:  # not a class of the model, so it is not evaluated
                continue
            is_crowd = bool(annotation.get("iscrowd", 0))
            x, y, width, height = annotation["bbox"]
            objects.append(
                _Object(
                    np.array([x, y, x + width, y + height], float),
                    self._data.class_names[class_id] + (" (crowd)" if is_crowd else ""),
                    is_crowd or self._places[id(annotation)] in found,
                    annotation.get("segmentation") or None if "segm" in self._data.tasks else None,
                    _points(annotation.get("keypoints")) if "keypoints" in self._data.tasks else None,
                )
            )
        return objects[:_MAX_OBJECTS]

    def _detections(self, index: int) -> list[_Object]:
        predictions = self._data.predictions.get(self.image_id(index))
        if predictions is None:
            return []
        right = self._right_detections(index)
        scores = np.asarray(predictions.scores)
        classes = [self._class_of_id[class_id] for class_id in np.asarray(predictions.classes).tolist()]
        limits = np.array(self._thresholds)[classes] if classes else scores
        shown = [i for i in np.argsort(-scores, kind="stable").tolist() if scores[i] >= limits[i]][:_MAX_OBJECTS]
        return [
            _Object(
                np.concatenate([predictions.boxes[i, :2], predictions.boxes[i, :2] + predictions.boxes[i, 2:]]),
                f"{self._data.class_names[classes[i]]} {scores[i]:.0%}",
                i in right,
                None if predictions.rles is None else predictions.rles[i],
                None if predictions.keypoints is None else _points(predictions.keypoints[i]),
            )
            for i in shown
        ]

    def _right_detections(self, index: int) -> set[int]:
        """Indices of the image's detections that are right, or stand on a crowd."""
        right: set[int] = set()
        for found in self._classes:
            good = (found.images == index) & (found.hits[0, IOU] | found.ignored[0, IOU])
            right.update(found.indices[good].tolist())
        return right

    def _found_objects(self, index: int) -> set[int]:
        """Indices in the ground truth's annotations of the objects that a detection above its threshold finds."""
        annotations: set[int] = set()
        for found, threshold in zip(self._classes, self._thresholds, strict=True):
            objects = found.objects[IOU][(found.images == index) & (found.scores >= threshold)]
            annotations.update(found.object_annotations[objects[objects >= 0]].tolist())
        return annotations

    def _picture(self, image: np.ndarray, objects: Sequence[_Object]) -> bytes:
        height, width = image.shape[:2]
        scale = _SIDE / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        canvas = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        factors = np.array([size[0] / width, size[1] / height])
        if objects:
            canvas = self._overlay(canvas, objects, factors, (height, width))
        bgr = np.ascontiguousarray(canvas[:, :, ::-1])
        return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()

    def _overlay(self, canvas, objects, factors, image_size) -> np.ndarray:
        masks = keypoints = None
        if any(entry.mask is not None for entry in objects):
            masks = [_small_mask(entry.mask, image_size, canvas.shape[:2]) for entry in objects]
        if any(entry.keypoints is not None for entry in objects):
            count = max(len(entry.keypoints) for entry in objects if entry.keypoints is not None)
            keypoints = np.zeros((len(objects), count, 3))
            for row, entry in zip(keypoints, objects):
                if entry.keypoints is not None:
                    row[: len(entry.keypoints)] = entry.keypoints * [*factors, 1]
        drawn = Visualizer(canvas, self._metadata, font_size_scale=_FONT_SCALE).overlay_instances(
            boxes=np.array([entry.box * np.tile(factors, 2) for entry in objects]),
            labels=[entry.label for entry in objects],
            masks=masks,
            keypoints=keypoints,
            assigned_colors=[_RIGHT if entry.is_right else _WRONG for entry in objects],
            alpha=0.3,
        )
        return drawn.get_image()


def _points(keypoints) -> np.ndarray | None:
    """Keypoints as COCO counts them, from the centre of the first pixel, in continuous pixels ``(J, 3)``."""
    if keypoints is None or not len(keypoints):
        return None
    return np.array(keypoints, float).reshape(-1, 3) + [0.5, 0.5, 0]


def _small_mask(mask: Any, image_size: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """The mask at the size of the picture, bool ``(H, W)``; empty for an object without one."""
    if mask is None:
        return np.zeros(size, bool)
    if isinstance(mask, list):
        mask = mask_api.merge(mask_api.frPyObjects([list(np.ravel(part)) for part in mask], *image_size))
    elif isinstance(mask["counts"], list):
        mask = mask_api.frPyObjects(mask, *image_size)
    full = mask_api.decode(mask)
    return cv2.resize(full, (size[1], size[0]), interpolation=cv2.INTER_AREA if size[0] < full.shape[0] else 1) > 0


def _skeleton(categories: Sequence[dict]) -> dict[str, list]:
    """Names and lines of the keypoints, as the metadata of a dataset have them."""
    category = next((category for category in categories if category.get("keypoints")), None)
    if category is None:
        return {}
    names = list(category["keypoints"])
    lines = [(names[a - 1], names[b - 1], (255, 200, 0)) for a, b in category.get("skeleton") or ()]
    return {"keypoint_names": names, "keypoint_connection_rules": lines}
