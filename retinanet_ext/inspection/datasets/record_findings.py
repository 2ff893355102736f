"""Findings about the records of one dataset: what training would refuse, and what is only suspicious."""

import math
from collections import Counter
from dataclasses import dataclass, field

from retinanet_ext.config.class_count import num_classes
from retinanet_ext.d2 import BoxMode, CfgNode
from retinanet_ext.data.doctor.annotation_faults import BOX_MODES, WARNINGS, annotation_fault, repaired_annotation
from retinanet_ext.data.doctor.image_probe import ImageInfo
from retinanet_ext.data.doctor.mask_faults import has_mask, mask_fault
from retinanet_ext.data.doctor.record_checks import Problem, annotation_name, image_problem
from retinanet_ext.data.doctor.tasks import BOXES, Tasks, refuse_tasks_without_data, tasks_of

from .coco_structure import DUPLICATE_IMAGE
from .dataset_reading import ReadDataset
from .findings import ERROR, NOTE, WARNING, Box, Finding, finding_of

TRUNCATED, ONE_COLOUR = "truncated image", "image of one colour"
EXIF_SIZE = "size of the record is that before the EXIF rotation"
EXIF_TURNED = "image with an EXIF rotation"
DUPLICATE_FILE = "image file in several records"
DUPLICATE_BOX = "same box and class twice in an image"
NO_OBJECTS, NO_ANNOTATIONS = "image without objects", "dataset without annotations"
NO_EXAMPLES = "class without examples"
WHOLE_IMAGE, VERY_SMALL = "box that covers the whole image", "very small object after the resize"
UNCHECKED = "annotation that cannot be read"
BAD_TASK = "data without what the config trains"
_SMALL_SIDE = 4.0  # pixels: square root of the area, after the resize
_WHOLE_TOLERANCE = 1.0  # pixels at each side


@dataclass
class CheckedRecords:
    """What the checks found in the records of a dataset, by the index of the record.

    ``sizes``: (width, height) that annotations are checked against; None if unknown. ``bad_images``: those that
    training cannot use. ``bad_annotations``, ``repeated``: indices of the annotations of a record. ``repeats``: the
    record has the file of an earlier one.
    """

    dataset: ReadDataset
    tasks: Tasks
    num_classes: int
    tested: bool
    infos: list[ImageInfo | Exception]
    orientations: list[int]
    sizes: list[tuple[int, int] | None]
    findings: list[Finding] = field(default_factory=list)
    bad_images: dict[int, Problem] = field(default_factory=dict)
    bad_annotations: dict[int, dict[int, Problem]] = field(default_factory=dict)
    repeated: dict[int, list[int]] = field(default_factory=dict)
    repeats: set[int] = field(default_factory=set)

    def usable(self) -> list[dict]:
        """Copies of the records without bad images and annotations, as the policies `drop` and `clip` leave them."""
        kept = []
        for index, record in enumerate(self.dataset.records):
            if index not in self.bad_images:
                size = self.sizes[index]
                new = {**record, "annotations": self.repaired(index)} if "annotations" in record else dict(record)
                if size is not None:
                    new["width"], new["height"] = size
                kept.append(new)
        return kept

    def repaired(self, index: int) -> list[dict]:
        """The annotations of a record that training can use."""
        bad, repeated = self.bad_annotations.get(index, {}), self.repeated.get(index, ())
        kept = []
        for place, annotation in enumerate(self.dataset.records[index].get("annotations", ())):
            if place in bad:
                annotation = self.repair(annotation, self.sizes[index])
            if annotation is not None and place not in repeated:
                kept.append(annotation)
        return kept

    def repair(self, annotation: dict, size: tuple[int, int] | None) -> dict | None:
        """A copy without faults, as the policy ``clip`` makes it, or None."""
        if not isinstance(annotation, dict) or annotation.get("bbox_mode") not in BOX_MODES:
            return None
        try:
            if not self.tasks.masks and has_mask(annotation) and mask_fault(annotation, size):
                annotation = {key: value for key, value in annotation.items() if key != "segmentation"}
            return repaired_annotation(annotation, size, self.num_classes, size is not None, self.tasks)
        except Exception:  # a value that the checks cannot read either
            return None


