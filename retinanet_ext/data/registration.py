"""Registration of a user's own data from the config: the list ``DATASETS.CUSTOM``.

Each item is a mapping with upper-case keys::

    DATASETS:
      CUSTOM:
        - {NAME: shapes_train, FORMAT: coco, JSON: shapes/annotations/shapes_train.json, IMAGES: shapes/train}
        - {NAME: cells_train, FORMAT: voc, ROOT: cells, SPLIT: trainval}
        - {NAME: roos_train, FORMAT: voc, ROOT: roos, ANNOTATIONS: annots, IMAGES: images, PART: [0, 0.8]}
        - {NAME: roos_val, FORMAT: voc, ROOT: roos, ANNOTATIONS: annots, IMAGES: images, PART: [0.8, 1]}
        - {NAME: cars_train, FORMAT: yolo, ROOT: cars, IMAGES: images/train}
        - {NAME: faces_train, FORMAT: identities, ROOT: faces, PART: [0, 0.75], PART_SEED: 0}

`CLASSES` is an optional list of the names with ids 0, 1, ... Without it, COCO data use the categories of their file,
sorted by id, VOC data the sorted names of all annotation files, and YOLO data the names in ``data.yaml`` or
``classes.txt``. `PART` takes a part of the images, see ``parts.py``; of `identities`, a part of the identities, see
``identity_folders.py``. The keys of keypoints are in ``keypoint_metadata.py``.

A relative path is looked for first in the folder that the environment variable DETECTRON2_DATASETS names, if set, then
in the working directory. A path that starts with ``~`` counts as absolute.

Registration reads no file, so a config can be loaded on a machine without its data. Files are read, and missing files
reported, when the dataset is first used.
"""

import difflib
import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from retinanet_ext.d2 import CfgNode, DatasetCatalog, MetadataCatalog
from retinanet_ext.embedding.pairs import Pairs

from .coco_file import SECTIONS, coco_summary, parse_coco_file, sample
from .coco_records import coco_records
from .identity_folders import (
    IDENTITY_KEYS,
    checked_identity_keys,
    identity_records,
    read_identities,
    read_identity_list,
    verification_pairs,
)
from .keypoint_metadata import KEYPOINT_KEYS, checked_keypoint_keys, keypoint_metadata
from .parts import checked_part, records_of_part
from .voc import ANNOTATIONS, load_voc, voc_class_names
from .voc import IMAGES as VOC_IMAGES
from .yolo import IMAGES as YOLO_IMAGES
from .yolo import load_yolo, yolo_class_names

# Keys that start in the folder DETECTRON2_DATASETS or the working directory. Other paths are relative to ROOT.
PATH_KEYS = {"coco": ("JSON", "IMAGES"), "voc": ("ROOT",), "yolo": ("ROOT",), "identities": ("ROOT",)}
_REQUIRED = {
    "coco": ("NAME", "FORMAT", "JSON", "IMAGES"),
    "voc": ("NAME", "FORMAT", "ROOT"),
    "yolo": ("NAME", "FORMAT", "ROOT"),
    "identities": ("NAME", "FORMAT", "ROOT"),
}
_OPTIONAL = {
    "coco": ("CLASSES", "PART", *KEYPOINT_KEYS),
    "voc": ("SPLIT", "ANNOTATIONS", "IMAGES", "CLASSES", "PART"),
    "yolo": ("SPLIT", "IMAGES", "LABELS", "CLASSES", "PART"),
    "identities": IDENTITY_KEYS,
}
_OF_OTHER_TYPES = ("CLASSES", "PART", *KEYPOINT_KEYS, *IDENTITY_KEYS)  # values that are not strings
logger = logging.getLogger(__name__)


def register_custom_datasets(cfg: CfgNode) -> None:
    """Register every item of ``cfg.DATASETS.CUSTOM`` in DatasetCatalog and MetadataCatalog.

    Registering the same item again does nothing.

    Raises:
        TypeError: an item is not a mapping.
        ValueError: unknown, missing or ill-typed keys, or the name is already registered for different data.
    """
    for index, item in enumerate(cfg.DATASETS.CUSTOM):
        _register(_checked_item(item, f"DATASETS.CUSTOM[{index}]"))


