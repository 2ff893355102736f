"""Registration of a user's own data from the config: the list ``DATASETS.CUSTOM``.

Each item is a mapping with upper-case keys::

    DATASETS:
      CUSTOM:
        - {NAME: cells_train, FORMAT: voc, ROOT: cells, SPLIT: trainval}
        - {NAME: shapes_train, FORMAT: coco, JSON: shapes/annotations/shapes_train.json, IMAGES: shapes/train}

`CLASSES` is an optional list of the names with ids 0, 1, ... Without it, COCO data use the categories of their file,
sorted by id, and VOC data the sorted names of all annotation files.

A relative path is looked for first in the folder that the environment variable DETECTRON2_DATASETS names, if set, then
in the working directory. A path that starts with ``~`` counts as absolute.

Registration reads no file, so a config can be loaded on a machine without its data. Files are read, and missing files
reported, when the dataset is first used.
"""

import difflib
import logging
import os
from collections import Counter
from functools import lru_cache
from pathlib import Path

from retinanet_ext.d2 import CfgNode, DatasetCatalog, MetadataCatalog, load_coco_json

from .coco_file import read_coco_file, sample
from .voc import load_voc, voc_class_names

_PATHS = {"voc": ("ROOT",), "coco": ("JSON", "IMAGES")}
_REQUIRED = {"voc": ("NAME", "FORMAT", "ROOT", "SPLIT"), "coco": ("NAME", "FORMAT", "JSON", "IMAGES")}
_OPTIONAL = ("CLASSES",)
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


def category_indices(name: str) -> dict[int, int]:
    """Category id in the annotation file -> class id, for a registered dataset; empty for data without such ids."""
    metadata = MetadataCatalog.get(name)
    item = metadata.get("custom_source", None)
    if item is None:
        return metadata.get("thing_dataset_id_to_contiguous_id", None) or {}
    return _indices(_categories(item), item) if item["FORMAT"] == "coco" else {}


def _checked_item(item, where):
    """Return the item as a plain dict, with each path replaced by the tuple of absolute paths to try."""
    if not isinstance(item, dict):
        raise TypeError(f"{where} must be a mapping such as {{NAME: ..., FORMAT: voc, ...}}, found {item!r}.")
    item = dict(item)
    kind = item.get("FORMAT")
    if kind not in _REQUIRED:
        raise ValueError(f"{where}: FORMAT is {kind!r}; legal: {', '.join(_REQUIRED)}.{_nearest(kind, _REQUIRED)}")
    legal = _REQUIRED[kind] + _OPTIONAL
    for key in item:
        if key not in legal:
            raise ValueError(
                f"{where}: unknown key {key!r}; legal for FORMAT {kind}: {', '.join(legal)}.{_nearest(key, legal)}"
            )
    missing = [key for key in _REQUIRED[kind] if key not in item]
    if missing:
        raise ValueError(f"{where}: missing {', '.join(missing)}; FORMAT {kind} needs {', '.join(_REQUIRED[kind])}.")
    for key in _REQUIRED[kind]:
        if not isinstance(item[key], str) or not item[key]:
            raise ValueError(f"{where}: {key} must be a non-empty string, found {item[key]!r}.")
    if "CLASSES" in item:
        item["CLASSES"] = _checked_classes(item["CLASSES"], where)
    for key in _PATHS[kind]:
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
    metadata.set(custom_source=item, evaluator_type="coco")
    if "CLASSES" in item:
        metadata.set(thing_classes=item["CLASSES"])
    load = {"voc": _load_voc_item, "coco": _load_coco_item}[item["FORMAT"]]
    DatasetCatalog.register(name, lambda: load(item))


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
    return " or ".join(value) if isinstance(value, tuple) else repr(value)


def _load_voc_item(item):
    root = _existing(item["ROOT"], item, "ROOT")
    names = item.get("CLASSES") or voc_class_names(root)
    MetadataCatalog.get(item["NAME"]).set(thing_classes=names)
    return load_voc(root, item["SPLIT"], names)


def _load_coco_item(item):
    json_file = _existing(item["JSON"], item, "JSON")
    images = _existing(item["IMAGES"], item, "IMAGES")
    categories = _categories(item)
    names = item.get("CLASSES") or list(categories.values())
    contiguous = _indices(categories, item)
    metadata = MetadataCatalog.get(item["NAME"])
    metadata.set(thing_classes=names, image_root=images)
    if len(contiguous) == len(categories) == len(names):
        # If the classes differ from the file's, the evaluator must convert the records instead of reading the file.
        metadata.set(json_file=json_file, thing_dataset_id_to_contiguous_id=contiguous)
    # Without a dataset name the reader keeps the category ids, so that the dataset check can report unknown ids.
    records = load_coco_json(json_file, images, extra_annotation_keys=["id"])
    for record in records:
        for annotation in record["annotations"]:
            original = annotation["category_id"]
            annotation["category_id"] = contiguous.get(original, -1)
            annotation["category_name"] = categories.get(original, f"category id {original}")
    return records


def _categories(item):
    """{id: name} of the categories in the item's annotation file, sorted by id."""
    json_file = _existing(item["JSON"], item, "JSON")
    status = os.stat(json_file)
    return _coco_categories(json_file, status.st_mtime_ns, status.st_size)


def _indices(categories, item):
    names = item.get("CLASSES") or list(categories.values())
    return {key: names.index(name) for key, name in categories.items() if name in names}


@lru_cache(maxsize=32)
def _coco_categories(json_file, mtime_ns, size):
    """Check the references in the file and return {id: name}, sorted by id. The result is cached: do not edit it.

    A run asks for the same file several times; `mtime_ns` and `size` are in the cache key to detect a changed file.
    """
    content = read_coco_file(json_file)
    if not content["categories"]:
        raise ValueError(f"{json_file}: categories is empty; list the id and the name of each class there.")
    # Some tools write a numeric class name as a number instead of a string.
    categories = {c["id"]: str(c["name"]) for c in sorted(content["categories"], key=lambda c: c["id"])}
    if len(set(categories.values())) != len(categories):
        raise ValueError(f"{json_file}: the names of the categories must be unique, found {content['categories']}.")
    images = {image["id"] for image in content["images"]}
    lost = [a["id"] for a in content["annotations"] if a["image_id"] not in images]
    if lost:
        raise ValueError(
            f"{json_file}: {len(lost)} annotations belong to image ids that the file does not list; "
            f"the first annotation ids: {sample(lost)}. Add the images or remove the annotations."
        )
    return categories
