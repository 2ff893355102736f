"""Anchor coverage: which share of the objects has an anchor that training can match, after the config's real resize.

An object whose best anchor overlaps it little is learned badly or not at all, the commonest reason for an AP of 0.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from retinanet_ext.d2 import CfgNode
from retinanet_ext.ops.grid_anchors import best_grid_iou

from .anchor_layout import AnchorLayout, anchor_layout
from .resized_boxes import ObjectArrays, ResizedBoxes, object_arrays, resized_boxes, short_sides

# Upper bounds of COCO's sizes, in square pixels.
SIZES = (("small (below 32 x 32)", 32.0**2), ("medium", 96.0**2), ("large (from 96 x 96)", np.inf))
# Upper bounds of height / width.
RATIOS = (
    ("wider than 3 : 1", 1 / 3), ("wider than 3 : 2", 2 / 3), ("about square", 1.5), ("taller than 3 : 2", 3.0),
    ("taller than 3 : 1", np.inf),
)  # fmt: skip
# Steps of the curves: two for each doubling of the side, or of the ratio.
_STEPS_PER_OCTAVE = 2


@dataclasses.dataclass(frozen=True)
class CoverageGroup:
    """Some of the objects.

    Attributes:
        name: what they have in common.
        objects: their number. Sizes after the resize differ from draw to draw, and so this is a mean over draws.
        covered: the share of them with an anchor, 0 to 1, for each of the thresholds; None without objects.
        mean_best_iou: mean of the IoU of each with its best anchor; None without objects.
    """

    name: str
    objects: float
    covered: tuple[float | None, ...]
    mean_best_iou: float | None


@dataclasses.dataclass(frozen=True)
class AnchorCoverage:
    """How well anchors fit objects. All shares are means over the draws of resize and crop.

    Attributes:
        num_images, num_objects: that were looked at; objects without crowds.
        of_images: images of the data, more than ``num_images`` if these are a sample.
        short_sides: lengths that images were resized to; 0: not resized.
        crops: whether images were cropped at random, as INPUT.CROP says.
        thresholds: IoUs of ``covered``, ascending.
        threshold: the one among them that says whether an object can be learned.
        total: all objects.
        by_size, by_resized_size: COCO's sizes, of boxes in the image and in the network's input.
        by_ratio, by_class: by height / width, and by class.
        side_curve, ratio_curve: finer groups, by the square root of the area in the network's input and by height /
            width; their names are the numbers at the middle of the group.
    """

    num_images: int
    num_objects: int
    of_images: int
    short_sides: tuple[int, ...]
    crops: bool
    thresholds: tuple[float, ...]
    threshold: float
    total: CoverageGroup
    by_size: tuple[CoverageGroup, ...]
    by_resized_size: tuple[CoverageGroup, ...]
    by_ratio: tuple[CoverageGroup, ...]
    by_class: tuple[CoverageGroup, ...]
    side_curve: tuple[CoverageGroup, ...]
    ratio_curve: tuple[CoverageGroup, ...]

    def share(self, group: CoverageGroup | None = None) -> float | None:
        """The share of a group (None: of all objects) that is covered at ``threshold``; None if it has no objects."""
        return (group or self.total).covered[self.thresholds.index(self.threshold)]

    def as_dict(self) -> dict:
        """All attributes, for JSON."""
        return dataclasses.asdict(self)


def anchor_coverage(
    cfg: CfgNode,
    records: Sequence[dict],
    class_names: Sequence[str] = (),
    *,
    max_objects: int | None = None,
    seed: int = 0,
) -> AnchorCoverage | None:
    """Anchor coverage of dataset dicts for the model and the resize of a config.

    Every image is padded as in a batch of its own. The best IoU is exact: over all anchors of all levels. Of a random
    crop only the objects count of which it leaves at least half.

    Args:
        cfg: INPUT says how images are resized in training, MODEL where the anchors are.
        records: checked dataset dicts.
        class_names: names of the classes; without, their numbers.
        max_objects: a random sample of images with about this many objects is enough; None: all.
        seed: of the sample and of the crops.

    Returns:
        None for a model without anchors (see :func:`~.anchor_layout.anchor_layout`), or without objects.
    """
    layout = anchor_layout(cfg)
    if layout is None:
        return None
    objects = object_arrays(sampled_records(records, max_objects, seed))
    if not len(objects.boxes):
        return None
    coverage = coverage_of_objects(cfg, layout, objects, class_names, seed)
    return dataclasses.replace(coverage, of_images=len(records))


def sampled_records(records: Sequence[dict], max_objects: int | None, seed: int) -> Sequence[dict]:
    """Records in a random order, up to ``max_objects`` annotations; all of them, in order, if they have no more."""
    counts = np.array([len(record.get("annotations") or ()) for record in records])
    if max_objects is None or counts.sum() <= max_objects:
        return records
    order = np.random.default_rng(seed).permutation(len(records))
    enough = int(np.searchsorted(counts[order].cumsum(), max_objects)) + 1
    return [records[index] for index in order[:enough]]


def coverage_of_objects(
    cfg: CfgNode, layout: AnchorLayout, objects: ObjectArrays, class_names: Sequence[str] = (), seed: int = 0
) -> AnchorCoverage:
    """As :func:`anchor_coverage`, for a known layout and at least one object."""
    rows = _rows(layout, objects, resized_boxes(cfg, objects, seed))
    groups = _Groups(rows, layout.thresholds)
    names = [name for name, _ in SIZES]
    classes = max(len(class_names), int(objects.classes.max()) + 1)
    class_names = [*class_names, *(f"class {index}" for index in range(len(class_names), classes))]
    return AnchorCoverage(
        num_images=len(objects.sizes),
        num_objects=len(objects.boxes),
        of_images=len(objects.sizes),
        short_sides=tuple(short_sides(cfg)),
        crops=bool(cfg.INPUT.CROP.ENABLED),
        thresholds=layout.thresholds,
        threshold=layout.main_threshold,
        total=groups.of("all", slice(None)),
        by_size=groups.by(names, _bin(rows.area, SIZES)),
        by_resized_size=groups.by(names, _bin(rows.resized_area, SIZES)),
        by_ratio=groups.by([name for name, _ in RATIOS], _bin(rows.ratio, RATIOS)),
        by_class=groups.by(class_names, rows.category),
        side_curve=groups.curve(np.sqrt(rows.resized_area)),
        ratio_curve=groups.curve(rows.ratio),
    )


def best_ious(layout: AnchorLayout, view: ResizedBoxes, image: np.ndarray) -> np.ndarray:
    """IoU of every object with its best anchor, ``(N,)`` float32; ``image``: the image of each object, ``(N,)``."""
    boxes, size = torch.from_numpy(view.boxes), torch.from_numpy(view.sizes)[torch.from_numpy(image)]
    side = torch.full_like(size, layout.square_size) if layout.square_size else size
    padded = -(-side // layout.size_divisibility) * layout.size_divisibility
    bounds = None
    if layout.boundary >= 0:
        bounds = torch.cat([torch.full_like(size, -layout.boundary), size + layout.boundary], dim=1).float()
    best = torch.zeros(len(boxes))
    for cells, shape in zip(layout.cells, layout.shapes, strict=True):
        grid = -(-padded // shape.stride)
        best = torch.maximum(best, best_grid_iou(boxes, cells, shape.stride, layout.offset, grid, bounds))
    return best.numpy()


@dataclasses.dataclass(frozen=True)
class _Rows:
    """One entry for each object in each draw in which it is visible; ``draws`` is the number of draws."""

    draws: int
    best: np.ndarray
    area: np.ndarray
    resized_area: np.ndarray
    ratio: np.ndarray
    category: np.ndarray


def _rows(layout, objects, views) -> _Rows:
    columns: list[tuple] = []
    for view in views:
        seen = view.visible
        wh = view.boxes[seen, 2:].astype(np.float64) - view.boxes[seen, :2]
        original = (objects.boxes[:, 2:] - objects.boxes[:, :2])[seen]
        best = best_ious(layout, view, objects.image)[seen]
        columns.append((best, original.prod(axis=1), wh.prod(axis=1), wh[:, 1] / wh[:, 0], objects.classes[seen]))
    return _Rows(len(columns), *(np.concatenate(column) for column in zip(*columns)))


def _bin(values: np.ndarray, bounds) -> np.ndarray:
    return np.searchsorted([bound for _, bound in bounds], values, side="right").clip(max=len(bounds) - 1)


class _Groups:
    def __init__(self, rows: _Rows, thresholds: Sequence[float]):
        self.rows, self.thresholds = rows, thresholds

    def of(self, name: str, chosen) -> CoverageGroup:
        best = self.rows.best[chosen]
        if not len(best):
            return CoverageGroup(name, 0.0, (None,) * len(self.thresholds), None)
        # In float32, like the matchers: an IoU of exactly the threshold counts.
        covered = tuple(float((best >= np.float32(threshold)).mean()) for threshold in self.thresholds)
        return CoverageGroup(name, len(best) / self.rows.draws, covered, float(best.mean(dtype=np.float64)))

    def by(self, names: Sequence[str], index: np.ndarray) -> tuple[CoverageGroup, ...]:
        return tuple(self.of(name, index == number) for number, name in enumerate(names))

    def curve(self, values: np.ndarray) -> tuple[CoverageGroup, ...]:
        step = np.floor(np.log2(values) * _STEPS_PER_OCTAVE).astype(np.int64)
        return tuple(
            self.of(f"{2 ** ((number + 0.5) / _STEPS_PER_OCTAVE):.4g}", step == number) for number in np.unique(step)
        )
