"""Read data with a folder for each identity: the format `identities` of DATASETS.CUSTOM.

The images of an identity are the files with a known suffix (upper or lower case) directly in its folder. Other files,
and folders without images, are named in the log. Links are followed.
"""

import difflib
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from retinanet_ext.embedding.pairs import IMAGE_SUFFIXES, Pairs, draw_pairs, read_pairs

from .parts import checked_part, is_in_part

# Keys of an item of DATASETS.CUSTOM besides NAME, FORMAT and ROOT.
IDENTITY_KEYS = ("IDENTITIES", "PART", "PART_SEED", "MIN_IMAGES", "PAIRS")
PAIR_KEYS = ("SAME", "DIFFERENT", "FOLDS", "SEED")
# Number of same and of different pairs that are drawn by default, or all if there are fewer.
DEFAULT_PAIRS = 3000
_SHOWN = 5

logger = logging.getLogger(__name__)


def checked_identity_keys(item: dict, where: str) -> dict:
    """Return the keys IDENTITIES, PART_SEED, MIN_IMAGES and PAIRS of an item of DATASETS.CUSTOM, checked.

    Raises:
        ValueError: a value is not legal; names the key.
    """
    names = item.get("IDENTITIES")
    is_list = isinstance(names, (list, tuple)) and names and all(isinstance(n, str) and n for n in names)
    if names is not None and not is_list and not (isinstance(names, str) and names):
        raise ValueError(
            f"{where}: IDENTITIES must be a list of folder names (quote numbers), or the path of a text file with one "
            f"in each line, found {names!r}."
        )
    for key, lowest in (("MIN_IMAGES", 1), ("PART_SEED", 0)):
        if key in item and (type(item[key]) is not int or item[key] < lowest):
            raise ValueError(f"{where}: {key} must be an integer >= {lowest}, found {item[key]!r}.")
    if "PART_SEED" in item and "PART" not in item:
        raise ValueError(f"{where}: PART_SEED is given without PART; add PART: [start, end].")
    if "PART" in item:
        checked_part(item["PART"], where)
    checked = {"IDENTITIES": list(names)} if is_list else {}
    if "PAIRS" in item:
        checked["PAIRS"] = _checked_pairs(item["PAIRS"], where)
    return checked


def read_identities(
    root: str | Path,
    dataset_name: str,
    *,
    identities: Sequence[str] | None = None,
    part: Sequence[float] | None = None,
    part_seed: int | None = None,
    min_images: int = 1,
) -> dict[str, list[str]]:
    """List the images of each identity.

    Args:
        root: a folder of folders.
        dataset_name: for messages.
        identities: names of folders; None takes all folders that have images.
        part: takes the identities whose place is in ``[start, end)``. The place of an identity is a hash of its name
            between 0 and 1, so that it stays when identities are added.
        part_seed: makes the shares exact: the place is the rank of the identity, in an order that this seed gives,
            divided by the number of identities.
        min_images: leaves out identities with fewer images.

    Returns:
        {name of the identity: sorted names of its image files}, sorted by name.

    Raises:
        FileNotFoundError: a folder that ``identities`` names does not exist.
        ValueError: no identity is left, or one that ``identities`` names has no image.
    """
    images, others = {}, []
    with os.scandir(root) as entries:
        folders = []
        for entry in entries:
            (folders if entry.is_dir() and not entry.name.startswith(".") else others).append(entry.name)
    for name in sorted(folders) if identities is None else _existing_folders(identities, folders, root, dataset_name):
        files = sorted(os.listdir(os.path.join(root, name)))
        images[name] = [file for file in files if _is_image(file)]
        others += [f"{name}/{file}" for file in files if not _is_image(file)]
    _refuse_or_report(images, others, root, dataset_name, named=identities is not None)
    images = {name: files for name, files in images.items() if files}
    if part is not None:
        images = _in_part(images, part, part_seed, dataset_name)
    return _with_enough(images, min_images, dataset_name)


def read_identity_list(path: str | Path) -> list[str]:
    """The names of identities in a text file, one in each line; what follows a tab, and empty lines, do not count.

    Raises:
        ValueError: the file names none, or one of them twice.
    """
    lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    names = [line.split("\t")[0].strip() for line in lines if line.strip()]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if not names or repeated:
        what = f"names {', '.join(repeated[:_SHOWN])} more than once" if repeated else "names no identity"
        raise ValueError(f"{path} {what}; it must have the name of a folder in each line.")
    return names


def identity_records(root: str | Path, images: dict[str, list[str]]) -> list[dict]:
    """Records of identities, in their order: ``file_name``, ``image_id`` (the path relative to the root, with forward
    slashes) and ``identity`` (index of the name in ``images``)."""
    return [
        {"file_name": os.path.join(root, name, file), "image_id": f"{name}/{file}", "identity": index}
        for index, (name, files) in enumerate(images.items())
        for file in files
    ]