def check_is_registered(name: str) -> None:
    """Raise a ``KeyError`` that names similar datasets, and says what to do, if ``name`` is not registered."""
    registered = DatasetCatalog.list()
    if name in registered:
        return
    near = difflib.get_close_matches(name, registered, n=3)
    hint = f"Did you mean {', '.join(near)}?" if near else f"Registered: {', '.join(registered)}."
    raise KeyError(
        f"Dataset {name!r} is not registered. {hint} Describe your data in DATASETS.CUSTOM and read the config with "
        "retinanet_ext.load_config, which registers them (merge_from_file does not), or register them yourself, in "
        "DatasetCatalog, before."
    )


def category_indices(name: str) -> dict[int, int]:
    """Category id in the annotation files -> class id, for a registered dataset; empty for data without such ids."""
    metadata = MetadataCatalog.get(name)
    item = metadata.get("custom_source", None)
    if item is None:
        return metadata.get("thing_dataset_id_to_contiguous_id", None) or {}
    if item["FORMAT"] == "coco":
        return _indices(_categories(item), item)
    return {index: index for index in range(len(_yolo_names(item)))} if item["FORMAT"] == "yolo" else {}


def custom_format(name: str) -> str | None:
    """FORMAT of a dataset of DATASETS.CUSTOM; None for a dataset that was registered otherwise."""
    item = MetadataCatalog.get(name).get("custom_source", None)
    return item["FORMAT"] if item else None


def annotation_file(name: str) -> str | None:
    """Path of the COCO file that a registered dataset is read from; None if it has no such file on this machine."""
    metadata = MetadataCatalog.get(name)
    item = metadata.get("custom_source", None)
    if item is not None and item["FORMAT"] == "coco":
        return _existing(item["JSON"], item, "JSON")
    path = metadata.get("json_file", None)
    return path if item is None and path and os.path.isfile(path) else None


def load_metadata(name: str) -> None:
    """Set the metadata that a registered dataset has when it is read, above all ``thing_classes``.

    Data of DATASETS.CUSTOM are not read for that, only the files that name their classes.
    """
    item = MetadataCatalog.get(name).get("custom_source", None)
    if item is None:
        DatasetCatalog.get(name)
    else:
        _DESCRIBE[item["FORMAT"]](item)


def _checked_item(item, where):
    """Return the item as a plain dict, with each path replaced by the tuple of absolute paths to try."""
    if not isinstance(item, dict):
        raise TypeError(f"{where} must be a mapping such as {{NAME: ..., FORMAT: voc, ...}}, found {item!r}.")
    item = dict(item)
    kind = item.get("FORMAT")
    if kind not in _REQUIRED:
        raise ValueError(f"{where}: FORMAT is {kind!r}; legal: {', '.join(_REQUIRED)}.{_nearest(kind, _REQUIRED)}")
    legal = _REQUIRED[kind] + _OPTIONAL[kind]
    for key in item:
        if key not in legal:
            raise ValueError(
                f"{where}: unknown key {key!r}; legal for FORMAT {kind}: {', '.join(legal)}.{_nearest(key, legal)}"
            )
    missing = [key for key in _REQUIRED[kind] if key not in item]
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}; FORMAT {kind} needs {', '.join(_REQUIRED[kind])}.")
    for key in (key for key in legal if key in item and key not in _OF_OTHER_TYPES):
        if not isinstance(item[key], str) or not item[key]:
            raise ValueError(f"{where}: {key} must be a non-empty string, found {item[key]!r}.")
    if "CLASSES" in item:
        item["CLASSES"] = _checked_classes(item["CLASSES"], where)
    if "PART" in item:
        item["PART"] = checked_part(item["PART"], where)
    item.update(checked_identity_keys(item, where) if kind == "identities" else checked_keypoint_keys(item, where))
    for key in PATH_KEYS[kind]:
        item[key] = _paths_to_try(item[key])
    for key in ("IDENTITIES", "PAIRS"):  # these may be a path
        if isinstance(item.get(key), str):
            item[key] = _paths_to_try(item[key])
    return item


def _checked_classes(names, where):
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(n, str) and n for n in names):
        raise ValueError(f"{where}: CLASSES must be a list of names (quote numbers, yes and no), found {names!r}.")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"{where}: CLASSES names {', '.join(repeated)} more than once.")
    return list(names)


