"""Names, mirror pairs and lines of the keypoints of a user's data: from the COCO file, else from the config item.

In a COCO file each category may have ``keypoints``, the names, and ``skeleton``, pairs of 1-based keypoint numbers. No
COCO file says which keypoints change places in a mirrored image; that follows from the names, or is in the config::

    - {NAME: roos_train, FORMAT: coco, JSON: roos.json, IMAGES: roos, KEYPOINT_NAMES: [nose, ear_1, ear_2, tail],
       KEYPOINT_FLIP_MAP: [[ear_1, ear_2]], KEYPOINT_SKELETON: [[nose, tail], [nose, ear_1], [nose, ear_2]]}
"""

import colorsys
import logging
import re
from collections.abc import Sequence
from typing import Any

from retinanet_ext.d2 import MetadataCatalog

from .coco_file import coco_summary

KEYPOINT_KEYS = ("KEYPOINT_NAMES", "KEYPOINT_FLIP_MAP", "KEYPOINT_SKELETON")
# Parts of names that tell the two sides apart. Single letters count only as a word of their own: l_eye, eye.R.
SIDES = (("left", "right"), ("Left", "Right"), ("LEFT", "RIGHT"))
LETTERS = (("l", "r"), ("L", "R"))

logger = logging.getLogger(__name__)


def checked_keypoint_keys(item: dict, where: str) -> dict[str, Any]:
    """The KEYPOINT_* keys of an item of DATASETS.CUSTOM as lists and tuples of names.

    Args:
        item: the item.
        where: its place in the config, for messages.

    Raises:
        ValueError: a value of another form, a repeated name, or an unknown one, if KEYPOINT_NAMES is given.
    """
    checked = {}
    if "KEYPOINT_NAMES" in item:
        names = item["KEYPOINT_NAMES"]
        if not _are_names(names) or len(set(names)) < len(names):
            raise ValueError(
                f"{where}: KEYPOINT_NAMES must be a list of different names (quote numbers, yes and no), found "
                f"{names!r}."
            )
        checked["KEYPOINT_NAMES"] = tuple(names)
    for key in (key for key in ("KEYPOINT_FLIP_MAP", "KEYPOINT_SKELETON") if key in item):
        pairs = item[key]
        if not isinstance(pairs, (list, tuple)) or not all(_are_names(p) and len(set(p)) == len(p) == 2 for p in pairs):
            raise ValueError(f"{where}: {key} must be a list of pairs of different keypoint names, found {pairs!r}.")
        checked[key] = tuple(tuple(pair) for pair in pairs)
        if "KEYPOINT_NAMES" in item:
            _check_known(checked[key], checked["KEYPOINT_NAMES"], f"{where}: {key}")
    _check_places(checked.get("KEYPOINT_FLIP_MAP", ()), where)
    return checked


def keypoint_metadata(item: dict, categories: Sequence[dict]) -> dict[str, Any]:
    """Metadata of the keypoints of a dataset, under Detectron2's names.

    Args:
        item: the checked item of DATASETS.CUSTOM.
        categories: the dataset's categories in its COCO file; empty before the file is read.

    Returns:
        ``keypoint_names``, ``keypoint_flip_map`` (pairs of names that change places in a mirrored image) and
        ``keypoint_connection_rules`` (a line each: two names and a colour, RGB in 0 to 255). Empty if neither the file
        nor the item names keypoints, or if the categories differ in their names.

    Raises:
        ValueError: the item contradicts the file, or names keypoints that do not exist.
    """
    where, given = f"Dataset {item['NAME']!r}", item.get("KEYPOINT_NAMES")
    found = sorted(names_in_categories(categories))
    if len(found) > 1:
        logger.warning(
            "%s: the categories differ in their keypoints (%s), so it has no keypoint_names and cannot train keypoints",
            where, "; ".join(", ".join(names) for names in found),
        )  # fmt: skip
        return {}
    if given and found and found[0] != given:
        raise ValueError(
            f"{where}: KEYPOINT_NAMES is {list(given)}, but the annotation file has {list(found[0])}. The order "
            "belongs to the file; leave out KEYPOINT_NAMES or correct it."
        )
    if not given and not found:
        return {}
    names = given or found[0]
    flip_map = item["KEYPOINT_FLIP_MAP"] if "KEYPOINT_FLIP_MAP" in item else mirror_pairs(names, where)
    lines = item["KEYPOINT_SKELETON"] if "KEYPOINT_SKELETON" in item else _skeleton(categories, names, where)
    for key, pairs in (("KEYPOINT_FLIP_MAP", flip_map), ("KEYPOINT_SKELETON", lines)):
        _check_known(pairs, names, f"{where}: {key}")
    return {
        "keypoint_names": names,
        "keypoint_flip_map": flip_map,
        "keypoint_connection_rules": [(a, b, _color(k)) for k, (a, b) in enumerate(lines)],
    }


