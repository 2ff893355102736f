"""Assigns anchors to ground truth boxes."""

import difflib
from collections.abc import Sequence

import torch

from retinanet_ext.d2 import configurable
from retinanet_ext.ops import pairwise_iou
from retinanet_ext.registry import Registry

ANCHOR_MATCHER_REGISTRY = Registry("ANCHOR_MATCHER")
ANCHOR_MATCHER_REGISTRY.__doc__ = """
Matchers, named by ``MODEL.RETINANET.MATCHER.NAME``.

A registered object is called as ``obj(cfg)`` and returns a matcher that is called as ``matcher(anchors, gt_boxes)``
with xyxy boxes ``(R, 4)`` and ``(G, 4)`` in pixels (G may be 0) and returns, for every anchor, the index of its
ground truth box, ``(R,)`` int64, and its state, ``(R,)`` int8: FOREGROUND, BACKGROUND or IGNORE. The index means
something only where the state is FOREGROUND.
"""

FOREGROUND, BACKGROUND, IGNORE = 1, 0, -1
LOW_QUALITY_MODES = ("always", "above_low", "never")

# Entries of one block of the IoU matrix. 2**22 floats are 16 MB, about 100 MB with the temporaries, however many
# boxes an image has; at 800x1333 (200,000 anchors) that is 20 boxes at a time.
BLOCK_ENTRIES = 2**22


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
                included, and that the bands do not make foreground. They keep the box of their own largest IoU.
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

    @torch.no_grad()
    def __call__(self, anchors: torch.Tensor, gt_boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :data:`ANCHOR_MATCHER_REGISTRY`. Without ground truth every anchor falls into the first band."""
        blocks = gt_boxes.split(max(1, BLOCK_ENTRIES // max(1, len(anchors))))
        best_iou = anchors.new_full((len(anchors),), -1.0)
        matched = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
        best_of_gt = []
        start = 0
        for block in blocks:
            if not len(block):
                continue
            iou = pairwise_iou(block, anchors)
            block_iou, block_index = iou.max(dim=0)
            # Strictly better only: of two boxes with one IoU the first wins, whichever block it is in.
            better = block_iou > best_iou
            matched = torch.where(better, block_index + start, matched)
            best_iou = torch.where(better, block_iou, best_iou)
            best_of_gt.append(iou.amax(dim=1))
            start += len(block)

        state = self._states(best_iou)
        if self.low_quality != "never":
            for block, block_best in zip(blocks, best_of_gt):
                self._force_best_anchors(state, best_iou, anchors, block, block_best)
        return matched, state

    def _states(self, best_iou: torch.Tensor) -> torch.Tensor:
        """State of each anchor, ``(R,)`` int8, from the band its IoU lies in."""
        # Comparisons with Python numbers copy nothing to the device, unlike a lookup table.
        state = torch.full_like(best_iou, self.labels[0], dtype=torch.int8)
        for threshold, label in zip(self.thresholds, self.labels[1:], strict=True):
            state.masked_fill_(best_iou >= threshold, label)
        return state

    def _force_best_anchors(self, state, best_iou, anchors, gt_boxes, best_of_gt) -> None:
        """Mark the best anchors of ``gt_boxes`` as foreground in ``state``, in place.

        The IoU block is computed again rather than kept: keeping all of them would be the full matrix.
        """
        is_best = pairwise_iou(gt_boxes, anchors) == best_of_gt[:, None]
        is_best &= (best_of_gt > 0)[:, None]
        forced = is_best.any(dim=0)
        if self.low_quality == "above_low":
            forced &= best_iou >= self.thresholds[0]
        state.masked_fill_(forced, FOREGROUND)


class MatrixMatcher:
    """Adapts a matcher that wants the ``(G, R)`` IoU matrix, such as Detectron2's ``Matcher``, to our call."""

    def __init__(self, matrix_matcher):
        self.matrix_matcher = matrix_matcher

    @torch.no_grad()
    def __call__(self, anchors: torch.Tensor, gt_boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.matrix_matcher(pairwise_iou(gt_boxes, anchors))
