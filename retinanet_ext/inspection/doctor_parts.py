"""What `doctor data` examines beyond the checks of records: parts with a section of their own on the page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from retinanet_ext.d2 import CfgNode
from retinanet_ext.report.document import Block

from .findings import Finding


@dataclass(frozen=True)
class UsableDataset:
    """What training could use of a dataset: its records as the policies ``clip`` and ``drop`` leave them.

    ``split``: "train" or "test", the key of DATASETS that names it first.
    """

    name: str
    split: str
    records: list[dict]
    class_names: Sequence[str]


Part = Callable[[CfgNode, UsableDataset], tuple[list[Finding], list[Block]]]
"""Examines one dataset; returns findings, and blocks for the page (with a heading of their own)."""


def parts_for(weights: str | None) -> list[Part]:
    """The parts to run on each dataset with boxes.

    Args:
        weights: a checkpoint, for the parts that need a trained model.
    """
    return []