def check_records(
    cfg: CfgNode, dataset: ReadDataset, infos: list, orientations: list[int], flat: list[bool], tested: bool
) -> CheckedRecords:
    """Check all records.

    Args:
        cfg: the config; its sizes of images decide what is very small.
        dataset: N records.
        infos, orientations, flat: of the N image files.
        tested: whether the dataset is of the test data.
    """
    classes = len(dataset.class_names) or num_classes(cfg)
    sizes = [_stated_size(record) for record in dataset.records]
    orientations = list(map(int, orientations))
    checked = CheckedRecords(dataset, _tasks(cfg, dataset), classes, tested, infos, orientations, sizes)
    _check_tasks(checked)
    files, ids = {}, {}
    for index, record in enumerate(dataset.records):
        _check_image(checked, index, record, files, ids, flat[index])
    has_boxes = any(record.get("annotations") for record in dataset.records)
    for index, record in enumerate(dataset.records):
        if "annotations" in record:
            _check_annotations(checked, index, record, cfg, has_boxes)
    _check_classes(checked, has_boxes)
    return checked


def box_of(annotation: dict) -> Box | None:
    """``(x0, y0, x1, y1)`` in pixels; None if the annotation has no box of four finite numbers."""
    try:
        x0, y0, x1, y1 = map(float, annotation["bbox"])
    except (TypeError, ValueError, KeyError, OverflowError):
        return None
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        return None
    return (x0, y0, x0 + x1, y0 + y1) if annotation.get("bbox_mode") == BoxMode.XYWH_ABS else (x0, y0, x1, y1)


def resize_scale(cfg: CfgNode, size: tuple[int, int], tested: bool) -> float:
    """The factor by which the config's resize scales an image; in training, its smallest.

    Args:
        size: (width, height) in pixels.
        tested: take the sizes of the test.
    """
    short = cfg.INPUT.MIN_SIZE_TEST if tested else min(cfg.INPUT.MIN_SIZE_TRAIN)
    longest = cfg.INPUT.MAX_SIZE_TEST if tested else cfg.INPUT.MAX_SIZE_TRAIN
    return min(short / min(size), longest / max(size)) if short else 1.0


def _tasks(cfg, dataset):
    tasks = tasks_of(cfg, dataset.name)
    return BOXES if dataset.identity_names else tasks


def _check_tasks(checked):
    try:
        refuse_tasks_without_data(checked.dataset.records, checked.dataset.name, checked.tasks)
    except ValueError as error:
        checked.findings.append(
            Finding(BAD_TASK, ERROR, checked.dataset.name, checked.dataset.json_file, None, None, str(error),
                    "change the config, or the data")
        )  # fmt: skip
        checked.tasks = BOXES
    except Exception:  # values that the checks of single annotations name
        return


def _stated_size(record):
    size = record.get("width"), record.get("height")
    return size if all(type(value) is int and value > 0 for value in size) else None


def _check_image(checked, index, record, files, ids, flat):
    info, orientation, expected = checked.infos[index], checked.orientations[index], checked.sizes[index]
    image_id, name = record.get("image_id"), checked.dataset.name
    problem = image_problem(record, expected, info)
    if problem is not None:
        checked.findings.append(finding_of(problem, name, kind=_kind_of(problem, info, orientation, expected)))
    elif _is_hashable(image_id) and image_id is not None and ids.setdefault(image_id, index) != index:
        first = checked.dataset.records[ids[image_id]]["file_name"]
        problem = _problem(record, DUPLICATE_IMAGE, f"image id {image_id}", f"a unique id; {first} has the same")
        checked.findings.append(finding_of(problem, name))
    first = files.setdefault(record["file_name"], index)
    if first != index:
        checked.repeats.add(index)
        if problem is None:
            other = checked.dataset.records[first].get("image_id")
            found = _problem(record, DUPLICATE_FILE, f"the file of image id {other}", "one record for each file")
            checked.findings.append(finding_of(found, name, WARNING))
    if problem is not None:
        checked.bad_images[index] = problem
    if isinstance(info, Exception):
        return
    if expected is None:
        checked.sizes[index] = info.size
    if flat:
        found = _problem(record, ONE_COLOUR, "no pattern at all", "a picture")
        checked.findings.append(finding_of(found, name, WARNING))
    if orientation != 1 and problem is None:
        _note_rotation(checked, record, expected, orientation)


def _kind_of(problem, info, orientation, expected):
    if isinstance(info, FileNotFoundError):
        return None
    if isinstance(info, Exception):
        return TRUNCATED if isinstance(info, EOFError) or "truncated" in str(info).lower() else None
    turned = orientation >= 5 and expected is not None and info.size == expected[::-1]
    return EXIF_SIZE if turned and info.size != expected else None


def _note_rotation(checked, record, expected, orientation):
    """Without a size that shows it, nobody knows whether boxes belong to the picture before or after its rotation."""
    has_boxes, shows = bool(record.get("annotations")), orientation >= 5 and expected and expected[0] != expected[1]
    legal = "training turns the picture, and the size of the record agrees" if shows else "training turns the picture"
    if has_boxes and not shows:
        legal += "; see that the boxes belong to the turned picture, which its size cannot show"
    found = _problem(record, EXIF_TURNED, f"EXIF orientation {orientation}", legal)
    checked.findings.append(finding_of(found, checked.dataset.name, WARNING if has_boxes and not shows else NOTE))


