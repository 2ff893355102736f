"""``ground_truth.json``: which ground truth an evaluation used, and how it was evaluated, beside the predictions."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from retinanet_ext.data.coco_file import parse_coco_file
from retinanet_ext.machine.atomic_file import write_atomically

from .ground_truth import GroundTruth

REFERENCE_FILE = "ground_truth.json"
_COPY = "ground_truth_coco.json"  # written where no file holds the ground truth
_VERSION = 1
_BLOCK = 2**20  # bytes
_KEYS = ("dataset", "file", "sha256", "image_root", "classes", "image_ids", "max_dets_per_image", "oks_sigmas", "tasks")


def write_reference(
    folder: str | os.PathLike,
    truth: GroundTruth,
    *,
    tasks: Sequence[str],
    max_dets_per_image: int,
    oks_sigmas: Sequence[float],
    image_ids: Sequence | None,
) -> None:
    """Write ``ground_truth.json`` into the folder of the predictions.

    It names the COCO file of the ground truth, with its SHA-256, and holds class names, category ids, the folder of the
    images and the protocol. The path is relative if the file lies in the output folder of the run, so that the run
    can be moved. Without such a file, the ground truth is written into the folder.
    """
    folder = Path(folder)
    file = truth.file
    if file is None or not os.path.isfile(file):
        file = folder / _COPY
        write_atomically(file, json.dumps(truth.coco))
    reference = {
        "version": _VERSION,
        "dataset": truth.name or truth.source,
        "file": _portable(Path(file), folder),
        "sha256": file_sha256(file),
        "image_root": _image_root(truth),
        "classes": [
            {"class_id": class_id, "category_id": category_id, "name": truth.class_names[class_id]}
            for class_id, category_id in truth.category_ids.items()
        ],
        "image_ids": None if image_ids is None else list(image_ids),
        "max_dets_per_image": max_dets_per_image,
        "oks_sigmas": list(oks_sigmas),
        "tasks": list(tasks),
    }
    write_atomically(folder / REFERENCE_FILE, json.dumps(reference, indent=1) + "\n")


def read_reference(folder: str | os.PathLike) -> tuple[GroundTruth, dict[str, Any]]:
    """The ground truth of an evaluation, and the content of its ``ground_truth.json``.

    Raises:
        FileNotFoundError: the folder has no such file, or the COCO file that it names is gone.
        ValueError: a file is malformed, or the COCO file has changed since.
    """
    path = Path(folder) / REFERENCE_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: {folder} is not the folder of an evaluation (OUTPUT_DIR/inference/<dataset>), or "
            "an older version wrote it; evaluate again with --eval-only"
        )
    reference = _content(path)
    file = Path(folder, reference["file"])
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} names the ground truth {file}, which does not exist; put it back, or evaluate again"
        )
    if file_sha256(file) != reference["sha256"]:
        raise ValueError(
            f"{file} has changed since the evaluation in {folder} (its SHA-256 is not that in {path.name}); put the "
            "old file back, or evaluate again"
        )
    coco = parse_coco_file(file, required=["images", "categories"])
    try:
        category_ids = {entry["class_id"]: entry["category_id"] for entry in reference["classes"]}
        names = {entry["class_id"]: entry["name"] for entry in reference["classes"]}
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path}: classes must be a list of class_id, category_id, name; evaluate again") from error
    truth = GroundTruth(
        coco, str(file), category_ids, names, image_root=reference["image_root"], file=str(file),
        name=reference["dataset"],
    )  # fmt: skip
    return truth, reference


def _content(path: Path) -> dict[str, Any]:
    try:
        reference = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}; evaluate again with --eval-only") from error
    missing = [key for key in _KEYS if not isinstance(reference, dict) or key not in reference]
    if missing or reference.get("version") != _VERSION:
        raise ValueError(
            f"{path} is not what this version writes (version {_VERSION}"
            f"{', no ' + ', '.join(missing) if missing else ''}); evaluate again with --eval-only"
        )
    return reference


def _image_root(truth: GroundTruth) -> str:
    """The folder, absolute. The images of a dataset without a COCO file have whole paths, from the current folder."""
    name = next((image["file_name"] for image in truth.coco["images"] if image.get("file_name")), "")
    exists_here = os.path.isfile(name) and not os.path.isfile(os.path.join(truth.image_root, name))
    return os.path.abspath("" if exists_here else truth.image_root)


def _portable(file: Path, folder: Path) -> str:
    """Relative to `folder` if the file lies in the run's output folder, which is two levels above."""
    file, folder = Path(os.path.abspath(file)), Path(os.path.abspath(folder))
    run = folder.parent.parent
    inside = run in file.parents and run != Path(run.anchor)
    return os.path.relpath(file, folder) if inside else str(file)


def file_sha256(path: str | os.PathLike) -> str:
    """SHA-256 of a file as 64 hexadecimal digits; read again only if its size or time has changed."""
    status = os.stat(path)
    return _sha256(os.path.abspath(path), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=32)
def _sha256(path, mtime_ns, size):
    """`mtime_ns` and `size` are in the cache key to detect a changed file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
