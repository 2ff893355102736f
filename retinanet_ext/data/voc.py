"""Reader for data in Pascal VOC layout: ``Annotations/*.xml``, ``JPEGImages``, ``ImageSets/Main/<split>.txt``.

The folders may have other names, and the split may be any list of names, or all annotation files.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from retinanet_ext.d2 import BoxMode

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".JPG", ".JPEG", ".PNG")
ANNOTATIONS, IMAGES = "Annotations", "JPEGImages"


def load_voc(
    root: str | Path,
    split: str | None,
    class_names: Sequence[str],
    *,
    annotations: str = ANNOTATIONS,
    images: str = IMAGES,
    on_error: Callable[[str, Exception], None] | None = None,
) -> list[dict]:
    """Read one split as dataset records.

    VOC counts pixels from 1 and includes the last one, so a box becomes ``(xmin - 1, ymin - 1, xmax, ymax)``, in
    XYXY_ABS, as in Detectron2's VOC reader. A box whose two corners coincide along an axis has no area: labelling
    tools write that for a click without a drag. It stays without area here, so that the dataset check finds it
    (Detectron2's reader makes it one pixel wide). Objects marked `difficult` are kept, as in Detectron2, with
    ``"difficult": 1``. An object whose class is not in `class_names` gets category_id -1, which the check reports.

    Args:
        root: the folder that holds the folders of the annotations and the images.
        split: name of a file in ``ImageSets/Main``, without ``.txt``, or else the path of a text file, relative to
            `root`, with the name of an image or of an annotation file in each line. None: all annotation files.
        class_names: the names that make category ids 0, 1, ...
        annotations, images: the two folders, relative to `root`.
        on_error: gets the names (without suffix) of annotation files that cannot be read, and their errors; they are
            left out. None: the first error is raised.

    Returns:
        Records with file_name, image_id (the file's stem), height, width, annotations. In the order of the split; all
        annotation files come in the order of their names.

    Raises:
        FileNotFoundError: the split or an annotation file does not exist.
        ValueError: an annotation file is not a VOC annotation.
    """
    folder, image_folder = Path(root) / annotations, Path(root) / images
    class_ids = {name: k for k, name in enumerate(class_names)}
    stems = _stems(Path(root), split, folder)
    return _each(lambda stem: _read_record(folder, image_folder, stem, class_ids), stems, on_error)


def voc_class_names(
    root: str | Path, annotations: str = ANNOTATIONS, *, on_error: Callable[[str, Exception], None] | None = None
) -> list[str]:
    """Sorted class names in all annotation files. All splits are read, so that they agree on the ids.

    `on_error` is as for :func:`load_voc`.
    """
    folder, names = Path(root) / annotations, set()

    def read(stem: str) -> list[str]:
        path = folder / f"{stem}.xml"
        return [_text(item, "name", path) for item in _parse(path).iter("object")]

    for found in _each(read, _stems(Path(root), None, folder), on_error):
        names.update(found)
    if not names:
        raise ValueError(
            f"No objects in {folder}/*.xml; is this the root of VOC-format data? The key ANNOTATIONS names the folder "
            "of the annotation files."
        )
    return sorted(names)


def _each(function, stems, on_error):
    results = []
    for stem in stems:
        try:
            results.append(function(stem))
        except Exception as error:
            if on_error is None:
                raise
            on_error(stem, error)
    return results


def _stems(root, split, folder):
    if split is None:
        return sorted(path.stem for path in folder.glob("*.xml"))
    # Per-class split files have a second column (1, -1, 0) after the name.
    return [_stem(line.strip(), folder) for line in _split_file(root, split).read_text().splitlines() if line.strip()]


def _split_file(root, split):
    usual = root / "ImageSets" / "Main" / f"{split}.txt"
    for path in (usual, root / split):
        if path.is_file():
            return path
    found = ", ".join(sorted(path.stem for path in usual.parent.glob("*.txt"))) or "none"
    raise FileNotFoundError(
        f"{usual} does not exist; splits found there: {found}. Nor does {root / split}, a list of names. Without a "
        "split, all annotation files are read."
    )


def _stem(line, folder):
    """Name of the annotation file that a line of a split means. Names may have spaces, folders and suffixes."""
    for words in (line, line.split()[0]):
        path = Path(words.replace("\\", "/"))
        stem = path.stem if path.suffix in (".xml", *_IMAGE_SUFFIXES) else path.name
        if (folder / f"{stem}.xml").is_file():
            break
    return stem


def _read_record(folder, image_folder, stem, class_ids):
    path = folder / f"{stem}.xml"
    tree = _parse(path)
    size = tree.find("size")
    if size is None:
        raise ValueError(f"{path}: <size> is missing; a VOC annotation states width and height of its image.")
    return {
        "file_name": str(_image_path(image_folder, stem, tree)),
        "image_id": stem,
        "height": int(_number(size, "height", path)),
        "width": int(_number(size, "width", path)),
        "annotations": [_read_object(item, class_ids, path) for item in tree.iter("object")],
    }


def _image_path(folder, stem, tree):
    # <filename> in an annotation is often the name on the labeller's disk, hence only the second choice.
    named = Path((tree.findtext("filename") or "").strip().replace("\\", "/")).name
    candidates = [folder / f"{stem}{suffix}" for suffix in _IMAGE_SUFFIXES] + [folder / named] * bool(named)
    return next((path for path in candidates if path.is_file()), candidates[0])


def _read_object(item, class_ids, path):
    name = _text(item, "name", path)
    corners = item.find("bndbox")
    if corners is None:
        raise ValueError(f"{path}: object {name!r} has no <bndbox>.")
    x0, y0, x1, y1 = (_number(corners, key, path) for key in ("xmin", "ymin", "xmax", "ymax"))
    return {
        "category_id": class_ids.get(name, -1),
        "category_name": name,
        "bbox": [x0 - 1.0, y0 - 1.0, x1 - 1.0 if x1 <= x0 else x1, y1 - 1.0 if y1 <= y0 else y1],
        "bbox_mode": BoxMode.XYXY_ABS,
        "difficult": _flag(item, "difficult", path),
    }


def _parse(path):
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, but the split lists its image.")
    content = path.read_bytes()
    # Nested entities can expand a small file to gigabytes; no labelling tool writes entities.
    if b"<!ENTITY" in content:
        raise ValueError(f"{path}: XML entity definitions are not accepted in annotations.")
    try:
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # LookupError: an encoding that does not exist
        raise ValueError(f"{path}: not well-formed XML: {error}.") from error


def _text(item, key, path):
    text = (item.findtext(key) or "").strip()
    if not text:
        raise ValueError(f"{path}: <{item.tag}> has no <{key}>.")
    return text


def _flag(item, key, path):
    text = (item.findtext(key) or "").strip() or "0"
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"{path}: <{key}> of <{item.tag}> is {text!r}; legal: 0, 1, or no <{key}>.") from error


def _number(item, key, path):
    text = _text(item, key, path)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{path}: <{key}> of <{item.tag}> is {text!r:.80}; a number is needed.")
    return number