def verification_pairs(
    records: Callable[[], list[dict]], pairs: str | dict | None, root: str | Path, dataset_name: str
) -> Pairs:
    """The pairs of a dataset.

    Args:
        records: gives the records of the dataset, before the checks.
        pairs: a path, or a mapping that draws them; see docs/data.md. None draws as many same and as many different
            pairs as there are, up to DEFAULT_PAIRS of each, in 10 folds (as many as there are pairs of a kind, if these
            are fewer).
        root: folder of the images.
        dataset_name: for messages.

    Raises:
        ValueError: the file, or what is to be drawn, does not fit; names the dataset.
    """
    if isinstance(pairs, str):
        return read_pairs(pairs, root)
    dicts = records()
    options = _default_draw(dicts) if pairs is None else {key.lower(): value for key, value in pairs.items()}
    try:
        return draw_pairs([d["image_id"] for d in dicts], [d["identity"] for d in dicts], **options)
    except ValueError as error:
        raise ValueError(f"Dataset {dataset_name!r}: PAIRS: {error}.") from error


def _default_draw(dicts):
    sizes = Counter(record["identity"] for record in dicts).values()
    same = sum(n * (n - 1) // 2 for n in sizes)
    different = len(dicts) * (len(dicts) - 1) // 2 - same
    if not same or not different:
        return {}  # drawing all of them says what is wrong
    counts = {"same": min(same, DEFAULT_PAIRS), "different": min(different, DEFAULT_PAIRS)}
    return {**counts, "folds": min(10, *counts.values())}


def _checked_pairs(pairs, where):
    if isinstance(pairs, str) and pairs:
        return pairs
    legal = "the path of a file of pairs, or a mapping such as {SAME: all, DIFFERENT: 3000, FOLDS: 10, SEED: 0}"
    if not isinstance(pairs, dict):
        raise ValueError(f"{where}: PAIRS must be {legal}, found {pairs!r}.")
    for key, value in pairs.items():
        if key not in PAIR_KEYS:
            raise ValueError(f"{where}: PAIRS has the unknown key {key!r}; legal: {', '.join(PAIR_KEYS)}.")
        lowest = {"FOLDS": 2, "SEED": 0}.get(key, 1)
        is_all = key in ("SAME", "DIFFERENT") and value == "all"
        if not is_all and (type(value) is not int or value < lowest):
            alternative = ", or all" if key in ("SAME", "DIFFERENT") else ""
            raise ValueError(f"{where}: PAIRS: {key} must be an integer >= {lowest}{alternative}, found {value!r}.")
    return dict(pairs)


def _is_image(file):
    return not file.startswith(".") and os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES


def _existing_folders(names, folders, root, dataset_name):
    known = set(folders)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    missing = [name for name in names if name not in known]
    if repeated:
        raise ValueError(f"Dataset {dataset_name!r}: IDENTITIES names {', '.join(repeated[:_SHOWN])} more than once.")
    if missing:
        near = difflib.get_close_matches(missing[0], folders, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise FileNotFoundError(
            f"Dataset {dataset_name!r}: {root} has no folder for {len(missing)} of the {len(names)} IDENTITIES, such "
            f"as {', '.join(map(repr, missing[:_SHOWN]))}.{hint}"
        )
    return sorted(names)


def _refuse_or_report(images, others, root, dataset_name, named):
    empty = [name for name, files in images.items() if not files]
    if not any(images.values()):
        hint = f"the folder {root} is empty"
        if any(_is_image(name) for name in others):
            hint = "its images lie beside each other; make a folder for each identity and move them there"
        elif deeper := next((n for n in others if "/" in n and os.path.isdir(os.path.join(root, n))), None):
            hint = f"there are folders in its folders, such as {deeper}; name the folder of the identities as ROOT"
        elif others or images:
            hint = f"no folder in {root} has files that end in {', '.join(IMAGE_SUFFIXES)}"
        raise ValueError(f"Dataset {dataset_name!r}: found no identity, a folder with images, in {root}: {hint}.")
    if empty and named:
        raise ValueError(
            f"Dataset {dataset_name!r}: {len(empty)} of the IDENTITIES have no image in their folder, such as "
            f"{', '.join(empty[:_SHOWN])}. Leave them out, or add images."
        )
    for found, what in ((empty, "folders have no images and are left out"), (others, "other files are not read")):
        if found:
            logger.warning(
                "Dataset %r: %d %s, such as %s", dataset_name, len(found), what, ", ".join(sorted(found)[:_SHOWN])
            )


def _in_part(images, part, seed, dataset_name):
    if seed is None:
        kept = {name: files for name, files in images.items() if is_in_part(name, part)}
    else:
        order = sorted(images, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
        first, last = (round(share * len(order)) for share in part)
        chosen = set(order[first:last])
        kept = {name: files for name, files in images.items() if name in chosen}
    logger.info("Dataset %r: PART %s holds %d of %d identities", dataset_name, list(part), len(kept), len(images))
    if not kept:
        raise ValueError(
            f"Dataset {dataset_name!r}: none of its {len(images)} identities is in PART {list(part)}. Widen the part; "
            "PART_SEED makes the shares exact."
        )
    return kept


def _with_enough(images, minimum, dataset_name):
    kept = {name: files for name, files in images.items() if len(files) >= minimum}
    if not kept:
        raise ValueError(
            f"Dataset {dataset_name!r}: none of its {len(images)} identities has MIN_IMAGES {minimum} images; the "
            f"largest has {max(map(len, images.values()))}."
        )
    if len(kept) < len(images):
        logger.info(
            "Dataset %r: %d of %d identities have fewer than MIN_IMAGES %d images and are left out",
            dataset_name, len(images) - len(kept), len(images), minimum,
        )  # fmt: skip
    return kept
