"""The section of a run's report on its data: images, objects by class and size, what the policies left out."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from retinanet_ext.d2 import BoxMode, DatasetCatalog, MetadataCatalog
from retinanet_ext.data.coco_file import read_coco_file
from retinanet_ext.evaluation.evaluated_dataset import EvaluatedDataset
from retinanet_ext.report.document import Block, Bullets, Details, Heading, Paragraph, Table
from retinanet_ext.report.formats import NOTHING

from .run_folder import RunFolder
from .run_ground_truth import registered_files, registered_source

_MAX_BYTES = 200 * 2**20  # of an annotation file that is read for its counts
_MAX_FILES = 30_000  # of a folder whose annotations are read for their counts
_SHOWN_CLASSES = 12
_SMALL, _LARGE = 32**2, 96**2  # pixels, as COCO's metrics have them


@dataclass(frozen=True)
class DatasetCounts:
    """
    Attributes:
        objects: class name -> number, crowds not counted.
        sizes: ``s``, ``m``, ``l`` -> number of objects.
    """

    name: str
    role: str
    images: int
    empty: int
    crowds: int
    objects: Counter = field(default_factory=Counter)
    sizes: Counter = field(default_factory=Counter)


def data_section(run: RunFolder, datasets: Sequence[EvaluatedDataset]) -> list[Block]:
    """`datasets`: those that were evaluated."""
    counts = [count_objects(data.truth.coco, data.name, "evaluation") for data in datasets]
    notes: list[str] = []
    for name in (run.config or {}).get("DATASETS.TRAIN") or ():
        found = _training_counts(run, str(name), notes)
        counts = [found, *counts] if found is not None else counts
    left_out = [(name, entries["data"]) for name, entries in run.results.items() if entries.get("data")]
    if not counts and not left_out and not notes:
        return []
    blocks: list[Block] = [Heading("Data")]
    if counts:
        blocks += _tables(counts)
    if left_out:
        header = ("evaluated dataset", "images", "images left out", "annotations left out")
        keys = ("images", "images_left_out", "annotations_left_out")
        rows = [(name, *(_count(entry.get(key)) for key in keys)) for name, entry in left_out]
        blocks += [Paragraph("Left out by DATASETS.ON_BAD_IMAGE and ON_BAD_ANNOTATION:"), Table(header, rows)]
    return [*blocks, *([Bullets(notes)] if notes else [])]


def count_objects(coco: dict[str, Any], name: str, role: str) -> DatasetCounts:
    """Count the content of a COCO file; annotations of unknown categories count as class "?"."""
    names = {category["id"]: str(category["name"]) for category in coco.get("categories", [])}
    objects = Counter(dict.fromkeys(names.values(), 0))
    sizes, crowds, with_objects = Counter(), 0, set()
    for annotation in coco.get("annotations", []):
        if annotation.get("iscrowd", 0):
            crowds += 1
            continue
        with_objects.add(annotation["image_id"])
        objects[names.get(annotation.get("category_id"), "?")] += 1
        area = annotation.get("area")
        if not isinstance(area, (int, float)):
            box = annotation.get("bbox") or (0, 0, 0, 0)
            area = box[2] * box[3]
        sizes["s" if area < _SMALL else "m" if area < _LARGE else "l"] += 1
    images = {image["id"] for image in coco["images"]}
    return DatasetCounts(name, role, len(images), len(images - with_objects), crowds, objects, sizes)


def _training_counts(run: RunFolder, name: str, notes: list[str]) -> DatasetCounts | None:
    try:
        source = registered_source(run, name)
        if source is not None and (source["FORMAT"] not in ("coco", "voc", "yolo") or _is_large(source)):
            reason = "it is large" if source["FORMAT"] != "identities" else "it has identities, and no boxes"
            notes.append(f"{name} is not counted here, because {reason}; “retinanet-ext doctor data” describes it.")
            return None
        if source is not None and (source["FORMAT"] != "coco" or "PART" in source or "CLASSES" in source):
            return count_records(DatasetCatalog.get(name), MetadataCatalog.get(name).thing_classes, name)
        file, _ = registered_files(run, name)
        if os.path.getsize(file) > _MAX_BYTES:
            notes.append(f"{name} is not counted here, because {Path(file).name} is large.")
            return None
        return count_objects(read_coco_file(file, ["images", "categories", "annotations"]), name, "training")
    except Exception as error:  # any type: data that are gone, or of another kind, must not cost the page
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        notes.append(f"{name} is not counted: {text}")
        return None


def _is_large(source: dict[str, Any]) -> bool:
    """Whether reading the annotations would take long. Paths are tuples of those that are tried."""
    key = "JSON" if source["FORMAT"] == "coco" else "ROOT"
    path = next((Path(path) for path in source[key] if os.path.exists(path)), None)
    if path is None:  # reading it will say so
        return False
    if path.is_file():
        return path.stat().st_size > _MAX_BYTES
    return sum(1 for _ in islice(path.rglob("*"), _MAX_FILES + 1)) > _MAX_FILES


def count_records(records: Sequence[dict], class_names: Sequence[str], name: str) -> DatasetCounts:
    """Count Detectron2's dataset dicts of training data; the area of an object is that of its box."""
    annotations = [
        {"image_id": index, "category_id": a["category_id"], "iscrowd": a.get("iscrowd", 0), "bbox": _xywh(a)}
        for index, record in enumerate(records)
        for a in record.get("annotations", ())
    ]
    categories = [{"id": index, "name": class_name} for index, class_name in enumerate(class_names)]
    images = [{"id": index} for index in range(len(records))]
    return count_objects({"images": images, "categories": categories, "annotations": annotations}, name, "training")


def _xywh(annotation: dict) -> list[float]:
    return BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYWH_ABS)


def _tables(counts: Sequence[DatasetCounts]) -> list[Block]:
    header = ("dataset", "used for", "images", "without objects", "objects", "small", "medium", "large", "crowds")
    rows = [
        (
            c.name,
            c.role,
            *map(_count, (c.images, c.empty, sum(c.objects.values()), *(c.sizes[s] for s in "sml"), c.crowds)),
        )
        for c in counts
    ]
    blocks: list[Block] = [
        Table(header, rows, numbers=range(2, 9)),
        Paragraph(
            "Small: area below 32² pixels of the image as it is stored; medium: to 96²; large: above. Crowds are not "
            "among the objects."
        ),
    ]
    names = list(dict.fromkeys(name for c in counts for name in c.objects))
    rows = [(name, *(_count(c.objects.get(name)) for c in counts)) for name in names]
    table = Table(("class", *(f"objects in {c.name}" for c in counts)), rows)
    return [*blocks, table if len(rows) <= _SHOWN_CLASSES else Details(f"Objects of all {len(rows)} classes", [table])]


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else NOTHING
