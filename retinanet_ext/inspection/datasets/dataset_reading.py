"""Reads a dataset of a config as training does, but past every fault: what cannot be read becomes a finding."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from retinanet_ext.d2 import DatasetCatalog, MetadataCatalog
from retinanet_ext.data.coco_records import coco_records
from retinanet_ext.data.parts import records_of_part
from retinanet_ext.data.record_list import as_record_list
from retinanet_ext.data.registered_coco import is_registered_coco
from retinanet_ext.data.registration import check_is_registered, custom_format, load_metadata
from retinanet_ext.data.voc import ANNOTATIONS, IMAGES, load_voc, voc_class_names

from .coco_structure import UNREADABLE, CocoStructure, read_structure
from .findings import ERROR, WARNING, Finding

NOT_READ = "dataset that cannot be read"
NO_IMAGES = "identity without images"
STRAY_LABELS = "label file without an image"
_UNUSED_TEXTS = ("classes.txt", "readme.txt", "labels.txt", "notes.txt")

logger = logging.getLogger(__name__)


@dataclass
class ReadDataset:
    """A dataset as far as it can be read.

    ``format``: coco, voc, yolo, identities, or "" for records that code gives. ``item``: of DATASETS.CUSTOM.
    ``structure``: of a COCO file. ``identity_names``: by their number in the records.
    """

    name: str
    format: str
    item: dict | None
    records: list[dict] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)
    identity_names: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    structure: CocoStructure | None = None
    json_file: str | None = None
    image_root: str | None = None


def read_dataset(name: str) -> ReadDataset:
    """Read a registered dataset; nothing is raised for faults of the data."""
    item = MetadataCatalog.get(name).get("custom_source", None) if name in DatasetCatalog.list() else None
    dataset = ReadDataset(name, custom_format(name) or "" if item else "", item)
    try:
        check_is_registered(name)
        if not item and is_registered_coco(name):
            dataset.format = "coco"
        _READ[dataset.format](dataset)
        if not dataset.records and not dataset.findings:
            raise ValueError("it has no images; check its paths and its split")
    except Exception as error:  # readers of damaged files raise errors of nearly any kind
        logger.debug("dataset %s", name, exc_info=True)
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        _report(dataset, NOT_READ, dataset.json_file, text or type(error).__name__, "correct the data or the config")
    return dataset


def _report(dataset, kind, file_name, found, legal, severity=ERROR):
    dataset.findings.append(Finding(kind, severity, dataset.name, file_name, None, None, found, legal))


def _read_coco(dataset: ReadDataset) -> None:
    item, metadata = dataset.item, MetadataCatalog.get(dataset.name)
    dataset.json_file = _existing(item, "JSON") if item else metadata.json_file
    dataset.image_root = _existing(item, "IMAGES") if item else metadata.image_root
    structure = dataset.structure = read_structure(dataset.json_file, dataset.name, dataset.image_root)
    dataset.findings += structure.findings
    categories = {c["id"]: c["name"] for c in sorted(structure.content["categories"], key=lambda c: str(c["id"]))}
    if all(isinstance(key, int) for key in categories):
        categories = dict(sorted(categories.items()))
    given = item.get("CLASSES") if item else metadata.get("thing_classes", None)
    dataset.class_names = list(given or categories.values())
    if given:
        contiguous = {key: given.index(name) for key, name in categories.items() if name in given}
    else:
        contiguous = {key: index for index, key in enumerate(categories)}
    # The reader needs a size; whether there is none is said already, and the file's own is taken.
    sizeless = {image["id"] for image in structure.content["images"] if "width" not in image}
    images = [{"width": 0, "height": 0, **image} for image in structure.content["images"]]
    dataset.records = coco_records({**structure.content, "images": images}, dataset.image_root, contiguous, categories)
    for record in dataset.records:
        if record["image_id"] in sizeless:
            del record["width"], record["height"]
    if item and "PART" in item:
        names = {image["id"]: image["file_name"] for image in images}
        dataset.records = records_of_part(
            dataset.records, [names[r["image_id"]] for r in dataset.records], item["PART"], dataset.name
        )


def _read_voc(dataset: ReadDataset) -> None:
    item = dataset.item
    root, folder = _existing(item, "ROOT"), item.get("ANNOTATIONS", ANNOTATIONS)
    errors: dict[str, str] = {}

    def keep(stem: str, error: Exception) -> None:
        errors[os.path.join(root, folder, f"{stem}.xml")] = str(error) or type(error).__name__

    # The errors of the files come again with the records.
    names = item.get("CLASSES") or voc_class_names(root, folder, on_error=lambda stem, error: None)
    dataset.class_names = list(names)
    dataset.records = load_voc(
        root, item.get("SPLIT"), names, annotations=folder, images=item.get("IMAGES", IMAGES), on_error=keep
    )
    for path, text in errors.items():
        _report(dataset, UNREADABLE, path, text, "a Pascal VOC annotation")
    if "PART" in item:
        ids = [record["image_id"] for record in dataset.records]
        dataset.records = records_of_part(dataset.records, ids, item["PART"], dataset.name)


def _read_yolo(dataset: ReadDataset) -> None:
    dataset.records = DatasetCatalog.get(dataset.name)
    dataset.class_names = list(MetadataCatalog.get(dataset.name).thing_classes)
    if {"SPLIT", "PART"} & dataset.item.keys():
        return
    known = {record["label_file"] for record in dataset.records}
    for folder in sorted({os.path.dirname(path) for path in known}):
        for file in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            path = os.path.join(folder, file)
            if file.endswith(".txt") and file.lower() not in _UNUSED_TEXTS and path not in known:
                _report(dataset, STRAY_LABELS, path, "labels that belong to no image", "add the image", WARNING)


def _read_identities(dataset: ReadDataset) -> None:
    dataset.records = DatasetCatalog.get(dataset.name)
    dataset.identity_names = list(MetadataCatalog.get(dataset.name).identity_names)
    root = dataset.image_root = _existing(dataset.item, "ROOT")
    if "IDENTITIES" in dataset.item:
        return
    for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
        if entry.is_dir() and not entry.name.startswith(".") and not any(os.scandir(entry.path)):
            _report(dataset, NO_IMAGES, entry.path, "an empty folder", "images, or no folder", WARNING)


def _read_records(dataset: ReadDataset) -> None:
    """Records that a function gives; those without a file name are left out."""
    records = as_record_list(DatasetCatalog.get(dataset.name), dataset.name)
    metadata = MetadataCatalog.get(dataset.name)
    dataset.class_names = list(metadata.get("thing_classes", None) or [])
    dataset.identity_names = list(metadata.get("identity_names", None) or [])
    dataset.image_root = metadata.get("image_root", None)
    for index, record in enumerate(records):
        if isinstance(record, dict) and isinstance(record.get("file_name"), (str, os.PathLike)):
            dataset.records.append({**record, "file_name": os.fspath(record["file_name"])})
        else:
            _report(dataset, "record without a file name", None, f"record {index}: {record!r:.80}", "its file_name")


_READ: dict[str, Callable[[ReadDataset], None]] = {
    "coco": _read_coco, "voc": _read_voc, "yolo": _read_yolo, "identities": _read_identities, "": _read_records,
}  # fmt: skip


def _existing(item: dict, key: str) -> str:
    """The path of an item of DATASETS.CUSTOM that exists. Without one, the package's own reader says what it tried."""
    found = next((path for path in item[key] if os.path.exists(path)), None)
    if found is None:
        load_metadata(item["NAME"])
        raise FileNotFoundError(f"Dataset {item['NAME']!r}: {key} not found: {', '.join(item[key])}")
    return found
