"""Read a COCO annotation file and check what its readers rely on. Independent of the engine."""

import json
import math
import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

# Section of the file -> the keys that each of its entries must have.
SECTIONS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id"),
    "categories": ("id", "name"),
}
_SHOWN = 10  # number of ids that a message lists


def read_coco_file(json_file: str | os.PathLike, required: Sequence[str] = tuple(SECTIONS)) -> dict[str, Any]:
    """Read a COCO annotation file and check its entries.

    Args:
        json_file: the file.
        required: the sections that must be present; the others may be absent, as in the files of test sets.

    Returns:
        The file's content. Each section present is a list of dicts that have the keys of :data:`SECTIONS`, with
        unique ids.

    Raises:
        FileNotFoundError: no such file.
        ValueError: any other fault; the message names the file, the entry and the keys it needs.
    """
    content = parse_coco_file(json_file, required)
    for section, keys in SECTIONS.items():
        if section in content:
            _check_entries(content[section], section, keys, json_file)
    return content


def parse_coco_file(json_file: str | os.PathLike, required: Sequence[str]) -> dict[str, Any]:
    """Like :func:`read_coco_file`, but without checking the entries of the sections."""
    try:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
    except RecursionError:
        raise ValueError(f"{json_file} is not a COCO annotation file: it is nested too deeply") from None
    except (ValueError, IsADirectoryError) as error:
        raise ValueError(f"{json_file} is not a COCO annotation file: it is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{json_file} is not a COCO annotation file: no {', '.join(SECTIONS)} at its top level, found a "
            f"{type(content).__name__}"
        )
    _check_sections(content, required, json_file)
    return content


@dataclass(frozen=True)
class CocoSummary:
    """What is asked of a COCO file before its records are read. It is cached: do not edit it."""

    sections: tuple[str, ...]
    """Keys of the file."""
    categories: list[dict]
    """Sorted by id."""
    lost: list
    """Ids of the annotations whose image the file does not list."""
    num_keypoints: int | None
    """The most frequent number of keypoints of an annotation; 0 if none has any; None if there are no annotations, or
    no well-formed keypoints."""


def coco_summary(json_file: str | os.PathLike, required: Sequence[str] = tuple(SECTIONS)) -> CocoSummary:
    """Read a COCO file as :func:`read_coco_file` does, once for each version of the file, and keep a summary."""
    status = os.stat(json_file)
    summary = _summary(os.fspath(json_file), status.st_mtime_ns, status.st_size)
    _check_sections(summary.sections, required, json_file)
    return summary


@lru_cache(maxsize=32)
def _summary(json_file, mtime_ns, size):
    """`mtime_ns` and `size` are in the cache key to detect a changed file."""
    content = read_coco_file(json_file, ["images"])
    annotations = content.get("annotations", [])
    images = {image["id"] for image in content["images"]}
    return CocoSummary(
        tuple(content),
        sorted(content.get("categories", []), key=lambda category: category["id"]),
        [a["id"] for a in annotations if a["image_id"] not in images],
        _num_keypoints(annotations),
    )


def _num_keypoints(annotations):
    values = [keypoints for a in annotations if (keypoints := a.get("keypoints"))]
    lengths = Counter(len(v) // 3 for v in values if isinstance(v, list) and len(v) % 3 == 0)
    if lengths:
        return lengths.most_common(1)[0][0]
    return None if values or not annotations else 0


def _check_sections(found: Collection[str], required: Sequence[str], json_file: str | os.PathLike) -> None:
    missing = [section for section in required if section not in found]
    if missing:
        raise ValueError(
            f"{json_file} is not a COCO annotation file: no {', '.join(missing)} at its top level, found the keys "
            f"{', '.join(found) or 'none'}"
        )


def _check_entries(entries: Any, section: str, keys: Sequence[str], json_file: str | os.PathLike) -> None:
    if not isinstance(entries, list):
        raise ValueError(f"{json_file}: {section} must be a list, found {type(entries).__name__}")
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{json_file}: {section}[{index}] must be a mapping, found {entry!r}")
        missing = [key for key in keys if key not in entry]
        if missing:
            name = f"{section}[{index}]" + (f" (id {entry['id']})" if "id" in entry else "")
            raise ValueError(f"{json_file}: {name} has no {', '.join(missing)}; each needs {', '.join(keys)}")
    _check_values(entries, section, json_file)
    # The published 2014 minival files repeat annotation ids; in any other file that is an error.
    if section == "annotations" and "minival" in os.path.basename(json_file):
        return
    repeated = [key for key, count in Counter(entry["id"] for entry in entries).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{json_file}: {len(repeated)} ids of {section} occur more than once: {sample(repeated)}. Give every entry "
            "a unique id"
        )


def _check_values(entries: list[dict], section: str, json_file: str | os.PathLike) -> None:
    """Refuse values that code after the reader could not work with."""
    found = []
    for index, entry in enumerate(entries):
        for key, (legal, is_legal) in _VALUES[section].items():
            if not is_legal(entry[key]):
                found.append(f"{section}[{index}] has the {key} {entry[key]!r:.80}; legal: {legal}")
    if not found and len({isinstance(entry["id"], str) for entry in entries}) > 1:
        found.append(f"some ids of {section} are texts and others numbers; legal: one kind")
    if found:
        more = f"\n... and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ValueError(f"{json_file}: {len(found)} wrong values:\n" + "\n".join(found[:_SHOWN]) + more)


def _is_id(value: Any) -> bool:
    return isinstance(value, str) or (_is_number(value) and math.isfinite(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_file_name(value: Any) -> bool:
    # Some codes of text, such as half of a pair of surrogates, stand for no character and name no file.
    return isinstance(value, str) and value != "" and value.isprintable()


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


_ID, _SIDE = ("a number or a text", _is_id), ("an integer above 0", _is_side)
# Section -> key -> what is legal, and a test for it.
_VALUES = {
    "images": {"id": _ID, "file_name": ("the path of a file", _is_file_name), "width": _SIDE, "height": _SIDE},
    "annotations": {"id": _ID, "image_id": _ID, "category_id": _ID},
    "categories": {"id": _ID, "name": ("a text", lambda value: isinstance(value, str) or _is_number(value))},
}


def sample(ids: Sequence) -> str:
    """The first few ids, for a message."""
    return ", ".join(map(str, ids[:_SHOWN])) + (", ..." if len(ids) > _SHOWN else "")