def _nearest(word, legal):
    upper = {str(name).upper(): name for name in legal}
    match = difflib.get_close_matches(str(word).upper(), upper, n=1)
    return f" Did you mean {upper[match[0]]}?" if match else ""


def _paths_to_try(path):
    """Absolute paths that `path` may stand for, in the order in which they are tried."""
    expanded = Path(path).expanduser()
    folders = [Path.cwd()]
    datasets = os.environ.get("DETECTRON2_DATASETS")
    if datasets and not expanded.is_absolute():
        folders.insert(0, Path(datasets).expanduser().absolute())
    return tuple(str(folder / expanded) for folder in folders)


def _existing(paths, item, key):
    for path in paths:
        if os.path.exists(path):
            return path
    raise FileNotFoundError(
        f"Dataset {item['NAME']!r}: {key} not found. Tried: {', '.join(paths)}. Relative paths start in the folder "
        "named by DETECTRON2_DATASETS, if that is set, or in the working directory."
    )


def _register(item):
    name = item["NAME"]
    metadata = MetadataCatalog.get(name)
    if name in DatasetCatalog.list():
        _check_same(name, metadata.get("custom_source", None), item)
        return
    metadata.set(custom_source=item, evaluator_type="verification" if item["FORMAT"] == "identities" else "coco")
    if "CLASSES" in item:
        metadata.set(thing_classes=item["CLASSES"])
    if "KEYPOINT_NAMES" in item:
        known = keypoint_metadata(item, [])
        if "KEYPOINT_SKELETON" not in item:  # the annotation file may have one
            del known["keypoint_connection_rules"]
        metadata.set(**known)
    DatasetCatalog.register(name, lambda: _LOAD[item["FORMAT"]](item))


def _check_same(name, old, new):
    if old == new:
        return
    if old is None:
        raise ValueError(
            f"DATASETS.CUSTOM: the name {name!r} belongs to a dataset that was registered elsewhere. "
            "Choose another NAME."
        )
    keys = [key for key in (*old, *(k for k in new if k not in old)) if old.get(key) != new.get(key)]
    lines = [f"  {key}: {_show(old.get(key))} -> {_show(new.get(key))}" for key in keys]
    raise ValueError(
        f"Dataset {name!r} is registered already, with different settings (registered -> requested):\n"
        + "\n".join(lines)
        + "\nChoose another NAME."
    )


def _show(value):
    paths = isinstance(value, tuple) and all(isinstance(path, str) for path in value)
    return " or ".join(value) if paths else repr(value)


def _describe_voc(item):
    names = item.get("CLASSES")
    if names is None:
        names = voc_class_names(_existing(item["ROOT"], item, "ROOT"), item.get("ANNOTATIONS", ANNOTATIONS))
    MetadataCatalog.get(item["NAME"]).set(thing_classes=names)
    return names


def _load_voc(item):
    names = _describe_voc(item)
    records = load_voc(
        _existing(item["ROOT"], item, "ROOT"), item.get("SPLIT"), names,
        annotations=item.get("ANNOTATIONS", ANNOTATIONS), images=item.get("IMAGES", VOC_IMAGES),
    )  # fmt: skip
    return _in_part(records, [record["image_id"] for record in records], item)


def _yolo_names(item):
    root = _existing(item["ROOT"], item, "ROOT")
    found, given = yolo_class_names(root, item.get("IMAGES", YOLO_IMAGES), item.get("LABELS")), item.get("CLASSES")
    if found is None and given is None:
        raise ValueError(
            f"Dataset {item['NAME']!r}: no class names. Write them to {root}/data.yaml (names: [...]) or "
            f"{root}/classes.txt (one in each line), or set CLASSES, in the order of the class indices."
        )
    if found and given and found != given:
        raise ValueError(
            f"Dataset {item['NAME']!r}: CLASSES is {given}, but the class names beside the data are {found}. The order "
            "belongs to the label files; leave out CLASSES or correct it."
        )
    return given or found


def _describe_yolo(item):
    names = _yolo_names(item)
    MetadataCatalog.get(item["NAME"]).set(thing_classes=names)
    return names


def _load_yolo(item):
    names = _describe_yolo(item)
    records = load_yolo(
        _existing(item["ROOT"], item, "ROOT"), names, images=item.get("IMAGES", YOLO_IMAGES),
        labels=item.get("LABELS"), split=item.get("SPLIT"),
    )  # fmt: skip
    return _in_part(records, [record["image_id"] for record in records], item)


