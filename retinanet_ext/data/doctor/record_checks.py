"""Check dataset records before training: find every problem first, then refuse, drop or clip by policy.

Records are Detectron2's dataset dicts. Nothing is edited in place, and nothing is dropped without being listed.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from .annotation_faults import (
    BOX_MODES,
    CROWD_FLAG,
    IDENTITY,
    OUTSIDE,
    POLYGON,
    WARNINGS,
    annotation_fault,
    repaired_annotation,
)
from .image_probe import ImageInfo, OutsideFolderError, outside_error, probe_images
from .keypoint_faults import KEYPOINT_FAULTS, with_keypoints
from .tasks import BOXES, Tasks, refuse_tasks_without_data, task_summary

ANNOTATION_KEY = "DATASETS.ON_BAD_ANNOTATION"
IMAGE_KEY = "DATASETS.ON_BAD_IMAGE"
CHECK_KEY = "DATASETS.CHECK_IMAGES"
OUTSIDE_FOLDER = "image file outside of the image folder"
ANNOTATION_POLICIES = ("error", "drop", "clip")
IMAGE_POLICIES = ("error", "drop")
IMAGE_CHECKS = ("auto", "header", "decode", "none")

# With "auto", a dataset of up to this many images is decoded: a minute on 2 cores for photos of 640x480.
MAX_DECODED = 20_000
_HOW_READ = {"decode": "files read whole", "header": "only the headers of the files read", "none": "files not read"}
_SHOWN = 10

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one record, or with one annotation of it (`annotation` is None for the image itself)."""

    kind: str
    file_name: str
    image_id: object
    annotation: str | None
    found: str
    legal: str

    def __str__(self) -> str:
        annotation = f", annotation {self.annotation}" if self.annotation else ""
        return (
            f"{self.kind}: {self.file_name} (image id {self.image_id}){annotation}: "
            f"found {self.found}, legal: {self.legal}"
        )


@dataclass
class Report:
    """The problems that `check_dataset_dicts` found, and how much it dropped and clipped."""

    dataset_name: str
    num_images: int
    num_annotations: int
    check_images: str
    annotation_file: str | None = None
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)  # of annotations that were left as they are
    dropped_images: int = 0
    dropped_annotations: int = 0  # in images that were kept
    clipped_annotations: int = 0
    repaired_annotations: int = 0  # by other means than clipping
    completed_images: int = 0  # with objects that had no keypoints
    left_out: list[object] = field(default_factory=list)  # image ids of the dropped records
    changes: list[tuple[object, dict, dict | None]] = field(default_factory=list)
    """Image id, annotation, and what replaces it (None: nothing), for annotations of images that were kept."""

    @property
    def changed(self) -> bool:
        """Whether anything was dropped, clipped, repaired or completed."""
        return bool(self.dropped_images or self.changes or self.completed_images)

    def counts(self) -> dict[str, int]:
        """Number of problems of each kind, the most frequent first."""
        return dict(Counter(problem.kind for problem in self.problems).most_common())


