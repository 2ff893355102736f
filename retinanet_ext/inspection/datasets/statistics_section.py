"""The statistics of datasets as blocks of a page: tables and drawings."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MaxNLocator

from retinanet_ext.report.document import Block, Figure, Heading, Paragraph, Table
from retinanet_ext.report.formats import NOTHING
from retinanet_ext.report.svg_plots import OURS, STYLE, to_svg

from .data_statistics import COCO_SIZES, QUANTILES

_CLASSES_IN_TABLE, _CLASSES_IN_DRAWING = 100, 30
_WIDTH = 4.8
_LOG_TICKS = {
    "aspect ratio, histogram": (0.125, 0.25, 0.5, 1, 2, 4, 8),
    "side after the resize, histogram": (4, 8, 16, 32, 64, 128, 256, 512, 1024),
}


def statistics_blocks(examination: Any) -> list[Block]:
    """All statistics of an examination: overview, classes, sizes and drawings of each dataset."""
    statistics = {name: found for name, found in examination.statistics.items() if found["images"]}
    if not statistics:
        return []
    blocks: list[Block] = [Heading("Statistics"), _overview(statistics)]
    with_boxes = {name: found for name, found in statistics.items() if found.get("objects")}
    if with_boxes:
        blocks += [Heading("Classes"), *_class_blocks(with_boxes)]
    for name, found in statistics.items():
        blocks += [Heading(f"Sizes and shapes: {name}"), _quantile_table(found), *_drawings(name, found)]
    return blocks


def _overview(statistics: Mapping[str, dict]) -> Table:
    lines = ["images", "images without objects", "objects", "crowds", "identities", "identities with one image"]
    rows = [[line, *(_count(found.get(line)) for found in statistics.values())] for line in lines]
    for size, (low, high) in COCO_SIZES.items():
        what = f"{size} objects (area {low:g} to {high:g} pixels)" if np.isfinite(high) else f"{size} objects (larger)"
        rows.append([what, *(_count(found.get("objects by size", {}).get(size)) for found in statistics.values())])
    different = [_count(found["image sizes"]["different"]) for found in statistics.values()]
    rows.append(["different image sizes", *different])
    return Table(["", *statistics], [row for row in rows if set(row[1:]) != {NOTHING}])


def _class_blocks(statistics: Mapping[str, dict]) -> list[Block]:
    names = list(dict.fromkeys(name for found in statistics.values() for name in found["classes"]))
    total = {n: sum(f["classes"].get(n, {}).get("objects", 0) for f in statistics.values()) for n in names}
    names.sort(key=lambda name: -total[name])
    header, rows = ["class"], []
    for dataset in statistics:
        header += [dataset, "small", "medium", "large"]
    for name in names[:_CLASSES_IN_TABLE]:
        row = [name]
        for found in statistics.values():
            counts = found["classes"].get(name, {})
            row += [_count(counts.get(key)) for key in ("objects", *COCO_SIZES)]
        rows.append(row)
    blocks: list[Block] = [Table(header, rows)]
    if len(names) > _CLASSES_IN_TABLE:
        text = f"The {_CLASSES_IN_TABLE} most frequent of {len(names)} classes; findings.json has all."
        blocks.append(Paragraph(text))
    for dataset, found in statistics.items():
        counts = [(name, found["classes"][name]["objects"]) for name in names if name in found["classes"]]
        shown = counts[:_CLASSES_IN_DRAWING]
        more = f", the {len(shown)} most frequent" if len(counts) > len(shown) else ""
        blocks.append(Figure(f"{dataset}_classes.svg", f"{dataset}: objects by class{more}", draw_counts(shown)))
    return blocks


def _quantile_table(found: dict) -> Table:
    rows = []
    for line in ("boxes per image", "images per identity", "aspect ratio (height / width)", "side after the resize"):
        if found.get(line):
            rows.append([line, *(f"{found[line][key]:.3g}" for key in (*QUANTILES, "mean"))])
    for side in ("width", "height"):
        if found["image sizes"][side]:
            values = found["image sizes"][side]
            rows.append([f"{side} of the images", *(f"{values[key]:,.0f}" for key in (*QUANTILES, "mean"))])
    return Table(["", *QUANTILES, "mean"], rows)


def _drawings(name: str, found: dict) -> list[Block]:
    blocks: list[Block] = []
    for key, axis in (
        ("boxes per image, histogram", "objects in an image"),
        ("images per identity, histogram", "images of an identity"),
    ):
        if len(found.get(key) or ()) > 1:
            drawing = draw_histogram(found[key], axis)
            blocks.append(Figure(f"{name}_{key[:6]}.svg", key.removesuffix(", histogram"), drawing))
    for key, axis in (
        ("side after the resize, histogram", "square root of the area, pixels after the resize"),
        ("aspect ratio, histogram", "height / width"),
    ):
        if found.get(key):
            drawing = draw_log_histogram(found[key], axis, _LOG_TICKS[key])
            blocks.append(Figure(f"{name}_{key[:6]}.svg", key.removesuffix(", histogram"), drawing))
    return blocks


def draw_counts(counts: Sequence[tuple[str, int]]) -> str:
    """A bar with its number for each name."""
    with matplotlib.rc_context({**STYLE, "font.size": 8}):
        figure = Drawing(figsize=(_WIDTH, 0.22 * len(counts) + 0.3), layout="constrained")
        axes = figure.subplots()
        axes.barh(range(len(counts)), [count for _, count in counts], color=OURS, height=0.7)
        names = [name if len(name) <= 24 else f"{name[:23]}…" for name, _ in counts]
        # Names are data: a dollar sign must not start a formula.
        axes.set_yticks(range(len(counts)), names, parse_math=False)
        for place, (_, count) in enumerate(counts):
            axes.annotate(f"{count:,}", (count, place), (3, 0), textcoords="offset points", va="center", fontsize=7.5)
        axes.set(ylim=(len(counts) - 0.5, -0.5), xticks=[], xlim=(0, 1.15 * max([1, *(c for _, c in counts)])))
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(left=False)
        return to_svg(figure)


def draw_histogram(counts: Sequence[tuple[int, int]], label: str) -> str:
    """Counts of whole numbers; many of them are put together in bins."""
    values, weights = zip(*counts)
    step = max(1, -(-(max(values) - min(values) + 1) // 40))
    edges = np.arange(min(values), max(values) + step + 1, step) - 0.5
    with matplotlib.rc_context(STYLE):
        figure = Drawing(figsize=(_WIDTH, 2.4), layout="constrained")
        axes = figure.subplots()
        axes.stairs(np.histogram(values, edges, weights=weights)[0], edges, color=OURS, fill=True, alpha=0.6)
        axes.set(xlabel=label, ylabel="images" if label.startswith("objects") else "identities", ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        return to_svg(figure)


def draw_log_histogram(bins: Sequence[tuple[float, float, int]], label: str, ticks: Sequence[float]) -> str:
    """Counts in bins of a logarithmic axis: ``(left edge, right edge, count)``."""
    with matplotlib.rc_context(STYLE):
        figure = Drawing(figsize=(_WIDTH, 2.4), layout="constrained")
        axes = figure.subplots()
        for left, right, count in bins:
            axes.fill_between((left, right), 0, count, color=OURS, alpha=0.6, linewidth=0)
        axes.set_xscale("log")
        low, high = bins[0][0], bins[-1][1]
        shown = [tick for tick in ticks if low <= tick <= high] or [low, high]
        axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
        axes.set_xticks([], minor=True)
        axes.set(xlabel=label, ylabel="objects", ylim=(0, None))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        return to_svg(figure)


def _count(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"
