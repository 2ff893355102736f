"""The quick look at anchor coverage when training starts, and its warning."""

import dataclasses
import logging
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from retinanet_ext.d2 import CfgNode

from .anchor_coverage import AnchorCoverage, CoverageGroup, coverage_of_objects, sampled_records
from .anchor_layout import anchor_layout, anchor_section
from .resized_boxes import object_arrays

COVERAGE_KEY = "DATASETS.MIN_ANCHOR_COVERAGE"
# Objects that the quick look samples: half a second for COCO on one core, and the share is exact to half a percent.
QUICK_OBJECTS = 10_000
# A class with this share of the objects is named if its coverage lies this far below that of all objects. (In an
# average over all objects, a rare class that the anchors miss does not show.)
CLASS_SHARE, CLASS_LAG = 0.05, 0.2

logger = logging.getLogger(__name__)


def quick_sample(cfg: CfgNode, records: Sequence[dict]) -> list[dict]:
    """The records that :func:`warn_of_poor_coverage` looks at: [] if DATASETS.MIN_ANCHOR_COVERAGE is 0 or the model has
    no anchors."""
    if not cfg.DATASETS.MIN_ANCHOR_COVERAGE or anchor_section(cfg) is None:
        return []
    return list(sampled_records(records, QUICK_OBJECTS, seed=0))


def warn_of_poor_coverage(
    cfg: CfgNode, sample: Sequence[dict], of_images: int, backbone: nn.Module | None = None
) -> None:
    """Log the anchor coverage of a sample, as a warning if it is poor. A failure is logged and goes no further.

    Args:
        cfg: of the run; its ``config.yaml`` is named in the warning.
        sample: of :func:`quick_sample`.
        of_images: images of the data that the sample was drawn from.
        backbone: of the run's model.
    """
    start = time.perf_counter()
    try:
        layout = anchor_layout(cfg, backbone) if sample else None
        objects = object_arrays(sample) if layout is not None else None
        if objects is None or not len(objects.boxes):
            return
        coverage = coverage_of_objects(cfg, layout, objects, cfg.MODEL.CLASS_NAMES)
        coverage = dataclasses.replace(coverage, of_images=of_images)
    except Exception as error:  # any exception: the run itself does not need these numbers
        logger.warning("anchor coverage could not be computed: %s: %s", type(error).__name__, error)
        return
    text = summary(coverage)
    # ATSS has no fixed IoU: it takes the best anchors of each object, however small their IoU is.
    faults = poor_groups(coverage, cfg.DATASETS.MIN_ANCHOR_COVERAGE) if layout.threshold is not None else []
    if not faults:
        logger.info("%s (%.1f s)", text, time.perf_counter() - start)
        return
    config = shlex.quote(str(Path(cfg.OUTPUT_DIR) / "config.yaml"))
    logger.warning(
        "%s Few anchors fit %s: such objects are learned badly or not at all. See it by size, ratio and class, with "
        "anchors that fit better, by\n  retinanet-ext doctor data --config-file %s\n(%s 0 turns this warning off.)",
        text, "; ".join(faults), config, COVERAGE_KEY,
    )  # fmt: skip


def summary(coverage: AnchorCoverage) -> str:
    """One sentence about all objects."""
    lengths = coverage.short_sides
    sizes = f"{min(lengths)}" if len(set(lengths)) == 1 else f"{min(lengths)} to {max(lengths)}"
    is_sample = coverage.num_images < coverage.of_images
    of = f" (in {coverage.num_images:,} images, drawn from {coverage.of_images:,})" if is_sample else ""
    return (
        f"Anchor coverage: {100 * coverage.share():.1f} % of {coverage.num_objects:,} objects{of} have an anchor with "
        f"an IoU of at least {coverage.threshold:g}, after the resize to a short side of {sizes}."
    )


def poor_groups(coverage: AnchorCoverage, least: float) -> list[str]:
    """Groups of objects that the anchors miss, as text; empty if coverage is good.

    Args:
        coverage: of the data.
        least: DATASETS.MIN_ANCHOR_COVERAGE: the share of all objects from which on coverage is good.
    """
    found = []
    if coverage.share() < least:
        for groups in (coverage.by_resized_size, coverage.by_ratio):
            filled = [group for group in groups if group.objects]
            missed = max(filled, key=lambda group: group.objects * (1 - coverage.share(group)))
            found.append(_described(missed, coverage))
        found[0] += " after the resize"
    for group in coverage.by_class:
        is_large = group.objects >= CLASS_SHARE * coverage.total.objects
        if is_large and coverage.share(group) < coverage.share() - CLASS_LAG:
            found.append(f"the class {_described(group, coverage)}")
    return found


def _described(group: CoverageGroup, coverage: AnchorCoverage) -> str:
    return f"{group.name} ({100 * coverage.share(group):.0f} % of {group.objects:,.0f} objects)"
