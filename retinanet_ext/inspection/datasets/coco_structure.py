"""Reads a COCO annotation file that may be faulty in any way: each fault is a finding, and the rest is kept."""

import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from retinanet_ext.data.coco_file import SECTIONS, parse_coco_file

from .findings import ERROR, WARNING, Finding

UNREADABLE = "annotation file that cannot be read"
MALFORMED = "malformed entry of the annotation file"
DUPLICATE_IMAGE, DUPLICATE_ANNOTATION = "duplicate image id", "duplicate annotation id"
DUPLICATE_CATEGORY, DUPLICATE_NAME = "duplicate category id", "duplicate category name"
EMPTY_NAME = "empty category name"
STRAY = "annotation of an unknown image"
BAD_SIZE = "image size is not two positive integers"


@dataclass
class CocoStructure:
    """The entries of a file that records can be made of, and the findings about the others.

    ``content``: images, annotations and categories with the keys of :data:`SECTIONS`. Of entries with the same id, all
    annotations are kept, and the first of the images and of the categories. An image of a size that is not legal is
    kept without width and height. ``removed`` names what was left out: (section, name, kind).
    """

    content: dict[str, Any]
    findings: list[Finding] = field(default_factory=list)
    removed: list[tuple[str, str, str]] = field(default_factory=list)


def read_structure(json_file: str, dataset: str, image_root: str) -> CocoStructure:
    """Read a file. One that cannot be read has a finding, and no entries.

    Args:
        json_file: path of the file.
        dataset: name, for the findings.
        image_root: folder of the images, for the findings.
    """
    try:
        content = parse_coco_file(json_file, ["images"])
    except (ValueError, OSError, RecursionError, MemoryError) as error:
        structure = CocoStructure({section: [] for section in SECTIONS})
        found = str(error) or type(error).__name__
        structure.findings.append(_finding(dataset, json_file, UNREADABLE, None, None, found, "write it again"))
        return structure
    reader = _Reader(json_file, dataset, image_root, CocoStructure({**content}))
    for section in SECTIONS:
        reader.keep_well_formed(section)
    reader.check_categories()
    reader.check_images()
    reader.check_annotations()
    return reader.structure


