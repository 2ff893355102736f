"""Matching: which ground truth box each anchor should predict, if any (Focal Loss paper, section 4 "Anchors").

The file goes from the rule to what runs:

1. :data:`ANCHOR_MATCHER_REGISTRY` defines how every matcher is called.
2. :func:`best_matches_reference` is the rule, applied to the matrix of all IoUs: a reference. Training does not call
   it: at 800x1333 pixels, 2,000 boxes would need a matrix of 1.6 GB and temporaries of several times that. Tests
   compare the fast forms with it.
3. :class:`IoUMatcher` is what training runs. It turns each anchor's best IoU into a state.
4. The fast forms of the rule are :func:`_best_matches_dense`, which works in blocks, and :func:`_best_matches_sparse`,
   for many boxes on a CPU.
"""

import difflib
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from retinanet_ext.d2 import configurable
from retinanet_ext.ops.box_math import box_columns, iou_of_columns, pairwise_iou
from retinanet_ext.registry import Registry

ANCHOR_MATCHER_REGISTRY = Registry("ANCHOR_MATCHER", config_key="MODEL.RETINANET.MATCHER.NAME")
ANCHOR_MATCHER_REGISTRY.__doc__ = """
Matchers, named by ``MODEL.RETINANET.MATCHER.NAME``.

A registered object is called as ``obj(cfg)`` and returns a matcher. The matcher is called as
``matcher(anchors, gt_boxes)`` with xyxy boxes ``(R, 4)`` and ``(G, 4)`` in pixels (G may be 0). It returns, for every
anchor, the index of its ground truth box, ``(R,)`` int64, and its state, ``(R,)`` int8: FOREGROUND, BACKGROUND or
IGNORE. The index has a meaning only where the state is FOREGROUND.

A matcher may also have ``match_batch(anchors, gt_boxes, counts)``, which handles all N images of a batch and is then
called instead. ``gt_boxes`` is ``(N, G, 4)``: the boxes of each image, then zeros. ``counts`` holds N Python integers,
the number of boxes of each image (0 to G). It returns the index and the state as ``(N, R)``.

If a matcher's attribute ``per_level`` is true, it gets a list of each level's anchors ``(R_l, 4)``, finest level first,
in place of all anchors joined. What it returns is still for all anchors, joined.
"""

FOREGROUND, BACKGROUND, IGNORE = 1, 0, -1
LOW_QUALITY_MODES = ("always", "above_low", "never")

# IoUs in memory at a time. On CPU they and their temporaries take 24 MB, which fits the last-level cache; on CUDA they
# take 200 MB, which keeps the launches few.
BLOCK_ENTRIES = {"cpu": 2**21, "cuda": 2**24}

# On CPU, an image with at least SPARSE_FROM boxes takes the sparse form: each run of CHUNK_ANCHORS anchors is compared
# only with boxes that overlap its bounding rectangle. The rectangles are small if anchors follow the rows of a feature
# map; the result is the same in any order.
SPARSE_FROM = 64
CHUNK_ANCHORS = 256


class BestMatches(NamedTuple):
    """The best match of every anchor of an image, ``(R,)``, or of N images, ``(N, R)``.

    Attributes:
        matched: index of the box with which the anchor has the largest IoU, int64; the first among equal IoUs.
        best_iou: that IoU; -1 in images without boxes.
        low_quality: whether the anchor is the best one, ties included, for some box that it overlaps, bool. Such an
            anchor may become foreground although its IoU is low, so that no box goes without an anchor.
    """

    matched: torch.Tensor
    best_iou: torch.Tensor
    low_quality: torch.Tensor


def best_matches_reference(anchors: torch.Tensor, gt_boxes: torch.Tensor) -> BestMatches:
    """The rule, applied to the whole IoU matrix. A reference; training runs :func:`_best_matches_dense` and
    :func:`_best_matches_sparse`.

    Args:
        anchors: ``(R, 4)``, xyxy.
        gt_boxes: ``(G, 4)``, xyxy; G may be 0.
    """
    if len(gt_boxes) == 0:
        nothing = anchors.new_zeros(len(anchors))
        return BestMatches(nothing.long(), nothing - 1, nothing.bool())
    iou = pairwise_iou(gt_boxes, anchors)
    best_iou, matched = iou.max(dim=0)
    best_of_each_box = iou.max(dim=1, keepdim=True).values
    return BestMatches(matched, best_iou, ((iou == best_of_each_box) & (iou > 0)).any(dim=0))


