"""What `doctor data` examines beyond the checks of records: parts with a section of their own on the page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from retinanet_ext.d2 import CfgNode
from retinanet_ext.report.document import Block

from .findings import Finding


@dataclass(frozen=True)
class UsableDataset:
    """What training could use of a dataset: its records as the policies ``clip`` and ``drop`` leave them.

    ``split``: "train" or "test", the key of DATASETS that names it first. ``statistics``: the dataset's entry in
    findings.json, to which parts may add. ``identity_names``: of data with identities instead of boxes.
    """

    name: str
    split: str
    records: list[dict]
    class_names: Sequence[str]
    statistics: dict[str, Any] = field(default_factory=dict)
    identity_names: Sequence[str] = ()


Part = Callable[[CfgNode, UsableDataset], tuple[list[Finding], list[Block]]]
"""Examines one dataset; returns findings, and blocks for the page (with a heading of their own)."""


def parts_for(weights: str | None) -> list[Part]:
    """The parts to run on each dataset with boxes or identities.

    Args:
        weights: a checkpoint, for the parts that need a trained model.
    """
    # Imported here, because these modules import the types above.
    from .coverage_page import coverage_part
    from .label_error_part import label_error_part

    return [coverage_part, *([label_error_part(weights)] if weights else [])]