class _Reader:
    def __init__(self, json_file: str, dataset: str, image_root: str, structure: CocoStructure) -> None:
        self.json_file, self.dataset, self.image_root, self.structure = json_file, dataset, image_root, structure
        self.content = structure.content

    def report(self, kind, found, legal, *, image=None, annotation=None, severity=ERROR):
        image_id, file_name = (image.get("id"), image.get("file_name")) if image else (None, None)
        is_text = isinstance(file_name, str)
        file_name = os.path.join(self.image_root, file_name) if is_text else self.json_file
        self.structure.findings.append(
            _finding(self.dataset, file_name, kind, image_id, annotation, found, legal, severity)
        )

    def keep_well_formed(self, section):
        entries = self.content.get(section, [])
        if not isinstance(entries, list):
            self.report(MALFORMED, f"{section} of type {type(entries).__name__}", f"{section} must be a list")
            entries = []
        texts = Counter(isinstance(e.get("id"), str) for e in entries if isinstance(e, dict) and "id" in e)
        id_type = str if texts[True] > texts[False] else (int, float)
        kept = self._kept(section, entries, lambda index, entry: self._fault_of_entry(section, entry, id_type))
        self.content[section] = kept

    def _fault_of_entry(self, section, entry, id_type):
        """(kind, found, legal) of what makes an entry useless."""
        keys = SECTIONS[section] if section != "images" else ("id", "file_name")
        if not isinstance(entry, dict):
            return MALFORMED, f"{entry!r:.80}", "a mapping"
        missing = [key for key in keys if key not in entry]
        if missing:
            return MALFORMED, f"no {', '.join(missing)}", f"each of {section} needs {', '.join(keys)}"
        for key in ("id", "image_id", "category_id"):
            if key in keys and not _is_id(entry[key], id_type if key == "id" else (int, float, str)):
                kind = "a text" if id_type is str else "a number"
                legal = f"{kind}, like the other ids of {section}" if key == "id" else "a number or a text"
                return MALFORMED, f"{key} {entry[key]!r:.80}", legal
        if section == "images" and not (isinstance(entry["file_name"], str) and entry["file_name"].isprintable()):
            return MALFORMED, f"file_name {entry['file_name']!r:.80}", "the path of a file in the image folder"
        if section == "images" and not entry["file_name"]:
            return MALFORMED, "an empty file_name", "the path of a file in the image folder"
        if section == "categories" and not _is_id(entry["name"], (int, float, str)):
            return MALFORMED, f"name {entry['name']!r:.80}", "a text"
        return None

    def check_categories(self):
        ids, names = set(), {}

        def fault(index, category):
            if category["id"] in ids:
                return DUPLICATE_CATEGORY, f"category id {category['id']}", "a unique id"
            ids.add(category["id"])
            return None

        self.content["categories"] = self._kept("categories", self.content["categories"], fault)
        for category in self.content["categories"]:
            category["name"] = name = str(category["name"])
            if not name.strip():
                found = f"name {name!r} of category id {category['id']}"
                self.report(EMPTY_NAME, found, "a name for each class", severity=WARNING)
            elif name in names:
                found = f"{name!r} is the name of the category ids {names[name]} and {category['id']}"
                self.report(DUPLICATE_NAME, found, "a name for each class, once")
            names.setdefault(name, category["id"])

    def check_images(self):
        ids = {}

        def fault(index, image):
            if image["id"] in ids:
                return DUPLICATE_IMAGE, f"image id {image['id']}", f"a unique id; {ids[image['id']]} has the same"
            ids[image["id"]] = image["file_name"]
            return None

        images = self._kept("images", [dict(image) for image in self.content["images"]], fault)
        for image in images:
            size = [image.get("width"), image.get("height")]
            if not all(type(v) is int and 0 < v < 2**31 for v in size):
                self.report(BAD_SIZE, f"width {size[0]!r:.40}, height {size[1]!r:.40}", "pixels", image=image)
                image.pop("width", None), image.pop("height", None)
        self.content["images"] = images

    def check_annotations(self):
        images = {image["id"] for image in self.content["images"]}
        lost = {name for section, name, _ in self.structure.removed if section == "images"}
        seen: set = set()
        # The published 2014 minival files repeat annotation ids, and are accepted.
        repeats = "minival" in os.path.basename(self.json_file)

        def fault(index, annotation):
            image_id = annotation["image_id"]
            if image_id not in images and _name("images", None, {"id": image_id}) not in lost:
                return STRAY, f"image_id {image_id!r}", "the id of an image of the file"
            if annotation["id"] in seen and not repeats:
                name = _name("annotations", index, annotation)
                found = f"annotation id {annotation['id']}"
                self.report(DUPLICATE_ANNOTATION, found, "a unique id", annotation=name)
            seen.add(annotation["id"])
            return None

        kept = self._kept("annotations", self.content["annotations"], fault)
        self.content["annotations"] = [a for a in kept if a["image_id"] in images]

    def _kept(self, section: str, entries: list, fault: Callable[[int, Any], tuple[str, str, str] | None]) -> list:
        kept = []
        for index, entry in enumerate(entries):
            found = fault(index, entry)
            if found is None:
                kept.append(entry)
                continue
            name = _name(section, index, entry)
            is_image = section == "images" and isinstance(entry, dict)
            annotation = None if is_image and "file_name" in entry else name
            self.report(*found, image=entry if is_image else None, annotation=annotation)
            self.structure.removed.append((section, name, found[0]))
        return kept


def _is_id(value, types):
    is_infinite = isinstance(value, float) and not math.isfinite(value)
    return isinstance(value, types) and not isinstance(value, bool) and not is_infinite


def _name(section, index, entry):
    if isinstance(entry, dict) and isinstance(entry.get("id"), (int, float, str)):
        return f"id {entry['id']} of {section}"
    return f"{section}[{index}]"


def _finding(dataset, file_name, kind, image_id, annotation, found, legal, severity=ERROR):
    return Finding(kind, severity, dataset, file_name, image_id, annotation, found, legal)