def check_dataset_dicts(
    dicts: list[dict],
    dataset_name: str,
    class_names: Sequence[str] | None,
    *,
    on_bad_annotation: str = "error",
    on_bad_image: str = "error",
    check_images: str = "header",
    num_classes: int | None = None,
    tasks: Tasks = BOXES,
    annotation_file: str | None = None,
    image_root: str | None = None,
) -> tuple[list[dict], Report]:
    """Check all records of a dataset.

    Bad images: a missing or unreadable file, more than 8 bits a channel in one channel (Pillow modes I and F), a size
    (after EXIF rotation) that differs from the record's, a repeated image id. Bad annotations: a box that is not four
    finite numbers, is inverted, has no area, or extends more than a pixel beyond the image; a category id outside [0,
    K); an `iscrowd` other than 0 and 1; a malformed polygon; a fault that the reader found. If masks are trained, also
    an object without a mask, a mask that does not decode, is empty, has another size than the image, or lies outside
    its box; if keypoints are trained, faults of :mod:`.keypoint_faults`; if identities are trained, one that is not an
    integer or a text. Crowd annotations are checked like the rest and kept.

    Args:
        dicts: dataset dicts; not modified.
        dataset_name: for messages.
        class_names: for messages; None if unknown. Their number is K unless `num_classes` is given.
        on_bad_annotation: "error" raises; "drop" removes the annotation; "clip" cuts a box at the border of the image,
            and removes annotations that this does not repair. Both keep the box of an annotation with a malformed
            polygon, without the polygon, and read an `iscrowd` of null, "0" or "1" as a number. Both mark faulty
            keypoints as not labelled, and a faulty identity as unknown. If masks are trained, an object that loses its
            last polygon is removed.
        on_bad_image: "error" raises; "drop" removes the record (of records with the same image id, all but the first).
        check_images: "header" opens each file, "decode" reads all of its pixels, "none" touches no file; "auto" decodes
            up to :data:`MAX_DECODED` images and opens more.
        num_classes: K.
        tasks: whether masks, keypoints and identities are trained, and so examined.
        annotation_file: for messages.
        image_root: an image file outside of this folder is a bad image, and is not opened; None: anywhere.

    Returns:
        The remaining records and the report. Records without problems are the same objects as in `dicts`. If keypoints
        are trained, objects without keypoints have keypoints that are not labelled.

    Raises:
        ValueError: an unknown policy, an empty dataset, neither class names nor `num_classes`, a `bbox_mode` other
            than XYXY_ABS and XYWH_ABS, no image left, data that do not fit the tasks, or problems under the
            policy "error"; the message counts these by kind, shows the first ones, and names the config keys that
            change the policy.
    """
    _check_choice("on_bad_annotation", on_bad_annotation, ANNOTATION_POLICIES)
    _check_choice("on_bad_image", on_bad_image, IMAGE_POLICIES)
    _check_choice("check_images", check_images, IMAGE_CHECKS)
    if not dicts:
        raise ValueError(f"Dataset {dataset_name!r} is empty: it has no images. Check its paths and its split.")
    if num_classes is None:
        if class_names is None:
            raise ValueError(f"Dataset {dataset_name!r} has no class names (thing_classes), so num_classes is needed.")
        num_classes = len(class_names)
    if check_images == "auto":
        check_images = "decode" if len(dicts) <= MAX_DECODED else "header"
    refuse_tasks_without_data(dicts, dataset_name, tasks)
    bad_images, sizes = _find_bad_images(dicts, check_images, dataset_name, image_root)
    num_annotations = sum(len(d.get("annotations", ())) for d in dicts)
    report = Report(dataset_name, len(dicts), num_annotations, check_images, annotation_file)
    bad_annotations = {}
    for index, record in enumerate(dicts):
        found = _find_bad_annotations(record, sizes[index], num_classes, class_names, tasks, report)
        if found and not (index in bad_images and on_bad_image == "drop"):
            bad_annotations[index] = found
    report.problems = [*bad_images.values(), *(p for found in bad_annotations.values() for p in found.values())]
    _raise_if_refused(report, on_bad_annotation, on_bad_image, tasks)
    clean = []
    for index, record in enumerate(dicts):
        if index in bad_images:
            report.dropped_images += 1
            report.left_out.append(record.get("image_id"))
            continue
        if index in bad_annotations:
            clip = on_bad_annotation == "clip"
            record = _repaired(record, bad_annotations[index], sizes[index], num_classes, clip, tasks, report)
        completed = with_keypoints(record, tasks.num_keypoints) if tasks.num_keypoints else record
        report.completed_images += completed is not record
        clean.append(completed)
    _log(report, task_summary(clean, tasks))
    if not clean:
        raise ValueError(f"Dataset {dataset_name!r} is empty after all of its {len(dicts)} images were dropped.")
    return clean, report


