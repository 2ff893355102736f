"""Anchors proposed for a dataset: sizes and ratios that fit its objects better, as an override of the config.

The search changes numbers only: as many levels, sizes and ratios as before, so that checkpoints still fit.
"""

import dataclasses
import itertools
import shlex
from collections.abc import Callable, Sequence

import numpy as np

from retinanet_ext.d2 import CfgNode

from .anchor_coverage import AnchorCoverage, best_ious, coverage_of_objects, sampled_records
from .anchor_layout import AnchorLayout, anchor_layout
from .resized_boxes import ObjectArrays, object_arrays, resized_boxes

SIZES_KEY, RATIOS_KEY = "MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"
# A proposal must raise the share of all objects by GAIN, or that of a class with at least CLASS_OBJECTS objects by
# CLASS_GAIN, and may lower neither by as much. Otherwise the config's own anchors are as good.
GAIN, CLASS_GAIN, CLASS_OBJECTS = 0.01, 0.1, 10
# The search looks at this many objects, in this many draws of the resize.
_SEARCH_OBJECTS, _SEARCH_DRAWS = 1500, 3
# First all combinations of these: factors of all sizes, in octaves, and of the distances between sizes.
_SCALES, _STRETCHES = np.arange(-4, 2.01, 0.25), (0.7, 0.85, 1.0, 1.15, 1.3)
# Then single numbers change by these steps, as long as it helps.
_STEPS, _MAX_SWEEPS = (0.25, 0.125, 0.0625), 4
# A change of a single number must gain this much.
_LEAST_GAIN = 5e-4


@dataclasses.dataclass(frozen=True)
class AnchorProposal:
    """Anchors for a dataset.

    Attributes:
        sizes, ratios: values of MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_RATIOS; the config's own if ``is_default``.
        is_default: whether no others were found that are better.
        before, after: the coverage of all objects that were given, with the config's anchors and with these.
    """

    sizes: list[list[float]]
    ratios: list[list[float]]
    is_default: bool
    before: AnchorCoverage
    after: AnchorCoverage

    @property
    def overrides(self) -> list[str]:
        """Words for ``load_config`` and the command line: key, value, key, value."""
        return [SIZES_KEY, repr(self.sizes), RATIOS_KEY, repr(self.ratios)]

    @property
    def command_line(self) -> str:
        """The overrides as text for a shell."""
        return shlex.join(self.overrides)

    @property
    def yaml(self) -> str:
        """The overrides as part of a config file."""
        rows = "".join(f"      - {row}\n" for row in self.sizes)
        return f"MODEL:\n  ANCHOR_GENERATOR:\n    SIZES:\n{rows}    ASPECT_RATIOS: {self.ratios}\n"


def propose_anchors(
    cfg: CfgNode,
    records: Sequence[dict],
    class_names: Sequence[str] = (),
    *,
    max_objects: int | None = None,
    seed: int = 0,
) -> AnchorProposal | None:
    """Search for anchors under which more objects of dataset dicts have an anchor, classes counted equally too.

    Args:
        cfg: the config whose anchors are to be improved.
        records: checked dataset dicts.
        class_names: for the coverage by class.
        max_objects: bounds the objects that coverage is stated for, as in :func:`~.anchor_coverage.anchor_coverage`.
        seed: the same seed gives the same proposal.

    Returns:
        None where :func:`~.anchor_coverage.anchor_coverage` gives None.
    """
    layout = anchor_layout(cfg)
    sample = sampled_records(records, max_objects, seed)
    objects = object_arrays(sample) if layout is not None else None
    if objects is None or not len(objects.boxes):
        return None
    objective = _objective(cfg, layout, object_arrays(sampled_records(sample, _SEARCH_OBJECTS, seed)), seed)
    start = _Anchors.of(cfg)
    found = _best_anchors(start, objective)

    def coverage(candidate: AnchorLayout) -> AnchorCoverage:
        stated = coverage_of_objects(cfg, candidate, objects, class_names, seed)
        return dataclasses.replace(stated, of_images=len(records))

    before = after = coverage(layout)
    if found is not start:
        after = coverage(layout.with_anchors_of(found.written_to(_copy(cfg))))
    if found is not start and _is_better(before, after):
        return AnchorProposal(*found.lists(), is_default=False, before=before, after=after)
    anchors = cfg.MODEL.ANCHOR_GENERATOR
    own = (_rows(anchors.SIZES), _rows(anchors.ASPECT_RATIOS))
    return AnchorProposal(*own, is_default=True, before=before, after=before)