def names_in_categories(categories: Sequence[dict]) -> dict[tuple[str, ...], str]:
    """The lists of keypoint names in the categories of a COCO file, each with the name of the first that has it."""
    found = {}
    for category in categories:
        names = category.get("keypoints")
        if isinstance(names, (list, tuple)) and names:
            found.setdefault(tuple(map(str, names)), str(category["name"]))
    return found


def dataset_skeleton(dataset_name: str) -> tuple[list[str], list[list]]:
    """Keypoint names and lines, each ``[name, name, [red, green, blue]]``, of a registered dataset; [] where unknown.

    They come from the metadata, and for a COCO file that others have registered also from its categories.
    """
    metadata = MetadataCatalog.get(dataset_name)
    known = {key: metadata.get(key, None) for key in ("keypoint_names", "keypoint_connection_rules")}
    file = metadata.get("json_file", None)
    if not known["keypoint_connection_rules"] and file is not None:
        known = keypoint_metadata({"NAME": dataset_name}, coco_summary(file, ["images"]).categories) or known
    names, lines = known["keypoint_names"] or (), known["keypoint_connection_rules"] or ()
    return list(names), [[a, b, [int(value) for value in color]] for a, b, color in lines]


def mirror_pairs(names: Sequence[str], where: str) -> tuple[tuple[str, str], ...]:
    """Pairs of names that differ in their side only: left and right, or the letters l and r as words.

    A name with ``left`` or ``right`` without a counterpart stays in its place in a mirrored image; a warning says so.
    """
    pairs, alone = [], []
    for name in names:
        other = next((o for o in _other_sides(name, SIDES + LETTERS) if o in names), None)
        if other:
            pairs.append((name, other))
        elif re.search(r"(?i)(?<![a-z])(left|right)(?![a-z])", name) and not _is_right_of(name, names):
            alone.append(name)
    if alone:
        logger.warning(
            "%s: the keypoints %s have no counterpart on the other side, and keep their place in mirrored images; "
            "KEYPOINT_FLIP_MAP names the pairs, where the names do not show them",
            where, ", ".join(alone),
        )  # fmt: skip
    return tuple(pairs)


def _other_sides(name, sides):
    for left, right in sides:
        if len(left) == 1:
            yield from _replaced(rf"(?<![A-Za-z]){left}(?![A-Za-z])", right, name)
        else:
            yield from _replaced(left, right, name)


def _replaced(pattern, other, name):
    changed = re.sub(pattern, other, name)
    if changed != name:
        yield changed


def _is_right_of(name, names):
    return any(other in names for other in _other_sides(name, [(b, a) for a, b in SIDES]))


def _skeleton(categories, names, where):
    """Pairs of names of the file's skeleton; none if a number is wrong, which must not stop a run on boxes."""
    pairs = next((category["skeleton"] for category in categories if category.get("skeleton")), ())
    try:
        numbers = [(int(a) - 1, int(b) - 1) for a, b in pairs]
    except (TypeError, ValueError):
        numbers = [(-1, -1)]
    if all(0 <= number < len(names) for pair in numbers for number in pair):
        return tuple((names[a], names[b]) for a, b in numbers)
    logger.warning(
        "%s: skeleton %r in the annotation file is not a list of pairs of numbers from 1 to %d (the keypoints); no "
        "lines are drawn. KEYPOINT_SKELETON takes pairs of names",
        where, pairs, len(names),
    )  # fmt: skip
    return ()


def _color(index):
    """RGB in 0 to 255. Neighbours in the list differ much: the hue moves by the golden ratio."""
    return tuple(round(255 * value) for value in colorsys.hsv_to_rgb(0.08 + index * 0.618034, 0.75, 1.0))


def _are_names(values):
    return isinstance(values, (list, tuple)) and len(values) > 0 and all(isinstance(v, str) and v for v in values)


def _check_known(pairs, names, where):
    unknown = sorted({name for pair in pairs for name in pair} - set(names))
    if unknown:
        raise ValueError(f"{where} has {', '.join(unknown)}; the keypoints are {', '.join(names)}.")


def _check_places(pairs, where):
    places = [name for pair in pairs for name in pair]
    repeated = sorted({name for name in places if places.count(name) > 1})
    if repeated:
        raise ValueError(f"{where}: KEYPOINT_FLIP_MAP has {', '.join(repeated)} in more than one pair.")


def check_keypoints_are_named(dataset_names: Sequence[str]) -> None:
    """Refuse datasets whose keypoints have no names: mappers need them to mirror an image.

    Raises:
        ValueError: names the first such dataset.
    """
    for name in dataset_names:
        if MetadataCatalog.get(name).get("keypoint_names", None) is None:
            raise ValueError(
                f"Dataset {name!r} has no names of keypoints, which MODEL.KEYPOINT_ON needs; add `keypoints: [...]` to "
                "the category in its annotation file, or KEYPOINT_NAMES to its entry in DATASETS.CUSTOM"
            )
