"""Writes a repaired copy of the datasets of a config, in their own formats. The originals are only read.

In the folder: one folder for each dataset, ``changes.json`` with every change, and ``repaired.yaml``, a config that
trains on the copies.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import yaml

from retinanet_ext.config.yaml_files import find_config
from retinanet_ext.d2 import CfgNode, MetadataCatalog
from retinanet_ext.data.doctor.image_probe import outside_error
from retinanet_ext.data.evaluation_file import repaired_entry
from retinanet_ext.data.keypoint_metadata import KEYPOINT_KEYS
from retinanet_ext.data.voc import ANNOTATIONS, IMAGES
from retinanet_ext.machine.atomic_file import write_atomically

from .coco_structure import BAD_SIZE, DUPLICATE_ANNOTATION, DUPLICATE_NAME, EMPTY_NAME
from .data_doctor import dataset_names
from .record_findings import CheckedRecords
from .repair_plan import RecordPlan, plan_record

SUFFIX = "_repaired"
CHANGES_FILE, CONFIG_FILE = "changes.json", "repaired.yaml"
_SPLIT = "repaired"


class Repair:
    """Writes the copies one after the other.

    Args:
        folder: does not exist, or is empty.
        cfg: the config whose datasets are copied; they are registered.
        config_file: the file of the config, which ``repaired.yaml`` takes the rest from.

    Raises:
        ValueError: the folder is not empty, or lies within the data.
    """

    def __init__(self, folder: Path, cfg: CfgNode, config_file: str) -> None:
        self.folder, self.cfg, self.config_file = folder, cfg, config_file
        self.changes: list[dict] = []
        self.items: dict[str, dict] = {}
        self.trained_identities: set[str] = set()
        for name in dataset_names(cfg):
            for original in _original_folders(name):
                if folder.resolve().is_relative_to(Path(original).resolve()):
                    raise ValueError(
                        f"--repair {folder} lies within {original}, the folder of dataset {name!r}. The original is "
                        "never changed; name a folder beside it."
                    )
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"--repair {folder} exists and is not empty; name a new folder.")

    def write(self, checked: CheckedRecords) -> None:
        """Write the copy of one dataset."""
        dataset = checked.dataset
        writer = _WRITERS.get(dataset.format)
        if writer is None or not dataset.records:
            what = "no record could be read" if writer else "it is registered in code, without files of its own"
            self.change(checked, None, None, "dataset not copied", what)
            return
        target = self.folder / _folder_name(dataset.name)
        target.mkdir(parents=True, exist_ok=True)
        plans = [plan_record(checked, index) for index in range(len(dataset.records))]
        for finding in dataset.findings:
            done = _STRUCTURE_REPAIRS.get(finding.kind, "left out")
            self.change(checked, None, finding.annotation, done, f"{finding.kind}: {finding.found}", finding.file_name)
        for index, plan in enumerate(plans):
            for place, what, why in plan.changes:
                self.change(checked, index, None if place is None else str(place), what, why)
        item = writer(self, checked, plans, target)
        self.items[dataset.name] = {"NAME": dataset.name + SUFFIX, "FORMAT": dataset.format, **item}

    def finish(self) -> str:
        """Write the list of changes and the config; return what to say."""
        content = {
            "_BASE_": os.path.abspath(find_config(self.config_file)),
            "DATASETS": {
                "CUSTOM": list(self.items.values()),
                "TRAIN": self._copied(self.cfg.DATASETS.TRAIN),
                "TEST": self._copied(self.cfg.DATASETS.TEST),
            },
        }
        write_atomically(self.folder / CONFIG_FILE, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        write_atomically(self.folder / CHANGES_FILE, json.dumps(self.changes, indent=1))
        return (
            f"Repaired copy: {self.folder}, with {len(self.changes):,} changes, which {CHANGES_FILE} lists. Use it "
            f"with --config-file {self.folder / CONFIG_FILE}"
        )

    def _copied(self, names):
        return [self.items[name]["NAME"] for name in names if name in self.items]

    def change(self, checked, index, annotation, what, why, file_name=None):
        record = checked.dataset.records[index] if index is not None else {}
        image_id = record.get("image_id")
        self.changes.append({
            "dataset": checked.dataset.name, "file_name": record.get("file_name", file_name),
            "image_id": image_id if isinstance(image_id, (int, str, type(None))) else str(image_id),
            "annotation": annotation, "change": what, "because": why,
        })  # fmt: skip


_STRUCTURE_REPAIRS = {
    DUPLICATE_ANNOTATION: "annotation gets a new id", DUPLICATE_NAME: "categories put together",
    EMPTY_NAME: "category gets a name, or is left out if nothing uses it", BAD_SIZE: "size taken from the image",
}  # fmt: skip


def _write_coco(repair: Repair, checked: CheckedRecords, plans: list[RecordPlan], target: Path) -> dict:
    dataset, content = checked.dataset, checked.dataset.structure.content
    used = {annotation["category_id"] for annotation in content["annotations"]}
    categories, renamed = _categories(content["categories"], used)
    entries: dict = {}
    for entry in content["annotations"]:
        entries.setdefault(entry["image_id"], []).append(entry)
    of_id = {image["id"]: image for image in content["images"]}
    images, annotations, used = [], [], set()
    free = 1 + max([a["id"] for a in content["annotations"] if isinstance(a["id"], int)], default=0)
    for record, plan in zip(dataset.records, plans, strict=True):
        if plan.left_out is not None:
            continue
        image = dict(of_id[record["image_id"]])
        if plan.size is not None:
            image["width"], image["height"] = plan.size
        images.append(image)
        if outside_error(str(target / "images" / image["file_name"]), str(target / "images")):
            # Files that the data may name outside of their folder are copied into the new one.
            image["file_name"] = f"outside/{image['id']}_{os.path.basename(image['file_name'])}"
        _copy(record["file_name"], target / "images" / image["file_name"])
        for entry, new in zip(entries.get(image["id"], ()), plan.annotations, strict=True):
            entry = repaired_entry(entry, new)
            if entry is None:
                continue
            entry = {**entry, "category_id": renamed.get(entry["category_id"], entry["category_id"])}
            if "identity" in entry and "identity" not in new:
                del entry["identity"]
            if entry["id"] in used:
                entry["id"], free = free, free + 1
            used.add(entry["id"])
            annotations.append(entry)
    content = {**content, "images": images, "annotations": annotations, "categories": categories}
    write_atomically(target / "annotations.json", json.dumps(content))
    kept = {key: value for key, value in (dataset.item or {}).items() if key in ("CLASSES", *KEYPOINT_KEYS)}
    paths = {"JSON": target / "annotations.json", "IMAGES": target / "images"}
    return {**{key: str(path.absolute()) for key, path in paths.items()}, **_plain(kept)}


def _categories(categories: list[dict], used: set) -> tuple[list[dict], dict]:
    """The categories with a name each, once, and {category id: the id that replaces it}. Those without a name that no
    annotation uses are left out."""
    first, kept, renamed = {}, [], {}
    for category in categories:
        if not category["name"].strip() and category["id"] not in used:
            continue
        name = category["name"] if category["name"].strip() else f"class_{category['id']}"
        if name in first:
            renamed[category["id"]] = first[name]
        else:
            first[name] = category["id"]
            kept.append({**category, "name": name})
    return kept, renamed


def _write_voc(repair: Repair, checked: CheckedRecords, plans: list[RecordPlan], target: Path) -> dict:
    item, stems = checked.dataset.item, []
    root = next(path for path in item["ROOT"] if os.path.exists(path))
    for record, plan in zip(checked.dataset.records, plans, strict=True):
        if plan.left_out is not None or record["image_id"] in stems:
            continue
        stems.append(record["image_id"])
        file = f"{record['image_id']}.xml"
        tree = ElementTree.parse(Path(root) / item.get("ANNOTATIONS", ANNOTATIONS) / file)
        _change_voc(tree.getroot(), plan)
        path = target / ANNOTATIONS / file
        path.parent.mkdir(parents=True, exist_ok=True)
        tree.write(path, encoding="utf-8")
        _copy(record["file_name"], target / IMAGES / os.path.basename(record["file_name"]))
    write_atomically(target / "ImageSets" / "Main" / f"{_SPLIT}.txt", "".join(f"{stem}\n" for stem in stems))
    return {"ROOT": str(target.absolute()), "SPLIT": _SPLIT, "CLASSES": checked.dataset.class_names}


def _change_voc(root, plan):
    if plan.size is not None:
        for key, value in zip(("width", "height"), plan.size):
            root.find("size").find(key).text = str(value)
    parents = {child: parent for parent in root.iter() for child in parent}
    changed = {place for place, _, _ in plan.changes} | ({*range(len(plan.annotations))} if plan.size else set())
    for place, (entry, new) in enumerate(zip(list(root.iter("object")), plan.annotations, strict=True)):
        if new is None:
            parents[entry].remove(entry)
        elif place in changed:
            x0, y0, x1, y1 = new["bbox"]
            for key, value in zip(("xmin", "ymin", "xmax", "ymax"), (x0 + 1, y0 + 1, x1, y1)):
                entry.find("bndbox").find(key).text = f"{value:g}"


def _write_yolo(repair: Repair, checked: CheckedRecords, plans: list[RecordPlan], target: Path) -> dict:
    for record, plan in zip(checked.dataset.records, plans, strict=True):
        if plan.left_out is not None:
            continue
        name = record["image_id"].lstrip("/").replace("..", "_")
        _copy(record["file_name"], target / "images" / name)
        label_file = (target / "labels" / name).with_suffix(".txt")
        lines = Path(record["label_file"])
        lines = lines.read_text(encoding="utf-8", errors="replace").splitlines() if lines.is_file() else []
        write_atomically(label_file, "".join(f"{line}\n" for line in _yolo_lines(record, plan, lines)))
    names = checked.dataset.class_names
    return {"ROOT": str(target.absolute()), "IMAGES": "images", "LABELS": "labels", "CLASSES": names}


def _yolo_lines(record, plan, lines):
    for annotation, new in zip(record["annotations"], plan.annotations, strict=True):
        if new is None:
            continue
        if new == annotation:
            yield lines[annotation["line"] - 1]
            continue
        width, height = record["width"], record["height"]
        x0, y0, x1, y1 = (value / side for value, side in zip(new["bbox"], (width, height) * 2))
        yield f"{new['category_id']} {(x0 + x1) / 2:.9g} {(y0 + y1) / 2:.9g} {x1 - x0:.9g} {y1 - y0:.9g}"


def _write_identities(repair: Repair, checked: CheckedRecords, plans: list[RecordPlan], target: Path) -> dict:
    dataset = checked.dataset
    refused = repair.trained_identities if checked.tested and not repair.cfg.DATASETS.ALLOW_SHARED_IDENTITIES else set()
    for index, (record, plan) in enumerate(zip(dataset.records, plans, strict=True)):
        identity = dataset.identity_names[record["identity"]]
        if identity in refused:
            why = f"identity {identity!r} is in the training data"
            repair.change(checked, index, None, "image left out", why)
        elif plan.left_out is None:
            _copy(record["file_name"], target / identity / os.path.basename(record["file_name"]))
    if not checked.tested:
        repair.trained_identities |= set(dataset.identity_names)
    pairs = dataset.item.get("PAIRS")
    return {"ROOT": str(target.absolute()), **_plain({"PAIRS": pairs} if isinstance(pairs, dict) else {})}


_WRITERS: dict[str, Callable[[Repair, CheckedRecords, list[RecordPlan], Path], dict]] = {
    "coco": _write_coco, "voc": _write_voc, "yolo": _write_yolo, "identities": _write_identities,
}  # fmt: skip


def _original_folders(name: str) -> list[str]:
    """Folders that hold the data of a registered dataset."""
    metadata = MetadataCatalog.get(name)
    item = metadata.get("custom_source", None)
    if item is None:
        folders = [metadata.get("image_root", None)]
    else:
        folders = [path for key in ("ROOT", "IMAGES") if isinstance(item.get(key), tuple) for path in item[key]]
    return [folder for folder in folders if folder and os.path.isdir(folder)]


def _folder_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name).strip(".") or "data"


def _copy(source: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _plain(item: dict) -> dict:
    """Tuples as lists, which YAML knows."""
    return json.loads(json.dumps(item))
