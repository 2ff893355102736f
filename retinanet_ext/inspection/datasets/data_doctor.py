"""`doctor data`: examines all datasets of a config, past every fault, and says what it found."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import CfgNode
from retinanet_ext.data.registration import register_custom_datasets
from retinanet_ext.machine.atomic_file import write_atomically
from retinanet_ext.report.document import Block

from .data_statistics import dataset_statistics, identity_statistics
from .dataset_reading import ReadDataset, read_dataset
from .doctor_parts import Part, UsableDataset, parts_for
from .findings import ERROR, Finding, as_json, counts_by_kind, worst_first
from .image_facts import ImageTable, examine_images
from .record_findings import CheckedRecords, check_records
from .split_findings import SHARED, identity_findings, split_findings, twin_findings

MISFIT = "config that does not fit the data"
JSON_FILE, PAGE_FILE = "findings.json", "doctor.html"
_SHOWN = 3  # findings of each kind in the text

logger = logging.getLogger(__name__)


@dataclass
class Examination:
    """What was found.

    ``datasets``: name -> split, format, annotation file, folder of the images, number of images. ``statistics``: name
    -> as of :mod:`.data_statistics`. ``blocks``: sections of further parts, for the page. ``partners``: id() of a
    finding about two images -> file of the other one.
    """

    findings: list[Finding] = field(default_factory=list)
    datasets: dict[str, dict[str, Any]] = field(default_factory=dict)
    statistics: dict[str, dict[str, Any]] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    partners: dict[int, str] = field(default_factory=dict)

    @property
    def has_errors(self) -> bool:
        return any(finding.severity == ERROR for finding in self.findings)


def examine(
    cfg: CfgNode,
    refusal: str | None = None,
    *,
    workers: int,
    weights: str | None = None,
    on_checked: Callable[[CheckedRecords], None] | None = None,
) -> Examination:
    """Examine the datasets of DATASETS.TRAIN and DATASETS.TEST. Faults of the data are findings, not errors.

    Args:
        cfg, refusal: as :func:`load_unadapted` returns them.
        workers: threads that read images.
        weights: a checkpoint, for the parts that need one.
        on_checked: is called with the checks of each dataset, to repair it.
    """
    names = dataset_names(cfg)
    examination = Examination()
    with _quiet_readers():
        datasets = [read_dataset(name) for name in names]
    paths = [record["file_name"] for d in datasets for record in d.records]
    # As the checks before training do.
    roots = None if cfg.DATASETS.ALLOW_FILES_OUTSIDE else [d.image_root for d in datasets for _ in d.records]
    table = examine_images(paths, workers, roots)
    parts, repeats, start = parts_for(weights), [], 0
    for dataset in datasets:
        stop = start + len(dataset.records)
        checked = _check(cfg, dataset, table, start, stop)
        repeats += [index in checked.repeats for index in range(stop - start)]
        _add(examination, cfg, checked, parts)
        if on_checked is not None:
            on_checked(checked)
        start = stop
    tested = [dataset.name not in cfg.DATASETS.TRAIN for dataset in datasets]
    twins = twin_findings(datasets, tested, table, np.asarray(repeats, bool))
    examination.findings += [finding for finding, _ in twins]
    examination.partners = {id(finding): partner for finding, partner in twins}
    examination.findings += identity_findings(cfg, datasets) + split_findings(cfg)
    _add_refusal(examination, refusal, names, datasets)
    examination.findings = worst_first(examination.findings)
    return examination


def load_unadapted(config_file: str, overrides: Sequence[str]) -> tuple[CfgNode, str | None]:
    """The config, and why it cannot be adapted to its data; None if it can, which then it is.

    Raises:
        ValueError, KeyError, FileNotFoundError: the config itself is wrong, or names no dataset.
    """
    cfg = load_config(config_file, overrides, datasets=False)
    register_custom_datasets(cfg)
    if not dataset_names(cfg):
        raise ValueError("the config names no dataset; give DATASETS.TRAIN or DATASETS.TEST the name of one")
    try:
        with _quiet_readers():
            return load_config(config_file, overrides), None
    except Exception as error:  # of the data; the checks say more
        logger.debug("the config cannot be adapted to its data", exc_info=True)
        return cfg, str(error.args[0]) if error.args else type(error).__name__


def dataset_names(cfg: CfgNode) -> list[str]:
    """The datasets of the config, each once."""
    return list(dict.fromkeys([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]))


def text_summary(examination: Examination) -> str:
    """Counts by kind with the first findings of each, for the terminal."""
    lines = []
    for name, about in examination.datasets.items():
        objects = examination.statistics.get(name, {}).get("objects")
        counts = f"{about['images']:,} images" + (f", {objects:,} objects" if objects is not None else "")
        lines.append(f"{name} ({about['split']}, {about['format'] or 'registered in code'}): {counts}")
    kinds = counts_by_kind(examination.findings)
    if not kinds:
        return "\n".join([*lines, "Nothing found."])
    groups = {key: list(found) for key, found in groupby(examination.findings, lambda f: (f.severity, f.kind))}
    for severity, kind, count in kinds:
        lines.append(f"\n{severity}: {count:,} x {kind}")
        lines += [f"  {_without_kind(finding)}" for finding in groups[severity, kind][:_SHOWN]]
        if count > _SHOWN:
            lines.append(f"  ... and {count - _SHOWN:,} more")
    totals = {severity: sum(n for s, _, n in kinds if s == severity) for severity, _, _ in kinds}
    lines.append("\n" + ", ".join(f"{n:,} {severity}{'s' * (n != 1)}" for severity, n in totals.items()))
    return "\n".join(lines)


def write_json(examination: Examination, path: Path) -> None:
    """Write all findings and statistics; docs/reliability.md describes the file."""
    content = {
        "datasets": examination.datasets,
        "counts": [{"severity": s, "kind": k, "count": n} for s, k, n in counts_by_kind(examination.findings)],
        "findings": as_json(examination.findings),
        "statistics": examination.statistics,
    }
    write_atomically(path, json.dumps(content, indent=1))


def _check(cfg: CfgNode, dataset: ReadDataset, table: ImageTable, start: int, stop: int) -> CheckedRecords:
    tested = dataset.name not in cfg.DATASETS.TRAIN
    flat = table.flat[start:stop]
    return check_records(cfg, dataset, table.infos[start:stop], table.orientations[start:stop], flat, tested)


def _add(examination: Examination, cfg: CfgNode, checked: CheckedRecords, parts: Sequence[Part]) -> None:
    dataset = checked.dataset
    examination.findings += dataset.findings + checked.findings
    examination.datasets[dataset.name] = {
        "split": "test" if checked.tested else "train",
        "format": dataset.format,
        "annotation file": dataset.json_file,
        "folder": _folder_of(dataset),
        "images": len(dataset.records),
    }
    if dataset.identity_names:
        statistics = identity_statistics(dataset.records, dataset.identity_names, checked.sizes)
    else:
        names = dataset.class_names
        statistics = dataset_statistics(cfg, dataset.records, checked.sizes, names, checked.tested)
    examination.statistics[dataset.name] = statistics
    identities = dataset.identity_names or ()
    if not parts or not (statistics.get("objects") or identities):
        return
    split = "test" if checked.tested else "train"
    usable = UsableDataset(dataset.name, split, checked.usable(), dataset.class_names, statistics, identities)
    for part in parts:
        findings, blocks = part(cfg, usable)
        examination.findings += findings
        examination.blocks += blocks


@contextmanager
def _quiet_readers() -> Iterator[None]:
    """The readers of data log what this module reports as findings."""
    readers = logging.getLogger("retinanet_ext.data")
    level = readers.level
    readers.setLevel(logging.ERROR)
    try:
        yield
    finally:
        readers.setLevel(level)


def _folder_of(dataset: ReadDataset) -> str | None:
    """The folder that all files of the dataset are in."""
    folders = {os.path.dirname(record["file_name"]) for record in dataset.records}
    folder = os.path.commonpath(folders) if folders and len({os.path.isabs(f) for f in folders}) == 1 else ""
    return folder if folder.strip(os.sep) else None


def _add_refusal(examination, refusal, names, datasets):
    """What refuses the config, unless a finding has said so already."""
    known = any(f.severity == ERROR for d in datasets for f in d.findings)
    known = known or any(finding.kind == SHARED for finding in examination.findings)
    if refusal is not None and not known:
        examination.findings.append(
            Finding(MISFIT, ERROR, ", ".join(names), None, None, None, refusal, "change the config, or the data")
        )


def _without_kind(finding):
    return str(finding).removeprefix(f"{finding.kind}: ")
