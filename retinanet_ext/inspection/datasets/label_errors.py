"""Probable label errors: where a trained model and the ground truth contradict each other.

Each annotation and each detection is in at most one of the findings; crowd regions, and detections mostly inside one,
are in none. Objects with masks are compared by their boxes. A finding is a probability, not a fact: a model that was
trained on the errors repeats some of them, and one that is weak contradicts what is right.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retinanet_ext.data.doctor.record_checks import annotation_name

from .findings import WARNING, Box, Finding
from .record_findings import box_of

MISSING, SPURIOUS = "probably a missing annotation", "annotation that the model does not find"
OTHER_CLASS, MISPLACED = "probably an annotation of the wrong class", "probably a misplaced box"
_RIGHT = {
    MISSING: "an annotation here, unless the model is mistaken",
    SPURIOUS: "no annotation here, unless the object is only hard to see",
    OTHER_CLASS: "the class that the model finds, unless it is mistaken",
    MISPLACED: "a box as the model places it, unless it is mistaken",
}


@dataclass(frozen=True)
class Limits:
    """When a model and the ground truth contradict each other.

    Attributes:
        confident: score from which on a detection is evidence of its own.
        low: score from which on a detection is enough to keep an annotation from being called spurious.
        same: IoU from which on a detection and an annotation are the same object in the same place.
        class_iou: IoU from which on two of different classes must be the same object.
        apart: IoU below which they have nothing to do with each other. A right class between ``apart`` and ``same`` is
            a misplaced box.
        lead: a class of the model contradicts an annotation if the annotation's own class has at most this part of its
            score there.
        crowd: part of a detection inside a crowd region from which on it is not looked at.
    """

    confident: float = 0.6
    low: float = 0.05
    same: float = 0.5
    class_iou: float = 0.6
    apart: float = 0.3
    lead: float = 0.5
    crowd: float = 0.5


LIMITS = Limits()


@dataclass(frozen=True)
class Detections:
    """Detections in one image: ``boxes`` ``(N, 4)`` xyxy in pixels, ``scores`` ``(N,)``, ``classes`` ``(N,)``, which
    count from 0 like ``category_id`` of dataset dicts."""

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    @classmethod
    def of_coco(cls, results: Iterable[Mapping], class_of_category: Mapping[int, int]) -> dict[object, "Detections"]:
        """Detections by image id, from a list in COCO's result format.

        Args:
            results: with ``image_id``, ``category_id``, ``bbox`` (XYWH) and ``score``.
            class_of_category: from COCO's category ids to classes from 0.
        """
        by_image: dict[object, list] = {}
        for result in results:
            x, y, width, height = result["bbox"]
            row = (x, y, x + width, y + height, result["score"], class_of_category[result["category_id"]])
            by_image.setdefault(result["image_id"], []).append(row)
        return {image_id: cls.of_rows(rows) for image_id, rows in by_image.items()}

    @classmethod
    def of_rows(cls, rows: Sequence[Sequence[float]]) -> "Detections":
        """From rows x0, y0, x1, y1, score, class."""
        table = np.array(rows, dtype=np.float64).reshape(-1, 6)
        return cls(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


@dataclass(frozen=True)
class LabelError:
    """A probable error: ``finding.box`` is that of the annotation, or of the detection if there is no annotation.

    Attributes:
        finding: what the page shows.
        score: of the detection that contradicts; for an annotation that is not found, the best score near it.
        rank: 0 to 1, the larger the more certain; comparable among errors of a kind.
        detection: box of the detection; None if there is none.
    """

    finding: Finding
    score: float
    rank: float
    detection: Box | None


def label_errors(
    dataset: str,
    records: Sequence[dict],
    detections: Mapping[object, Detections],
    class_names: Sequence[str],
    limits: Limits = LIMITS,
) -> list[LabelError]:
    """Compare ground truth with detections.

    Args:
        dataset: its name.
        records: checked dataset dicts with ``image_id``.
        detections: by image id, with all scores from ``limits.low`` on. Images without an entry are not looked at.
        class_names: by class.
        limits: see :class:`Limits`.

    Returns:
        By kind, the most certain first.
    """
    found = []
    for record in records:
        if record["image_id"] in detections:
            found += _Image(dataset, record, detections[record["image_id"]], class_names, limits).errors()
    kinds = list(_RIGHT)
    return sorted(found, key=lambda error: (kinds.index(error.finding.kind), -error.rank))


class _Image:
    """One image: G annotations without crowds, N detections with scores from ``low`` on, best first."""

    def __init__(self, dataset, record, detections: Detections, class_names, limits: Limits):
        self.dataset, self.record, self.names, self.limits = dataset, record, class_names, limits
        annotations = list(enumerate(record.get("annotations") or ()))
        self.places = [place for place, annotation in annotations if not annotation.get("iscrowd", 0)]
        self.objects = [record["annotations"][place] for place in self.places]
        self.boxes = _boxes(self.objects)
        self.classes = np.array([annotation["category_id"] for annotation in self.objects], dtype=np.int64)
        crowds = _boxes([annotation for _, annotation in annotations if annotation.get("iscrowd", 0)])
        kept = detections.scores >= limits.low
        kept &= (_part_inside(detections.boxes, crowds) < limits.crowd).all(axis=1)
        order = np.flatnonzero(kept)[np.argsort(-detections.scores[kept], kind="stable")]
        self.found, self.scores = detections.boxes[order], detections.scores[order]
        self.found_classes = detections.classes[order]
        self.iou = iou_matrix(self.boxes, self.found)
        self.same_class = self.classes[:, None] == self.found_classes
        # A detection that finds an annotation of its class says nothing about others: objects may overlap.
        self.explained = ((self.iou >= limits.same) & self.same_class).any(axis=0)

    def errors(self) -> list[LabelError]:
        found, used = [], np.zeros(len(self.scores), bool)
        confident = self.scores >= self.limits.confident
        free = ~((self.iou >= self.limits.same) & self.same_class & confident).any(axis=1)
        for kind in (OTHER_CLASS, MISPLACED):
            # The best detections choose first, so that none stands for two annotations.
            for detection in np.flatnonzero(confident & ~self.explained & ~used):
                annotation = self._contradicted(kind, detection, free)
                if annotation is not None:
                    found.append(self._annotation_error(kind, annotation, detection))
                    free[annotation], used[detection] = False, True
        near = (self.iou >= self.limits.apart).any(axis=1)
        found += [self._annotation_error(SPURIOUS, index, None) for index in np.flatnonzero(free & ~near)]
        return found + self._missing(used)

    def _contradicted(self, kind, detection, free) -> int | None:
        iou, limits = self.iou[:, detection], self.limits
        if kind == OTHER_CLASS:
            own = np.where((self.iou >= limits.same) & self.same_class, self.scores, 0).max(axis=1, initial=0)
            fits = (iou >= limits.class_iou) & ~self.same_class[:, detection]
            fits &= own <= limits.lead * self.scores[detection]
        else:
            fits = (iou >= limits.apart) & (iou < limits.same) & self.same_class[:, detection]
            fits &= ~((self.iou >= limits.same) & self.same_class).any(axis=1)
        fits &= free
        return int(np.argmax(np.where(fits, iou, -1))) if fits.any() else None

    def _missing(self, used) -> list[LabelError]:
        apart = ~(self.iou >= self.limits.apart).any(axis=0)
        found: list[int] = []
        for index in np.flatnonzero((self.scores >= self.limits.confident) & apart & ~used):
            # One finding for each place, whatever the classes that the model names there.
            if not found or iou_matrix(self.found[found], self.found[index : index + 1]).max() < self.limits.same:
                found.append(int(index))
        errors = []
        for index in found:
            text = f"{self._detection(index)} where nothing is annotated"
            score = float(self.scores[index])
            box = tuple(self.found[index].tolist())
            errors.append(LabelError(self._finding(MISSING, text, None, box), score, score, box))
        return errors

    def _annotation_error(self, kind, index: int, detection: int | None) -> LabelError:
        name, box = self.names[self.classes[index]], tuple(self.boxes[index].tolist())
        if detection is None:
            near = self.iou[index]
            score = float(self.scores[near > 0].max(initial=0))
            text = f"{name}, where no detection of a score from {self.limits.low:g} on has an IoU of "
            text += f"{self.limits.apart:g} with it"
            return LabelError(self._finding(kind, text, index, box), score, 1 - float(near.max(initial=0)), None)
        score, iou = float(self.scores[detection]), float(self.iou[index, detection])
        text = f"{name}, and {self._detection(detection)}, IoU {iou:.2f}"
        rank = score * iou if kind == OTHER_CLASS else score * (1 - iou)
        return LabelError(self._finding(kind, text, index, box), score, rank, tuple(self.found[detection].tolist()))

    def _detection(self, index: int) -> str:
        corners = ", ".join(f"{value:.0f}" for value in self.found[index])
        name, score = self.names[self.found_classes[index]], self.scores[index]
        return f"the model finds {name} (score {score:.2f}) at [{corners}]"

    def _finding(self, kind, text, index: int | None, box: Box) -> Finding:
        record = self.record
        name = None if index is None else annotation_name(self.places[index], self.objects[index], record)
        file_name, image_id = record["file_name"], record["image_id"]
        return Finding(kind, WARNING, self.dataset, file_name, image_id, name, text, _RIGHT[kind], box)


def _boxes(annotations: Sequence[dict]) -> np.ndarray:
    return np.array([box_of(annotation) for annotation in annotations], dtype=np.float64).reshape(-1, 4)


def iou_matrix(boxes1: np.ndarray, boxes2: np.ndarray) -> np.ndarray:
    """IoU ``(M, N)`` of boxes ``(M, 4)`` and ``(N, 4)``, xyxy."""
    shared = _shared_areas(boxes1, boxes2)
    union = _areas(boxes1)[:, None] + _areas(boxes2) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


def _part_inside(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Part ``(N, C)`` of the area of each box that lies in each region."""
    shared = _shared_areas(boxes, regions)
    return np.divide(shared, _areas(boxes)[:, None], out=np.zeros_like(shared), where=shared > 0)


def _shared_areas(boxes1, boxes2):
    low = np.maximum(boxes1[:, None, :2], boxes2[:, :2])
    high = np.minimum(boxes1[:, None, 2:], boxes2[:, 2:])
    return (high - low).clip(min=0).prod(axis=2)


def _areas(boxes):
    return (boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1)