def _check_choice(name, value, legal):
    if value not in legal:
        raise ValueError(f"{name} is {value!r}; legal: {', '.join(legal)}.")


def _find_bad_images(dicts, check_images, dataset_name, image_root):
    """Return ({index of the record: Problem}, [(width, height) or None per record])."""
    sizes = [(d["width"], d["height"]) if "width" in d and "height" in d else None for d in dicts]
    bad, first_with_id = {}, {}
    paths, what = [d["file_name"] for d in dicts], f"Dataset {dataset_name!r}"
    if check_images == "none":
        found = [outside_error(path, image_root) for path in paths]
    else:
        found = probe_images(paths, check_images == "decode", what, root=image_root)
    for index, (record, actual) in enumerate(zip(dicts, found, strict=True)):
        problem = image_problem(record, sizes[index], actual)
        image_id = record.get("image_id")
        if problem is None and image_id is not None:
            first = first_with_id.setdefault(image_id, index)
            if first != index:
                legal = f"a unique id; record {first} ({dicts[first]['file_name']}) has the same id"
                problem = _problem(record, "duplicate image id", f"image id {image_id}", legal)
        if problem is not None:
            bad[index] = problem
        elif sizes[index] is None:
            sizes[index] = actual and actual.size
    return bad, sizes


def image_problem(
    record: dict, expected: tuple[int, int] | None, actual: ImageInfo | Exception | None
) -> Problem | None:
    """What is wrong with the image of a record.

    Args:
        record: a dataset dict.
        expected: (width, height) as the record says; None: it says nothing.
        actual: what the file is, or the error of reading it; None: it was not read.
    """
    if isinstance(actual, FileNotFoundError):
        return _problem(record, "missing image file", "no such file", "an image file")
    if isinstance(actual, OutsideFolderError):
        return _problem(record, OUTSIDE_FOLDER, record["file_name"], str(actual))
    if isinstance(actual, Exception):
        return _problem(record, "unreadable image", f"{type(actual).__name__}: {actual}", "an image file")
    if actual is None:
        return None
    if actual.is_deep:
        legal = "8 bits a channel; convert the file, with the scaling that fits the data"
        return _problem(record, "image with more than 8 bits a channel", f"Pillow mode {actual.mode}", legal)
    if expected is None or actual.size == tuple(expected):
        return None
    turned = ", which is that size before its EXIF rotation" if actual.size == tuple(expected)[::-1] else ""
    legal = f"width x height = {expected[0]}x{expected[1]} as the record says{turned}"
    return _problem(record, "image size differs from the record", f"{actual.size[0]}x{actual.size[1]}", legal)


def _problem(record, kind, found, legal, annotation=None):
    return Problem(kind, record["file_name"], record.get("image_id"), annotation, str(found), legal)


def _find_bad_annotations(record, size, num_classes, class_names, tasks, report):
    """Return {index of the annotation: Problem}; append warnings to the report."""
    bad = {}
    for index, annotation in enumerate(record.get("annotations", ())):
        if annotation.get("bbox_mode") not in BOX_MODES:
            raise ValueError(
                f"{record['file_name']} (image id {record.get('image_id')}), annotation "
                f"{annotation_name(index, annotation, record)}: "
                f"bbox_mode is {annotation.get('bbox_mode')!r}; legal: BoxMode.XYXY_ABS and BoxMode.XYWH_ABS. "
                "Correct the function that makes the records of this dataset."
            )
        fault = annotation_fault(annotation, size, num_classes, class_names, tasks)
        if fault is not None:
            problem = _problem(record, *fault, annotation=annotation_name(index, annotation, record))
            if fault[0] in WARNINGS:
                report.warnings.append(problem)
            else:
                bad[index] = problem
    return bad


def annotation_name(index: int, annotation: dict, record: dict) -> str:
    """How messages name an annotation: its index, and its line or its id."""
    if "line" in annotation:
        return f"{index} (line {annotation['line']} of {record.get('label_file')})"
    return f"{index} (id {annotation['id']})" if "id" in annotation else str(index)


