"""Matching: which ground truth box each anchor is for, if any (Focal Loss paper, section 4 "Anchors").

The file goes from the rule to what runs:

1. The call that every matcher answers: :data:`ANCHOR_MATCHER_REGISTRY`.
2. :func:`best_matches_reference`, the rule from the matrix of all IoUs. Training does not call it: at 800x1333 pixels,
   2,000 boxes would make a matrix of 1.6 GB, and take several such in passing. Tests compare the fast forms with it.
3. :class:`IoUMatcher`, which runs: it makes a state of each anchor's best IoU.
4. The fast forms of the rule: :func:`_best_matches_dense`, in blocks, and on a CPU with many boxes
   :func:`_best_matches_sparse`.
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

A registered object is called as ``obj(cfg)`` and returns a matcher that is called as ``matcher(anchors, gt_boxes)``
with xyxy boxes ``(R, 4)`` and ``(G, 4)`` in pixels (G may be 0) and returns, for every anchor, the index of its
ground truth box, ``(R,)`` int64, and its state, ``(R,)`` int8: FOREGROUND, BACKGROUND or IGNORE. The index means
something only where the state is FOREGROUND.

A matcher may also have ``match_batch(anchors, gt_boxes, counts)`` for all N images of a batch at once, which is then
called instead: ``gt_boxes`` ``(N, G, 4)``, the boxes of an image first, behind them zeros; ``counts``, N Python
integers, how many are boxes (0 to G). It returns the index and the state as ``(N, R)``.

A matcher with an attribute ``per_level`` that is true gets, in place of the anchors, a list of those of each level,
``(R_l, 4)``, finest first; what it returns is still for all of them, joined.
"""

FOREGROUND, BACKGROUND, IGNORE = 1, 0, -1
LOW_QUALITY_MODES = ("always", "above_low", "never")

# IoUs that exist at one time. On CPU the 24 MB that they and the temporaries take stay in the last-level cache; on
# CUDA, 200 MB keep the launches few.
BLOCK_ENTRIES = {"cpu": 2**21, "cuda": 2**24}

# On CPU, an image with at least SPARSE_FROM boxes takes the sparse form: each run of CHUNK_ANCHORS anchors is compared
# only with boxes that overlap its bounding rectangle. Anchors in the order of a feature map's rows make small
# rectangles; in any other order the result is the same.
SPARSE_FROM = 64
CHUNK_ANCHORS = 256


class BestMatches(NamedTuple):
    """For every anchor of an image ``(R,)``, or of N images ``(N, R)``.

    Attributes:
        matched: index of the box with which the anchor has the largest IoU, the first of equal ones, int64.
        best_iou: this IoU; -1 in images without boxes.
        low_quality: whether the anchor is the best, ties included, of some box that it overlaps, bool. Such an anchor
            may become foreground although its IoU is low, so that no box goes without.
    """

    matched: torch.Tensor
    best_iou: torch.Tensor
    low_quality: torch.Tensor


def best_matches_reference(anchors: torch.Tensor, gt_boxes: torch.Tensor) -> BestMatches:
    """The rule, from the whole matrix of IoUs. A reference; training runs :func:`_best_matches_dense` and
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
            labels: one more than thresholds, the state of each band.
            low_quality: what happens to the anchors that have the largest IoU with some ground truth box, ties
                included, and that the bands do not make foreground; they stay matched to the box of their own largest
                IoU.
                ``always``: foreground, as in Detectron2. ``above_low``: foreground if their IoU reaches the first
                threshold, as in the authors' code. ``never``: nothing, as in the paper's text.
                A ground truth box that overlaps no anchor at all forces none; in Detectron2 it would turn every
                anchor it does not overlap into foreground.

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

        Exact. In float32, beside a few numbers for every anchor of every image, it takes about 12 bytes for each of
        ``BLOCK_ENTRIES`` IoUs, or for one box in every image if that is more, however many boxes there are. On CPU an
        image with ``SPARSE_FROM`` boxes or more takes, instead, for each of its boxes at most 3 kB, and about 30 bytes
        for every run of ``CHUNK_ANCHORS`` anchors that the box meets.
        """
        dtype = torch.promote_types(anchors.dtype, gt_boxes.dtype)
        anchors, gt_boxes = box_columns(anchors.to(dtype)), gt_boxes.to(dtype)
        if anchors.device.type == "cpu":
            # One image keeps all cores busy, and handling images one by one avoids padding.
            of_images = [_best_matches_on_cpu(anchors, boxes[:n]) for boxes, n in zip(gt_boxes, counts, strict=True)]
            best = BestMatches(*(torch.stack(values) for values in zip(*of_images)))
        else:
            best = _best_matches_dense(anchors, gt_boxes, counts)
        return best.matched, self._states(best)

    def _states(self, best: BestMatches) -> torch.Tensor:
        """State of each anchor, int8, from the band its IoU lies in and from whether it is the best of some box."""
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
    """Of one image, by the faster form: anchors ``(5, R)``, see ``box_columns``, and boxes ``(G, 4)``."""
    if len(boxes) >= SPARSE_FROM and anchors.shape[1]:
        return _best_matches_sparse(anchors, boxes)
    return BestMatches(*(values[0] for values in _best_matches_dense(anchors, boxes[None], [len(boxes)])))