@ANCHOR_MATCHER_REGISTRY.register()
class IoUMatcher:
    """Matches an anchor to the ground truth box with which it has the largest IoU (RetinaNet, section 4).

    The IoU axis is cut at ``thresholds`` into half-open bands ``[low, high)``; each band has a state in ``labels``.
    With the paper's 0.4 and 0.5: background below 0.4, ignored up to 0.5, foreground from there on.
    """

    @configurable
    def __init__(
        self,
        *,
        thresholds: Sequence[float] = (0.4, 0.5),
        labels: Sequence[int] = (BACKGROUND, IGNORE, FOREGROUND),
        low_quality: str = "always",
    ):
        """
        Args:
            thresholds: ascending IoU values.
            labels: the state of each band; one more than thresholds.
            low_quality: what happens to anchors that are the best ones, ties included, for some ground truth box but
                that the bands do not make foreground. They stay matched to the box with their own largest IoU.
                ``always``: they become foreground, as in Detectron2. ``above_low``: they become foreground if their
                IoU reaches the first threshold, as in the authors' code. ``never``: nothing, as in the paper's text.
                A ground truth box that overlaps no anchor makes no anchor foreground; in Detectron2 it would make
                every anchor foreground.

        Raises:
            ValueError: thresholds not ascending, wrong number of labels, or an unknown state or mode.
        """
        if not thresholds or list(thresholds) != sorted(thresholds):
            raise ValueError(f"IOU_THRESHOLDS must be ascending numbers, at least one; got {list(thresholds)}")
        if len(labels) != len(thresholds) + 1:
            raise ValueError(
                f"IOU_LABELS needs {len(thresholds) + 1} entries, one for each band that the {len(thresholds)} "
                f"IOU_THRESHOLDS {list(thresholds)} make; got {list(labels)}"
            )
        if not set(labels) <= {FOREGROUND, BACKGROUND, IGNORE}:
            raise ValueError(f"IOU_LABELS may hold 1 (foreground), 0 (background), -1 (ignored); got {list(labels)}")
        if low_quality not in LOW_QUALITY_MODES:
            near = difflib.get_close_matches(str(low_quality), LOW_QUALITY_MODES, n=1)
            raise ValueError(
                f"MATCHER.LOW_QUALITY is {low_quality!r}; legal values: {', '.join(LOW_QUALITY_MODES)}."
                + (f" Did you mean {near[0]!r}?" if near else "")
            )
        self.thresholds = tuple(thresholds)
        self.labels = tuple(labels)
        self.low_quality = low_quality

    @classmethod
    def from_config(cls, cfg):
        retinanet = cfg.MODEL.RETINANET
        return {
            "thresholds": retinanet.IOU_THRESHOLDS,
            "labels": retinanet.IOU_LABELS,
            "low_quality": retinanet.MATCHER.LOW_QUALITY,
        }

    def __call__(self, anchors: torch.Tensor, gt_boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Index and state ``(R,)`` for anchors ``(R, 4)`` and boxes ``(G, 4)``; see :data:`ANCHOR_MATCHER_REGISTRY`.

        Without ground truth every anchor falls into the first band.
        """
        matched, state = self.match_batch(anchors, gt_boxes[None], [len(gt_boxes)])
        return matched[0], state[0]

    @torch.no_grad()
    def match_batch(
        self, anchors: torch.Tensor, gt_boxes: torch.Tensor, counts: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Index and state ``(N, R)`` for anchors ``(R, 4)`` and boxes ``(N, G, 4)``; see
        :data:`ANCHOR_MATCHER_REGISTRY`.

        The result is exact. Memory in float32, whatever the number of boxes: a few numbers per anchor and image, plus
        about 12 bytes for each of ``BLOCK_ENTRIES`` IoUs, or for the IoUs of one box per image if those are more. On
        CPU, an image with at least ``SPARSE_FROM`` boxes instead takes, per box, at most 3 kB plus about 30 bytes for
        every run of ``CHUNK_ANCHORS`` anchors that the box meets.
        """
        dtype = torch.promote_types(anchors.dtype, gt_boxes.dtype)
        anchors, gt_boxes = box_columns(anchors.to(dtype)), gt_boxes.to(dtype)
        if anchors.device.type == "cpu":
            # One image keeps all cores busy, and handling images one by one avoids padding.
            per_image = [_best_matches_on_cpu(anchors, boxes[:n]) for boxes, n in zip(gt_boxes, counts, strict=True)]
            best = BestMatches(*(torch.stack(values) for values in zip(*per_image)))
        else:
            best = _best_matches_dense(anchors, gt_boxes, counts)
        return best.matched, self._states(best)

    def _states(self, best: BestMatches) -> torch.Tensor:
        """State of each anchor, int8, from the band of its best IoU and from ``low_quality``."""
        # Comparisons with Python numbers copy nothing to the device, unlike a lookup table.
        state = torch.full_like(best.best_iou, self.labels[0], dtype=torch.int8)
        for threshold, label in zip(self.thresholds, self.labels[1:], strict=True):
            state.masked_fill_(best.best_iou >= threshold, label)
        if self.low_quality == "never":
            return state
        low_quality = best.low_quality
        if self.low_quality == "above_low":
            low_quality = low_quality & (best.best_iou >= self.thresholds[0])
        return state.masked_fill_(low_quality, FOREGROUND)


def _best_matches_on_cpu(anchors: torch.Tensor, boxes: torch.Tensor) -> BestMatches:
    """Best matches in one image, by the faster form: anchors ``(5, R)``, see ``box_columns``; boxes ``(G, 4)``."""
    if len(boxes) >= SPARSE_FROM and anchors.shape[1]:
        return _best_matches_sparse(anchors, boxes)
    return BestMatches(*(values[0] for values in _best_matches_dense(anchors, boxes[None], [len(boxes)])))


def _best_matches_dense(anchors: torch.Tensor, gt_boxes: torch.Tensor, counts: Sequence[int]) -> BestMatches:
    """Best matches in N images from all IoUs, computed for one block of boxes at a time.

    A block is compared with all anchors, so the largest IoU of each of its boxes is known at once. This function does
    not wait for the device.

    Args:
        anchors: ``(5, R)``, see ``box_columns``.
        gt_boxes: ``(N, G, 4)``, padded with zeros.
        counts: number of boxes in each of the N images.
    """
    num_images, num_anchors = len(counts), anchors.shape[1]
    # Sorted by box count, descending: images with boxes left are then always a prefix.
    order = sorted(range(num_images), key=lambda image: -counts[image])
    gt_boxes = torch.stack([gt_boxes[image] for image in order])
    matched = torch.zeros(num_images, num_anchors, dtype=torch.int64, device=anchors.device)
    best_iou = anchors.new_full(matched.shape, -1.0)
    low_quality = torch.zeros_like(matched, dtype=torch.bool)

    start, scratch = 0, None
    while num_anchors and (active := sum(count > start for count in counts)):
        size = max(1, BLOCK_ENTRIES[anchors.device.type] // (active * num_anchors))
        block = box_columns(gt_boxes[:active, start : min(start + size, max(counts))])[..., None]
        if scratch is None or len(scratch) < 3 * block[0].numel() * num_anchors:
            scratch = anchors.new_empty(3 * block[0].numel() * num_anchors)
        iou = iou_of_columns(block, anchors, scratch)
        block_best, index = iou.max(dim=1)
        # Only if strictly better: among equal IoUs the first box wins, whichever block it is in.
        better = block_best > best_iou[:active]
        matched[:active] = torch.where(better, index + start, matched[:active])
        best_iou[:active] = torch.where(better, block_best, best_iou[:active])
        low_quality[:active] |= _is_best_of_a_row(iou)
        start += block.shape[2]
    best = BestMatches(matched, best_iou, low_quality)
    if order == list(range(num_images)):
        return best
    sorted_index = [order.index(image) for image in range(num_images)]
    return BestMatches(*(torch.stack([values[i] for i in sorted_index]) for values in best))


def _is_best_of_a_row(iou: torch.Tensor) -> torch.Tensor:
    """Whether a column of ``iou`` ``(N, G, R)`` holds a row's largest value above 0: ``(N, R)``; overwrites ``iou``."""
    best = iou.amax(dim=2, keepdim=True)
    best.masked_fill_(best <= 0, 2.0)
    # Differences are 0 at a row's largest value, else negative; a bool matrix takes several times as long.
    return iou.sub_(best).amax(dim=1) == 0


def _best_matches_sparse(anchors: torch.Tensor, boxes: torch.Tensor) -> BestMatches:
    """As :func:`_best_matches_dense`, for one image with ``boxes`` ``(G, 4)``, G > 0; skips IoUs that must be 0."""
    num_anchors = anchors.shape[1]
    anchors = F.pad(anchors, (0, -num_anchors % CHUNK_ANCHORS)).unflatten(1, (-1, CHUNK_ANCHORS))
    anchors[4].masked_fill_(anchors[4] == 0, 1)  # padding becomes points of area 1, as in box_columns
    boxes = box_columns(boxes)
    chunk, box = torch.nonzero(_extents_meet(anchors, boxes), as_tuple=True)
    counts = torch.bincount(chunk, minlength=anchors.shape[1]).tolist()

    matched = torch.zeros(anchors.shape[1:], dtype=torch.int64)
    best_iou = anchors.new_zeros(matched.shape)
    pair_best = anchors.new_empty(len(box))
    scratch = anchors.new_empty(3 * max(counts) * CHUNK_ANCHORS)
    for i, (near, near_best) in enumerate(zip(box.split(counts), pair_best.split(counts))):
        if not len(near):
            continue
        iou = iou_of_columns(boxes[:, near, None], anchors[:, i], scratch)
        torch.amax(iou, dim=1, out=near_best)
        best_iou[i], index = iou.max(dim=0)
        matched[i] = near[index]
    matched.masked_fill_(best_iou == 0, 0)  # without overlap: the first of all boxes

    low_quality = torch.zeros_like(matched, dtype=torch.bool)
    best_of_box = anchors.new_zeros(boxes.shape[1]).scatter_reduce_(0, box, pair_best, "amax")[box]
    # Only runs that hold a best anchor of a box are compared again; most boxes have one or two such runs.
    pairs = torch.nonzero((pair_best == best_of_box) & (pair_best > 0)).squeeze(1)
    for part in pairs.split(max(1, BLOCK_ENTRIES["cpu"] // CHUNK_ANCHORS)):
        iou = iou_of_columns(boxes[:, box[part], None], anchors[:, chunk[part]])
        pair, index = torch.nonzero(iou == best_of_box[part, None], as_tuple=True)
        low_quality[chunk[part[pair]], index] = True
    return BestMatches(*(values.flatten()[:num_anchors] for values in (matched, best_iou, low_quality)))


def _extents_meet(anchors: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Whether each box ``(5, G)`` overlaps the rectangle around each run of anchors ``(5, B, C)``: ``(B, G)``."""
    low, high = anchors[:2].amin(dim=2)[..., None], anchors[2:4].amax(dim=2)[..., None]
    x_meets, y_meets = (boxes[:2, None] < high) & (boxes[2:4, None] > low)
    return x_meets & y_meets


class MatrixMatcher:
    """Adapts a matcher of the ``(G, R)`` IoU matrix, such as Detectron2's ``Matcher``, to the call defined here."""

    def __init__(self, matrix_matcher):
        self.matrix_matcher = matrix_matcher

    @torch.no_grad()
    def __call__(self, anchors: torch.Tensor, gt_boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.matrix_matcher(pairwise_iou(gt_boxes, anchors))