@dataclasses.dataclass(frozen=True)
class _Anchors:
    """Logarithms to the base 2 of sizes and ratios, one array for each list of the config."""

    sizes: tuple[np.ndarray, ...]
    ratios: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, cfg: CfgNode) -> "_Anchors":
        anchors = cfg.MODEL.ANCHOR_GENERATOR
        return cls(*(tuple(np.log2(row) for row in _rows(given)) for given in (anchors.SIZES, anchors.ASPECT_RATIOS)))

    def lists(self) -> tuple[list[list[float]], list[list[float]]]:
        """Sizes and ratios as the config has them."""
        return tuple([[float(f"{2**v:.4g}") for v in row] for row in rows] for rows in (self.sizes, self.ratios))

    def written_to(self, cfg: CfgNode) -> CfgNode:
        """The config, which is changed in place."""
        cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = self.lists()
        return cfg

    def scaled(self, octaves: float, stretch: float) -> "_Anchors":
        """All sizes times 2^octaves, and their distances on a logarithmic scale times ``stretch``."""
        middle = np.mean(np.concatenate(self.sizes))
        sizes = tuple(middle + stretch * (row - middle) + octaves for row in self.sizes)
        return dataclasses.replace(self, sizes=sizes)

    def neighbours(self, step: float):
        """Anchors that differ in one respect: all sizes, the sizes of a level, all ratios or one of them."""
        for sign, stretch in itertools.product((step, -step), (1.0, 1 - step / 2, 1 + step / 2)):
            yield self.scaled(sign, stretch)
        for sign in (step, -step):
            yield self.scaled(0.0, 1 + sign / 2)
            yield dataclasses.replace(self, ratios=tuple(row + sign for row in self.ratios))
            yield dataclasses.replace(self, ratios=tuple(row * (1 + sign) for row in self.ratios))
            for name in ("sizes", "ratios"):
                yield from self._with_one_moved(name, sign)

    def _with_one_moved(self, name: str, by: float):
        rows = getattr(self, name)
        if name == "sizes" and len(rows) > 1:
            moves = [(index, slice(None)) for index in range(len(rows))]
        else:
            moves = [(index, place) for index, row in enumerate(rows) for place in range(len(row))]
        for index, place in moves:
            row = rows[index].copy()
            row[place] += by
            yield dataclasses.replace(self, **{name: (*rows[:index], row, *rows[index + 1 :])})


def _copy(cfg: CfgNode) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    return cfg


def _rows(given) -> list[list[float]]:
    return [list(row) for row in given] if isinstance(given[0], (list, tuple)) else [list(given)]


def _best_anchors(start: _Anchors, objective: Callable[[_Anchors], float]) -> _Anchors:
    candidates = [start.scaled(octaves, stretch) for octaves, stretch in itertools.product(_SCALES, _STRETCHES)]
    best, value = start, objective(start)
    for candidate in candidates:
        found = objective(candidate)
        if found > value + _LEAST_GAIN:
            best, value = candidate, found
    for step, _ in itertools.product(_STEPS, range(_MAX_SWEEPS)):
        before = value
        for candidate in best.neighbours(step):
            found = objective(candidate)
            if found > value + _LEAST_GAIN:
                best, value = candidate, found
        if value == before:
            continue
    return best


def _objective(cfg: CfgNode, layout: AnchorLayout, objects: ObjectArrays, seed: int) -> Callable[[_Anchors], float]:
    """What the search raises: the mean of the share of all objects and the mean share of the classes, and a little
    of the mean best IoU, which also tells apart anchors that reach none or all of the objects."""
    views = list(resized_boxes(cfg, objects, seed))
    views = [views[index] for index in np.unique(np.linspace(0, len(views) - 1, _SEARCH_DRAWS).round().astype(int))]
    seen = np.concatenate([view.visible for view in views])
    classes = np.tile(objects.classes, len(views))[seen]
    _, classes, counts = np.unique(classes, return_inverse=True, return_counts=True)

    cfg = _copy(cfg)

    def objective(anchors: _Anchors) -> float:
        candidate = layout.with_anchors_of(anchors.written_to(cfg))
        best = np.concatenate([best_ious(candidate, view, objects.image) for view in views])[seen]
        covered = best >= np.float32(layout.main_threshold)
        by_class = np.bincount(classes, weights=covered) / counts
        return float((covered.mean() + by_class.mean()) / 2 + 0.1 * best.mean())

    return objective


def _is_better(before: AnchorCoverage, after: AnchorCoverage) -> bool:
    gain = after.share() - before.share()
    classes = [
        after.share(new) - before.share(old)
        for old, new in zip(before.by_class, after.by_class, strict=True)
        if old.objects >= CLASS_OBJECTS
    ]
    if gain <= -GAIN or min(classes, default=0.0) <= -CLASS_GAIN:
        return False
    return gain >= GAIN or max(classes, default=0.0) >= CLASS_GAIN