def _best_matches_dense(anchors: torch.Tensor, gt_boxes: torch.Tensor, counts: Sequence[int]) -> BestMatches:
    """From all IoUs of N images, a block of boxes at a time.

    A block has all anchors, so that the largest IoU of each of its boxes is known at once. This function does not wait
    for the device.

    Args:
        anchors: ``(5, R)``, see ``box_columns``.
        gt_boxes: ``(N, G, 4)``, padded with zeros.
        counts: N numbers of boxes.
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
        # Strictly better only: of two boxes with one IoU the first wins, whichever block it is in.
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
    """Columns of ``iou`` ``(N, G, R)``, which is overwritten, that hold a row's largest number above 0: ``(N, R)``."""
    best = iou.amax(dim=2, keepdim=True)
    best.masked_fill_(best <= 0, 2.0)
    # Differences are 0 there and negative elsewhere; a bool matrix takes several times as long to make and reduce.
    return iou.sub_(best).amax(dim=1) == 0


def _best_matches_sparse(anchors: torch.Tensor, boxes: torch.Tensor) -> BestMatches:
    """As :func:`_best_matches_dense` for one image with ``boxes`` ``(G, 4)``, G > 0, without the IoUs that can only be
    0."""
    num_anchors = anchors.shape[1]
    anchors = F.pad(anchors, (0, -num_anchors % CHUNK_ANCHORS)).unflatten(1, (-1, CHUNK_ANCHORS))
    anchors[4].masked_fill_(anchors[4] == 0, 1)  # the padding becomes points, as in box_columns
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
    matched.masked_fill_(best_iou == 0, 0)  # the first of all boxes, not of those near by

    low_quality = torch.zeros_like(matched, dtype=torch.bool)
    best_of_box = anchors.new_zeros(boxes.shape[1]).scatter_reduce_(0, box, pair_best, "amax")[box]
    # Only runs that hold a best anchor of the box are compared again: most boxes have one or two.
    pairs = torch.nonzero((pair_best == best_of_box) & (pair_best > 0)).squeeze(1)
    for some in pairs.split(max(1, BLOCK_ENTRIES["cpu"] // CHUNK_ANCHORS)):
        iou = iou_of_columns(boxes[:, box[some], None], anchors[:, chunk[some]])
        pair, index = torch.nonzero(iou == best_of_box[some, None], as_tuple=True)
        low_quality[chunk[some[pair]], index] = True
    return BestMatches(*(values.flatten()[:num_anchors] for values in (matched, best_iou, low_quality)))


def _extents_meet(anchors: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Whether a box ``(5, G)`` overlaps the rectangle around a run of anchors ``(5, B, C)``: ``(B, G)``."""
    low, high = anchors[:2].amin(dim=2)[..., None], anchors[2:4].amax(dim=2)[..., None]
    x_meets, y_meets = (boxes[:2, None] < high) & (boxes[2:4, None] > low)
    return x_meets & y_meets


class MatrixMatcher:
    """Adapts a matcher that wants the ``(G, R)`` IoU matrix, such as Detectron2's ``Matcher``, to our call."""

    def __init__(self, matrix_matcher):
        self.matrix_matcher = matrix_matcher

    @torch.no_grad()
    def __call__(self, anchors: torch.Tensor, gt_boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.matrix_matcher(pairwise_iou(gt_boxes, anchors))
