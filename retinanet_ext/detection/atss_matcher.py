"""Adaptive training sample selection (Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection
via Adaptive Training Sample Selection", CVPR 2020, algorithm 1)."""

from collections.abc import Sequence

import torch

from retinanet_ext.d2 import configurable
from retinanet_ext.ops.box_math import box_columns, iou_of_columns

from .matcher import ANCHOR_MATCHER_REGISTRY, BACKGROUND, BLOCK_ENTRIES, FOREGROUND


@ANCHOR_MATCHER_REGISTRY.register()
class ATSSMatcher:
    """Gives every ground truth box an IoU threshold of its own, from the anchors around it.

    Candidates of a box are, on each level, the anchors whose centres are nearest to its centre. Its threshold is the
    mean of their IoUs with it plus their standard deviation. Candidates that reach it, and whose centre lies inside the
    box, are foreground; of several boxes that claim an anchor it gets the one of largest IoU, of equal ones the first.
    All other anchors are background: none is ignored, and IOU_THRESHOLDS plays no part.
    """

    per_level = True

    @configurable
    def __init__(self, *, topk: int = 9, anchors_per_position: Sequence[int] | int = 1):
        """
        Args:
            topk: positions a level whose anchors are candidates; the paper's k. It found 7 to 17 equally good.
            anchors_per_position: A, of all levels or of each. All anchors of a position have one centre, so that
                ``topk * A`` anchors a level are taken. The paper's own setting is 1.

        Raises:
            ValueError: ``topk`` below 1.
        """
        if topk < 1:
            raise ValueError(f"MODEL.RETINANET.MATCHER.ATSS.TOPK is {topk}; it must be at least 1")
        self.topk = topk
        self.anchors_per_position = anchors_per_position

    @classmethod
    def from_config(cls, cfg):
        sizes, ratios = cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS
        # One list of either kind serves all levels.
        ratios = list(ratios) * len(sizes) if len(ratios) == 1 else ratios
        sizes = list(sizes) * len(ratios) if len(sizes) == 1 else sizes
        per_position = [len(of_size) * len(of_ratio) for of_size, of_ratio in zip(sizes, ratios)]
        return {
            "topk": cfg.MODEL.RETINANET.MATCHER.ATSS.TOPK,
            "anchors_per_position": per_position if len(set(per_position)) > 1 else per_position[0],
        }

    @torch.no_grad()
    def __call__(self, levels: Sequence[torch.Tensor], gt_boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See :data:`ANCHOR_MATCHER_REGISTRY`.

        Boxes are taken a block at a time: beside a few numbers for every anchor, and for every candidate of a box, it
        keeps ``BLOCK_ENTRIES`` distances, or those of one box if that is more.
        """
        anchors = torch.cat(list(levels))
        best_iou = anchors.new_zeros(len(anchors))
        matched = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
        is_foreground = torch.zeros_like(matched, dtype=torch.bool)
        size = max(1, BLOCK_ENTRIES[anchors.device.type] // max(1, len(anchors)))
        for start in range(0, len(gt_boxes), size):
            boxes = gt_boxes[start : start + size]
            candidates = self._candidates(levels, boxes)
            iou, claimed = _claims(anchors[candidates], boxes)
            _settle(
                candidates[claimed], iou[claimed], start + claimed.nonzero()[:, 0], best_iou, matched, is_foreground
            )
        return matched, torch.where(is_foreground, FOREGROUND, BACKGROUND).to(torch.int8)

    def _candidates(self, levels: Sequence[torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
        """Anchors near the centre of each of G boxes, ``(G, C)``, numbered over all levels."""
        per_position = self.anchors_per_position
        counts = [per_position] * len(levels) if isinstance(per_position, int) else per_position
        found, offset = [], 0
        for anchors, count in zip(levels, counts, strict=True):
            distances = torch.cdist(_centers(boxes), _centers(anchors), compute_mode="donot_use_mm_for_euclid_dist")
            nearest = distances.topk(min(self.topk * count, len(anchors)), dim=1, largest=False).indices
            found.append(nearest + offset)
            offset += len(anchors)
        return torch.cat(found, dim=1)


def _centers(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _claims(candidates: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """IoUs of candidates ``(G, C, 4)`` with their boxes ``(G, 4)``, and which become foreground, both ``(G, C)``."""
    iou = iou_of_columns(box_columns(candidates), box_columns(boxes)[:, :, None])
    # One candidate has no deviation, and is its own threshold.
    threshold = iou.mean(dim=1) + (iou.std(dim=1) if iou.shape[1] > 1 else 0.0)
    centers = _centers(candidates)
    inside = ((centers > boxes[:, None, :2]) & (centers < boxes[:, None, 2:])).all(dim=2)
    return iou, (iou >= threshold[:, None]) & inside & (iou > 0)


def _settle(anchor, iou, box, best_iou, matched, is_foreground) -> None:
    """Update the last three, ``(R,)`` each, by claims ``(M,)`` of boxes that come after all earlier ones."""
    improved = best_iou.scatter_reduce(0, anchor, iou, "amax")
    wins = (iou == improved[anchor]) & (iou > best_iou[anchor])
    # Of equal claims the first box: the smallest number.
    first = torch.full_like(matched, torch.iinfo(torch.int64).max)
    first.scatter_reduce_(0, anchor[wins], box[wins], "amin")
    matched[anchor[wins]] = first[anchor[wins]]
    is_foreground[anchor[wins]] = True
    best_iou.copy_(improved)