def _raise_if_refused(report, on_bad_annotation, on_bad_image, tasks):
    refused, remedies = [], []
    if on_bad_image == "error":
        refused += [p for p in report.problems if p.annotation is None]
        if refused:
            remedies.append(f"{IMAGE_KEY} drop leaves these images out")
    if on_bad_annotation == "error":
        bad = [p for p in report.problems if p.annotation is not None]
        if bad:
            refused += bad
            remedies.append(_drop_remedy({p.kind for p in bad}, tasks))
        if any(p.kind == OUTSIDE for p in bad):
            remedies.append(f"{ANNOTATION_KEY} clip cuts boxes at the border of the image")
    if not refused:
        return
    counts = Counter(p.kind for p in refused).most_common()
    lines = [f"Dataset {report.dataset_name!r} has {len(refused)} problems in {report.num_images} images:"]
    if report.annotation_file:
        lines.append(f"  (annotation file {report.annotation_file})")
    lines += [f"  {count} x {kind}" for kind, count in counts]
    lines += [f"The first {min(_SHOWN, len(refused))}:"] + [f"  {p}" for p in refused[:_SHOWN]]
    raise ValueError("\n".join(lines + ["Correct the data, or set a policy: " + "; ".join(remedies) + "."]))


def _drop_remedy(kinds, tasks):
    """What the policy `drop` does about these kinds of annotations."""
    text = f"{ANNOTATION_KEY} drop leaves these annotations out"
    if POLYGON in kinds:
        text += ", keeps " + ("the other polygons of the object" if tasks.masks else "the box of a malformed polygon")
    if CROWD_FLAG in kinds:
        text += ", reads iscrowd null, '0' and '1' as numbers"
    if IDENTITY in kinds:
        text += ", keeps an object with a faulty identity and takes its identity as unknown"
    if kinds & set(KEYPOINT_FAULTS):
        text += ", keeps the box of faulty keypoints and marks these as not labelled"
    return text


def _repaired(record, bad, size, num_classes, clip, tasks, report):
    """A copy of the record with its bad annotations removed or replaced by repaired copies."""
    kept = []
    for index, annotation in enumerate(record["annotations"]):
        if index not in bad:
            kept.append(annotation)
            continue
        new = repaired_annotation(annotation, size, num_classes, clip, tasks)
        report.changes.append((record.get("image_id"), annotation, new))
        if new is None:
            report.dropped_annotations += 1
            continue
        kept.append(new)
        if new["bbox"] != annotation["bbox"]:
            report.clipped_annotations += 1
        else:
            report.repaired_annotations += 1
    return {**record, "annotations": kept}


def _log(report, summary):
    if report.warnings:
        logger.warning(
            "Dataset %r: %d annotations are kept as they are, although they look wrong. The first %d:\n%s",
            report.dataset_name, len(report.warnings), min(_SHOWN, len(report.warnings)),
            "\n".join(f"  {problem}" for problem in report.warnings[:_SHOWN]),
        )  # fmt: skip
    if not report.problems:
        logger.info(
            "Dataset %r: %d images (%s) with %d annotations checked, no problems.%s",
            report.dataset_name, report.num_images, _HOW_READ[report.check_images], report.num_annotations, summary,
        )  # fmt: skip
        return
    counts = ", ".join(f"{count} x {kind}" for kind, count in report.counts().items())
    lines = "\n".join(f"  {problem}" for problem in report.problems)
    logger.warning(
        "Dataset %r: %s. Dropped %d of %d images; of %d annotations dropped %d and clipped %d, otherwise repaired %d."
        "%s\n%s",
        report.dataset_name, counts, report.dropped_images, report.num_images, report.num_annotations,
        report.dropped_annotations, report.clipped_annotations, report.repaired_annotations, summary, lines,
    )  # fmt: skip
