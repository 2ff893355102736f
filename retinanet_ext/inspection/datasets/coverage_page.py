"""Anchor coverage as a part of `doctor data`: findings, tables and drawings, and anchors that fit better."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Drawing

from retinanet_ext.d2 import CfgNode
from retinanet_ext.data.doctor.anchor_coverage import AnchorCoverage, CoverageGroup, best_ious, sampled_records
from retinanet_ext.data.doctor.anchor_layout import anchor_layout
from retinanet_ext.data.doctor.anchor_proposal import AnchorProposal, propose_anchors
from retinanet_ext.data.doctor.coverage_warning import poor_groups, summary
from retinanet_ext.data.doctor.record_checks import annotation_name
from retinanet_ext.data.doctor.resized_boxes import object_arrays, resized_boxes
from retinanet_ext.report.document import Block, Command, Figure, Heading, Paragraph, Table
from retinanet_ext.report.formats import NOTHING
from retinanet_ext.report.svg_plots import OURS, PAPER, QUIET, STYLE, to_svg

from .doctor_parts import UsableDataset
from .findings import NOTE, WARNING, Finding

POOR = "few anchors fit the objects"
UNFIT = "object that no anchor fits (the worst ones)"
NOT_COMPUTED = "anchor coverage that cannot be computed"
# More objects are sampled, which bounds memory to about 200 MB; the shares are then exact to a tenth of a percent.
MAX_OBJECTS = 200_000
# Below this share of all objects, coverage is poor also where the config turns the warning off.
_LEAST = 0.8
_SHOWN_OBJECTS = 12
_CLASSES = 100
_STATISTICS = "anchor coverage"


def coverage_part(cfg: CfgNode, dataset: UsableDataset) -> tuple[list[Finding], list[Block]]:
    """Coverage of a training set, and anchors that fit it better; nothing for test sets and models without anchors.

    Adds ``anchor coverage`` to the statistics: the coverage before, and if there is a proposal, it and its coverage.
    """
    if dataset.split != "train":
        return [], []
    try:
        proposal = propose_anchors(cfg, dataset.records, dataset.class_names, max_objects=MAX_OBJECTS)
    except Exception as error:  # any exception: of a config that builds no model, too
        found = f"{type(error).__name__}: {error}"
        return [_about(dataset, NOT_COMPUTED, WARNING, found, "a config from which the model can be built")], []
    if proposal is None:
        return [], []
    dataset.statistics[_STATISTICS] = as_json(proposal)
    findings = []
    poor = poor_groups(proposal.before, cfg.DATASETS.MIN_ANCHOR_COVERAGE or _LEAST)
    if poor:
        found = f"{summary(proposal.before)} Few fit {'; '.join(poor)}"
        findings.append(_about(dataset, POOR, WARNING, found, _advice(proposal)))
        findings += worst_objects(cfg, dataset)
    return findings, coverage_blocks(proposal, dataset.name)


def as_json(proposal: AnchorProposal) -> dict:
    """Coverage and proposal as JSON values."""
    content = {"config": proposal.before.as_dict()}
    if not proposal.is_default:
        content |= {"proposed": proposal.after.as_dict(), "overrides": proposal.overrides}
    return content


def coverage_blocks(proposal: AnchorProposal, name: str) -> list[Block]:
    """The section of the page.

    Args:
        proposal: of :func:`~retinanet_ext.data.doctor.anchor_proposal.propose_anchors`.
        name: of the dataset.
    """
    before, after = proposal.before, None if proposal.is_default else proposal.after
    blocks: list[Block] = [Heading(f"Anchor coverage: {name}"), Paragraph(_explained(before))]
    both = [before] if after is None else [before, after]
    blocks.append(_table("", [("all objects", [coverage.total for coverage in both])], before))
    for what, kind in (
        ("size in the image", "by_size"), ("size after the resize", "by_resized_size"), ("height : width", "by_ratio"),
        ("class", "by_class"),
    ):  # fmt: skip
        blocks.append(_table(what, _rows(kind, both), before))
    curves = [("config", before)] + ([("proposed", after)] if after is not None else [])
    for kind, caption in (("side_curve", "Side after the resize, pixels"), ("ratio_curve", "Height / width")):
        svg = _draw([(label, getattr(coverage, kind), coverage) for label, coverage in curves], caption)
        blocks.append(Figure(f"coverage-{kind}-{name}.svg", f"Share of the objects with an anchor: {caption}", svg))
    if after is None:
        text = "No anchors were found that fit these objects better; the config's own are as good."
        return [*blocks, Paragraph(text)]
    return [
        *blocks,
        Paragraph(
            f"Anchors for these data, as many as before, so that checkpoints fit: {_change(proposal)}. To train with "
            "them, add to the command"
        ),
        Command(proposal.command_line),
        Paragraph("or to the config file"),
        Command(proposal.yaml),
    ]


def worst_objects(cfg: CfgNode, dataset: UsableDataset) -> list[Finding]:
    """The objects whose best anchor is worst, for the pictures; only one of each image."""
    layout = anchor_layout(cfg)
    records = sampled_records(dataset.records, MAX_OBJECTS // 10, seed=0)
    objects = object_arrays(records)
    best = np.zeros(len(objects.boxes))
    for view in resized_boxes(cfg, objects):
        best = np.maximum(best, best_ious(layout, view, objects.image))
    order = np.argsort(best, kind="stable")
    _, first = np.unique(objects.image[order], return_index=True)
    findings = []
    for index in order[np.sort(first)][:_SHOWN_OBJECTS]:
        if best[index] >= layout.main_threshold:
            break
        record = records[objects.image[index]]
        place = int(objects.annotation[index])
        x0, y0, x1, y1 = box = tuple(objects.boxes[index].tolist())
        found = f"a box of {x1 - x0:.4g} x {y1 - y0:.4g} pixels, whose best anchor has an IoU of {best[index]:.2f}"
        findings.append(
            Finding(
                UNFIT, NOTE, dataset.name, record["file_name"], record.get("image_id"),
                annotation_name(place, record["annotations"][place], record), found,
                f"an IoU of at least {layout.main_threshold:g}", box,
            )  # fmt: skip
        )
    return findings


def _about(dataset, kind, severity, found, legal) -> Finding:
    return Finding(kind, severity, dataset.name, None, None, None, found, legal)


def _advice(proposal: AnchorProposal) -> str:
    larger = "larger images (INPUT.MIN_SIZE_TRAIN, MIN_SIZE_TEST) where objects are smaller than the finest stride"
    if proposal.is_default:
        return f"no other anchors were found that fit better; {larger}, or fewer and larger objects"
    return f"{_change(proposal)} with {proposal.command_line}; {larger}"


def _change(proposal: AnchorProposal) -> str:
    before, after = 100 * proposal.before.share(), 100 * proposal.after.share()
    return f"coverage rises from {before:.1f} to {after:.1f} %"


def _explained(coverage: AnchorCoverage) -> str:
    crops = " and random crops" if coverage.crops else ""
    images = f"{coverage.num_images:,} images"
    if coverage.num_images < coverage.of_images:
        images += f", drawn from {coverage.of_images:,}"
    return (
        f"{summary(coverage)} The numbers are means over the sizes{crops} that training draws, for {images}. An object "
        "that no anchor overlaps enough is learned badly or not at all."
    )


def _rows(kind: str, coverages: Sequence[AnchorCoverage]) -> list[tuple[str, list[CoverageGroup]]]:
    groups = [getattr(coverage, kind) for coverage in coverages]
    filled = [index for index, group in enumerate(groups[0]) if group.objects]
    if kind == "by_class":
        filled = sorted(filled, key=lambda index: coverages[0].share(groups[0][index]))[:_CLASSES]
    return [(groups[0][index].name, [of_one[index] for of_one in groups]) for index in filled]


def _table(what: str, rows, coverage: AnchorCoverage) -> Table:
    labels = ["config"] if not rows or len(rows[0][1]) == 1 else ["config", "proposed"]
    header = [what, "objects"]
    for label in labels:
        header += [f"{label}: IoU {threshold:g}" for threshold in coverage.thresholds] + [f"{label}: mean IoU"]
    lines = []
    for name, groups in rows:
        line = [name, f"{groups[0].objects:,.0f}"]
        for group in groups:
            line += [_percent(share) for share in group.covered]
            line.append(NOTHING if group.mean_best_iou is None else f"{group.mean_best_iou:.2f}")
        lines.append(line)
    return Table(header, lines)


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.1f} %"


def _draw(curves, label: str) -> str:
    """Share of the objects with an anchor over size or ratio, a line for each; grey bars: how many objects."""
    with matplotlib.rc_context(STYLE):
        figure = Drawing(figsize=(4.8, 2.5), layout="constrained")
        axes = figure.subplots()
        groups = curves[0][1]
        x, counts = [float(group.name) for group in groups], np.array([group.objects for group in groups])
        axes.bar(x, 100 * counts / counts.max(), width=[0.3 * value for value in x], color=QUIET, alpha=0.35)
        for (name, groups, coverage), color in zip(curves, (PAPER, OURS)):
            points = [(float(group.name), 100 * coverage.share(group)) for group in groups]
            axes.plot(*zip(*points), "o-", color=color, markersize=3, linewidth=1.2, label=name)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set(ylim=(0, 104), xlabel=f"{label} (grey: number of objects)", ylabel="%")
        axes.grid(True, axis="y")
        axes.legend(loc="lower right")
        return to_svg(figure)
