"""Findings about pairs of images and about identities, within a dataset and between training and test data."""

from collections.abc import Sequence

import numpy as np

from retinanet_ext.d2 import CfgNode

from .dataset_reading import ReadDataset
from .findings import ERROR, WARNING, Finding
from .image_facts import ImageTable
from .near_duplicates import LEAK, OTHER_DATASET, SAME_DATASET, Twin, find_twins

IDENTICAL, NEAR = "identical images in", "near-duplicate images in"
TWO_IDENTITIES = "one picture under two identities"
SHARED = "identity in training and test data"
BOTH_SPLITS = "dataset in both DATASETS.TRAIN and DATASETS.TEST"
_ADVICE = {
    SAME_DATASET: "each picture once",
    LEAK: "no test picture in the training data: results on it are too good",
    OTHER_DATASET: "each picture once, over all datasets of a split",
}


def twin_findings(
    datasets: Sequence[ReadDataset], tested: Sequence[bool], table: ImageTable, repeats: np.ndarray
) -> list[tuple[Finding, str]]:
    """Findings about (nearly) identical images, each with the file of the other image.

    Args:
        datasets: with N records in all.
        tested: for each dataset, whether it is of the test data.
        table: of the images of all records, in order.
        repeats: bool ``(N,)``: records with the file of an earlier record of their dataset.
    """
    numbers = np.repeat(np.arange(len(datasets)), [len(dataset.records) for dataset in datasets])
    records = [record for dataset in datasets for record in dataset.records]
    twins = find_twins(table, numbers, tested, repeats)
    return [(_twin_finding(twin, datasets, numbers, records), records[twin.partner]["file_name"]) for twin in twins]


def identity_findings(cfg: CfgNode, datasets: Sequence[ReadDataset]) -> list[Finding]:
    """Identities that are in training and test data at once. Training refuses them unless a key allows them."""
    severity = WARNING if cfg.DATASETS.ALLOW_SHARED_IDENTITIES else ERROR
    trained = {name: d.name for d in datasets if d.name in cfg.DATASETS.TRAIN for name in d.identity_names}
    return [
        Finding(
            SHARED, severity, d.name, None, None, None, f"identity {name!r}, which is also in {trained[name]}",
            "divide the identities, with IDENTITIES or PART in DATASETS.CUSTOM",
        )  # fmt: skip
        for d in datasets if d.name in cfg.DATASETS.TEST for name in d.identity_names if name in trained
    ]  # fmt: skip


def split_findings(cfg: CfgNode) -> list[Finding]:
    """Datasets that are trained and tested on."""
    return [
        Finding(BOTH_SPLITS, WARNING, name, None, None, None, "all test images are trained on", "another test dataset")
        for name in dict.fromkeys(cfg.DATASETS.TEST)
        if name in cfg.DATASETS.TRAIN
    ]


def _twin_finding(twin: Twin, datasets, numbers, records):
    dataset, other = datasets[numbers[twin.image]], datasets[numbers[twin.partner]]
    record, partner = records[twin.image], records[twin.partner]
    kind = f"{IDENTICAL if twin.distance < 0 else NEAR} {twin.where}"
    how = "identical files" if twin.distance < 0 else f"{twin.distance} of 64 bits of the hash differ"
    found = f"the picture of {partner['file_name']} (image id {partner.get('image_id')}"
    found += f", {other.name}" * (other is not dataset) + f"); {how}"
    legal = _ADVICE[twin.where]
    names = [_identity(d, r) for d, r in ((dataset, record), (other, partner))]
    if None not in names and names[0] != names[1]:
        kind, legal = TWO_IDENTITIES, f"one identity; this record says {names[0]!r}, the other {names[1]!r}"
    return Finding(kind, WARNING, dataset.name, record["file_name"], record.get("image_id"), None, found, legal)


def _identity(dataset, record):
    number = record.get("identity")
    known = type(number) is int and 0 <= number < len(dataset.identity_names)
    return dataset.identity_names[number] if known else None