def _check_annotations(checked, index, record, cfg, has_boxes):
    size, name = checked.sizes[index], checked.dataset.name
    annotations = record["annotations"]
    if not annotations:
        if has_boxes:
            found = _problem(record, NO_OBJECTS, "no annotations", "fine for images of background alone")
            checked.findings.append(finding_of(found, name, NOTE))
        return
    scale = resize_scale(cfg, size, checked.tested) if size else 1.0
    seen = {}
    for place, annotation in enumerate(annotations):
        fault, severity = _fault(checked, annotation, size)
        box = box_of(annotation) if isinstance(annotation, dict) else None
        if fault is None:
            fault, severity = _suspicion(annotation, box, size, scale, seen, place), WARNING
            if fault is not None and fault[0] == DUPLICATE_BOX:
                checked.repeated.setdefault(index, []).append(place)
        elif fault[0] not in WARNINGS:
            checked.bad_annotations.setdefault(index, {})[place] = _annotation_problem(record, place, fault)
        if fault is not None:
            checked.findings.append(finding_of(_annotation_problem(record, place, fault), name, severity, box))


def _fault(checked, annotation, size):
    """(kind, found, legal) and the severity; what training refuses is an error."""
    if not isinstance(annotation, dict):
        return (UNCHECKED, f"{annotation!r:.80}", "a mapping"), ERROR
    if annotation.get("bbox_mode") not in BOX_MODES:
        return (UNCHECKED, f"bbox_mode {annotation.get('bbox_mode')!r}", "BoxMode.XYXY_ABS or XYWH_ABS"), ERROR
    try:
        fault = annotation_fault(annotation, size, checked.num_classes, checked.dataset.class_names, checked.tasks)
        if fault is None and not checked.tasks.masks and has_mask(annotation):
            return mask_fault(annotation, size), WARNING
    except Exception as error:  # a value of a kind that the checks do not know
        return (UNCHECKED, f"{type(error).__name__}: {error}", "values of the types of the format"), ERROR
    return fault, WARNING if fault is not None and fault[0] in WARNINGS else ERROR


def _suspicion(annotation, box, size, scale, seen, place):
    """What is wrong with an annotation that training takes; crowds may be as they like."""
    if annotation.get("iscrowd", 0):
        return None
    first = seen.setdefault((annotation["category_id"], *box), place)
    text = f"[x0, y0, x1, y1] = [{', '.join(f'{value:g}' for value in box)}]"
    if first != place:
        return DUPLICATE_BOX, f"{text}, as annotation {first}", "each object once"
    if size and max(box[0], box[1], size[0] - box[2], size[1] - box[3]) <= _WHOLE_TOLERANCE:
        return WHOLE_IMAGE, text, "a box around the object, if it is smaller than the image"
    side = math.sqrt((box[2] - box[0]) * (box[3] - box[1])) * scale
    if side < _SMALL_SIDE:
        legal = "larger images (INPUT.MIN_SIZE_TRAIN, MIN_SIZE_TEST), or no such object"
        return VERY_SMALL, f"{text}, a square root of the area of {side:.2g} pixels after the resize", legal
    return None


def _check_classes(checked, has_boxes):
    dataset = checked.dataset
    if not dataset.class_names or not dataset.records:
        return
    annotation_file = dataset.json_file
    if not has_boxes:
        found = Finding(
            NO_ANNOTATIONS, WARNING, dataset.name, annotation_file, None, None, "no annotations in any image",
            "boxes, unless these are test images without ground truth",
        )  # fmt: skip
        checked.findings.append(found)
        return
    counts = Counter(
        a.get("category_id") for r in dataset.records for a in r.get("annotations", ())
        if isinstance(a, dict) and _is_hashable(a.get("category_id"))
    )  # fmt: skip
    for index, name in enumerate(dataset.class_names):
        if not counts[index]:
            found = f"no annotation of class {name!r} (number {index})"
            finding = Finding(NO_EXAMPLES, WARNING, dataset.name, annotation_file, None, None, found, "leave it out")
            checked.findings.append(finding)


def _annotation_problem(record, place, fault):
    annotation = record["annotations"][place]
    name = annotation_name(place, annotation, record) if isinstance(annotation, dict) else str(place)
    return _problem(record, *fault, annotation=name)


def _problem(record, kind, found, legal, annotation=None):
    return Problem(kind, record["file_name"], record.get("image_id"), annotation, str(found), legal)


def _is_hashable(value):
    try:
        hash(value)
    except TypeError:
        return False
    return True
