"""What a checkpoint says about its making: config, code, versions, data and licenses."""

import hashlib
import json
import logging
import mmap
import os
import re
from typing import Any

from retinanet_ext.d2 import CfgNode, MetadataCatalog

from .run_record import git_state, package_versions

logger = logging.getLogger(__name__)

# Larger annotation files are named with their size only: COCO's largest has 470 MB.
_HASHED_UP_TO = 1 << 30
_DIFF_UP_TO = 1 << 16
_LICENSES = re.compile(rb'"licenses"\s*:\s*(?=\[)')


def provenance(cfg: CfgNode) -> dict[str, Any]:
    """The entry ``provenance`` of the run's checkpoints; plain values, which a safe reader takes.

    Returns:
        ``config`` (YAML text), ``git`` (commit and changes, or None), ``versions`` by package, ``license`` (of the
        weights, see MODEL.LICENSE), ``data``: for each dataset of DATASETS.TRAIN its ``name``, ``file``, ``bytes``,
        ``sha256`` and ``licenses``; the last four are None or empty if it is not read from one file.
    """
    git = git_state()
    if git is not None and len(git["diff"]) > _DIFF_UP_TO:
        git = {**git, "diff": git["diff"][:_DIFF_UP_TO] + "\n... (cut)"}
    return {
        "config": cfg.dump(),
        "git": git,
        "versions": package_versions(),
        "license": cfg.MODEL.LICENSE,
        "data": [_dataset(name) for name in cfg.DATASETS.TRAIN],
    }


def _dataset(name: str) -> dict[str, Any]:
    metadata = MetadataCatalog.get(name)
    file = metadata.get("json_file", None) or metadata.get("part_of_json_file", None)
    entry = {"name": name, "file": file, "bytes": None, "sha256": None, "licenses": []}
    if not file:
        return entry
    try:
        entry["bytes"] = os.path.getsize(file)
        if 0 < entry["bytes"] <= _HASHED_UP_TO:
            with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                entry["sha256"] = hashlib.sha256(content).hexdigest()
                entry["licenses"] = licenses(content)
    except (OSError, ValueError) as error:
        logger.warning("the checkpoints of this run cannot state the annotation file of %s: %s", name, error)
    return entry


def licenses(content: mmap.mmap | bytes) -> list[str]:
    """Names and addresses in the section ``licenses`` of a COCO file, the only part that is parsed; or none."""
    for match in _LICENSES.finditer(content):
        try:
            text = content[match.end() : match.end() + (1 << 20)].decode("utf-8", "replace")
            section, _ = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError):
            continue
        parts = ((entry.get("name"), entry.get("url")) for entry in section if isinstance(entry, dict))
        found = [" ".join(str(part)[:200] for part in pair if part) for pair in parts]
        return [text for text in found if text]
    return []