def _describe_coco(item):
    json_file, images = _existing(item["JSON"], item, "JSON"), _existing(item["IMAGES"], item, "IMAGES")
    categories = _categories(item)
    names = item.get("CLASSES") or list(categories.values())
    contiguous = _indices(categories, item)
    metadata = MetadataCatalog.get(item["NAME"])
    metadata.set(thing_classes=names, image_root=images, **keypoint_metadata(item, _used_categories(item, names)))
    if len(contiguous) == len(categories) == len(names):
        # If the classes differ from the file's, the evaluator must convert the records instead of reading the file.
        metadata.set(thing_dataset_id_to_contiguous_id=contiguous)
        # An evaluator takes all images of a `json_file`, so a part of a file must not have that name.
        metadata.set(**{"part_of_json_file" if "PART" in item else "json_file": json_file})
    return json_file, images, categories, contiguous


def _load_coco(item):
    json_file, images, categories, contiguous = _describe_coco(item)
    # `_categories` has checked the entries.
    content = parse_coco_file(json_file, SECTIONS)
    records = coco_records(content, images, contiguous, categories)
    file_names = {image["id"]: str(image["file_name"]) for image in content["images"]}
    return _in_part(records, [file_names[record["image_id"]] for record in records], item)


def _in_part(records, names, item):
    return records_of_part(records, names, item["PART"], item["NAME"]) if "PART" in item else records


def _describe_identities(item):
    root = _existing(item["ROOT"], item, "ROOT")
    names = item.get("IDENTITIES")
    if isinstance(names, tuple):
        names = read_identity_list(_existing(names, item, "IDENTITIES"))
    images = read_identities(
        root, item["NAME"], identities=names, part=item.get("PART"), part_seed=item.get("PART_SEED"),
        min_images=item.get("MIN_IMAGES", 1),
    )  # fmt: skip
    MetadataCatalog.get(item["NAME"]).set(
        identity_names=list(images), image_root=root, verification_pairs=_PairsOf(item)
    )
    return root, images


@dataclass(frozen=True)
class _PairsOf:
    """The pairs of a dataset; equal for equal items, because Detectron2's metadata keep their values."""

    item: dict

    def __call__(self) -> Pairs:
        pairs, item = self.item.get("PAIRS"), self.item
        source = _existing(pairs, item, "PAIRS") if isinstance(pairs, tuple) else pairs
        root = _existing(item["ROOT"], item, "ROOT")
        return verification_pairs(lambda: _load_identities(item), source, root, item["NAME"])


def _load_identities(item):
    return identity_records(*_describe_identities(item))


_LOAD = {"coco": _load_coco, "voc": _load_voc, "yolo": _load_yolo, "identities": _load_identities}
_DESCRIBE = {
    "coco": _describe_coco, "voc": _describe_voc, "yolo": _describe_yolo, "identities": _describe_identities,
}  # fmt: skip


def _categories(item):
    """{id: name} of the categories in the item's annotation file, sorted by id."""
    return {category["id"]: category["name"] for category in _file_categories(item)}


def _used_categories(item, names):
    return [category for category in _file_categories(item) if category["name"] in names]


def _file_categories(item):
    """The categories of the item's annotation file, sorted by id, after a check of them and of the references."""
    json_file = _existing(item["JSON"], item, "JSON")
    summary = coco_summary(json_file)
    if not summary.categories:
        raise ValueError(f"{json_file}: categories is empty; list the id and the name of each class there.")
    # Some tools write a numeric class name as a number instead of a string.
    categories = [{**category, "name": str(category["name"])} for category in summary.categories]
    if len({category["name"] for category in categories}) != len(categories):
        raise ValueError(f"{json_file}: the names of the categories must be unique, found {summary.categories}.")
    if summary.lost:
        raise ValueError(
            f"{json_file}: {len(summary.lost)} annotations belong to image ids that the file does not list; "
            f"the first annotation ids: {sample(summary.lost)}. Add the images or remove the annotations."
        )
    return categories


def _indices(categories, item):
    names = item.get("CLASSES") or list(categories.values())
    return {key: names.index(name) for key, name in categories.items() if name in names}
