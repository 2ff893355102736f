"""Reader for data in YOLO layout: folders ``images`` and ``labels``, with one text file of labels for each image.

A line is ``class cx cy width height``, or ``class x1 y1 x2 y2 x3 y3 ...`` for a polygon, relative to the size of the
image. Class indices start at 0.
"""

from collections.abc import Sequence
from pathlib import Path

import yaml

from retinanet_ext.d2 import BoxMode

from .doctor.image_probe import probe_images

IMAGES = "images"
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_NAME_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt")
_LEGAL_LINE = "class cx cy width height, or class x1 y1 x2 y2 x3 y3 ..., relative to the size of the image"


def load_yolo(
    root: str | Path,
    class_names: Sequence[str],
    *,
    images: str = IMAGES,
    labels: str | None = None,
    split: str | None = None,
) -> list[dict]:
    """Read a folder of images, or a list of them, as dataset records.

    The header of each image is read, because records have boxes in pixels. An image without a label file has no
    objects. A line that is no label becomes an annotation with the key `fault`, which the dataset check reports.

    Args:
        root: the folder that the other paths are relative to.
        class_names: the names of the class indices 0, 1, ...
        images: the folder of the images; its subfolders are read too.
        labels: the folder of the label files, with the subfolders of `images`. None: the last part ``images`` of an
            image's path becomes ``labels``; without such a part, the label file lies beside the image.
        split: a text file with the path of an image in each line, relative to `root` or to `images`. None: all images.

    Returns:
        Records in the order of the paths: file_name, image_id (the path below `images`), label_file, annotations (each
        with the number of its line), and height and width in pixels, after the EXIF rotation. An image that cannot be
        read has no size and no annotations, and the check reports it.

    Raises:
        FileNotFoundError: no image, no label file for any of them, or no file `split`.
    """
    root, folder = Path(root), Path(root) / images
    paths = _listed(root, folder, split) if split else _found(folder)
    if not paths:
        raise FileNotFoundError(f"No images in {root / split if split else folder}; looked for {_suffixes()}.")
    label_files = [_label_file(path, folder, labels and root / labels) for path in paths]
    if not any(path.is_file() for path in label_files):
        raise FileNotFoundError(
            f"None of the {len(paths)} images in {folder} has a label file; the first one would be {label_files[0]}. "
            "The key LABELS names another folder."
        )
    records = []
    infos = probe_images([str(path) for path in paths], what=f"sizes of {folder}")
    for path, label_file, info in zip(paths, label_files, infos, strict=True):
        record = {"file_name": str(path), "image_id": _image_id(path, root, folder), "label_file": str(label_file)}
        if isinstance(info, Exception):
            records.append({**record, "annotations": []})
            continue
        width, height = info.size
        annotations = _read_labels(label_file, width, height, class_names) if label_file.is_file() else []
        records.append({**record, "width": width, "height": height, "annotations": annotations})
    return records


def yolo_class_names(root: str | Path, images: str = IMAGES, labels: str | None = None) -> list[str] | None:
    """Class names in the order of their indices, from ``data.yaml`` or ``classes.txt``; None without such a file.

    Both are looked for in `root`, and ``classes.txt`` in the folder of the labels too.

    Raises:
        ValueError: the file has no list of distinct names.
    """
    root = Path(root)
    folder = root / labels if labels else _label_file(root / images / "classes.jpg", root / images, None).parent
    for path in [*(root / name for name in _NAME_FILES), folder / "classes.txt", root / "labels" / "classes.txt"]:
        if path.is_file():
            return _names_in(path)
    return None


def _names_in(path):
    if path.suffix == ".txt":
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        names = content.get("names") if isinstance(content, dict) else None
        if isinstance(names, dict) and sorted(names, key=str) == sorted(range(len(names)), key=str):
            names = [names[index] for index in range(len(names))]
    good = isinstance(names, list) and all(isinstance(n, (str, int, float)) and not isinstance(n, bool) for n in names)
    if not good or not names or len(set(map(str, names))) < len(names):
        raise ValueError(f"{path}: names must list distinct class names for the indices 0, 1, ..., found {names!r}.")
    return [str(name) for name in names]


def _found(folder):
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGE_SUFFIXES)


def _listed(root, folder, split):
    path = root / split
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; SPLIT is a text file below ROOT with an image in each line.")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [folder / line if (folder / line).is_file() else root / line for line in lines]


def _suffixes():
    return ", ".join(_IMAGE_SUFFIXES)


def _image_id(path, root, folder):
    for base in (folder, root):
        if path.is_relative_to(base):
            return path.relative_to(base).as_posix()
    return str(path)


def _label_file(path, folder, labels):
    if labels is not None:
        below = path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)
        return (labels / below).with_suffix(".txt")
    parts = list(path.parts)
    for index in reversed(range(len(parts) - 1)):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _read_labels(path, width, height, class_names):
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [
        _read_line(line, number, width, height, class_names)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _read_line(line, number, width, height, class_names):
    new = {"line": number, "category_id": -1, "bbox": None, "bbox_mode": BoxMode.XYXY_ABS}
    try:
        index, *values = map(float, line.split())
        new["category_id"] = int(index)
    except (ValueError, OverflowError):
        index, values = 0.5, []
    if index != new["category_id"] or not (len(values) == 4 or (len(values) >= 6 and len(values) % 2 == 0)):
        new["fault"] = ("malformed line", repr(line.strip()[:80]), _LEGAL_LINE)
        return new
    if len(values) == 4:
        x, y, w, h = values
        box = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
    else:
        xs, ys = values[0::2], values[1::2]
        box = [min(xs), min(ys), max(xs), max(ys)]
        new["segmentation"] = [[v * (width, height)[i % 2] for i, v in enumerate(values)]]
    if 0 <= new["category_id"] < len(class_names):
        new["category_name"] = class_names[new["category_id"]]
    new["bbox"] = [box[0] * width, box[1] * height, box[2] * width, box[3] * height]
    return new
