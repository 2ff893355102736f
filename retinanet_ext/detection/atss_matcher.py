"""Adaptive training sample selection (Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection
via Adaptive Training Sample Selection", CVPR 2020, algorithm 1)."""

from collections.abc import Sequence

import torch

from retinanet_ext.d2 import configurable
from retinanet_ext.ops.box_math import box_centers, box_columns, iou_of_columns

from .matcher import ANCHOR_MATCHER_REGISTRY, BACKGROUND, BLOCK_ENTRIES, FOREGROUND


@ANCHOR_MATCHER_REGISTRY.register()
class ATSSMatcher:
    """Gives every ground truth box its own IoU threshold, computed from the anchors around it.

    The candidates of a box are, on each level, the anchors whose centres are nearest to its centre. The threshold is
    the mean of the candidates' IoUs with the box plus their standard deviation. A box claims a candidate as foreground
    if the IoU reaches the threshold and the candidate's centre lies inside the box. If several boxes claim an anchor,
    the one with the largest IoU gets it; among equal IoUs, the first. All other anchors are background: none is
    ignored, and IOU_THRESHOLDS plays no part.
    """

    per_level = True

    @configurable
    def __init__(self, *, topk: int = 9, anchors_per_position: Sequence[int] | int = 1):
        """
        Args:
            topk: positions per level whose anchors are candidates; the paper's k. The paper found 7 to 17 equally good.
            anchors_per_position: A, one number for all levels or one per level. All anchors of a position share a
                centre, so ``topk * A`` anchors per level are candidates. The paper uses 1.

        Raises:
            ValueError: ``topk`` is below 1.
        """
        if topk < 1:
            raise ValueError(f"MODEL.RETINANET.MATCHER.ATSS.TOPK is {topk}; it must be at least 1")
        self.topk = topk
        self.anchors_per_position = anchors_per_position

    @classmethod
    def from_config(cls, cfg):
        generator = cfg.MODEL.ANCHOR_GENERATOR
        num_sizes, num_ratios = _lengths_by_level(generator.SIZES), _lengths_by_level(generator.ASPECT_RATIOS)
        # A single list of sizes or ratios applies to all levels.
        num_levels = max(len(num_sizes), len(num_ratios))
        num_sizes, num_ratios = (n * num_levels if len(n) == 1 else n for n in (num_sizes, num_ratios))
        per_position = [size * ratio for size, ratio in zip(num_sizes, num_ratios, strict=True)]
        return {
            "topk": cfg.MODEL.RETINANET.MATCHER.ATSS.TOPK,
            "anchors_per_position": per_position if len(set(per_position)) > 1 else per_position[0],
        }

    @torch.no_grad()
    def __call__(self, levels: Sequence[torch.Tensor], gt_boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Index and state ``(R,)`` for the anchors of each level ``(R_l, 4)`` and boxes ``(G, 4)``; see
        :data:`ANCHOR_MATCHER_REGISTRY`.

        Boxes are handled in blocks. Memory: a few numbers per anchor and per candidate, plus ``BLOCK_ENTRIES``
        distances, or the distances of one box if those are more.
        """
        anchors = torch.cat(list(levels))
        best_iou = anchors.new_zeros(len(anchors))
        matched = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
        is_foreground = torch.zeros_like(matched, dtype=torch.bool)
        size = max(1, BLOCK_ENTRIES[anchors.device.type] // max(1, len(anchors)))
        for start in range(0, len(gt_boxes), size):
            boxes = gt_boxes[start : start + size]
            candidates = self._candidates(levels, boxes)
            iou, claimed = _ious_and_claims(anchors[candidates], boxes)
            _assign_claimed_anchors(
                candidates[claimed], iou[claimed], start + claimed.nonzero()[:, 0], best_iou, matched, is_foreground
            )
        return matched, torch.where(is_foreground, FOREGROUND, BACKGROUND).to(torch.int8)

    def _candidates(self, levels: Sequence[torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
        """Indices, over all levels, of the anchors nearest to the centre of each of G boxes: ``(G, C)``."""
        per_position = self.anchors_per_position
        counts = [per_position] * len(levels) if isinstance(per_position, int) else per_position
        found, offset = [], 0
        for anchors, count in zip(levels, counts, strict=True):
            centers = box_centers(boxes), box_centers(anchors)
            distances = torch.cdist(*centers, compute_mode="donot_use_mm_for_euclid_dist")
            nearest = distances.topk(min(self.topk * count, len(anchors)), dim=1, largest=False).indices
            found.append(nearest + offset)
            offset += len(anchors)
        return torch.cat(found, dim=1)


def _lengths_by_level(values: Sequence) -> list[int]:
    """Lengths of the lists of ``values``; a flat list of numbers is a single list."""
    lists = values if isinstance(values[0], Sequence) else [values]
    return [len(level) for level in lists]


def _ious_and_claims(candidates: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """IoUs of candidates ``(G, C, 4)`` with their boxes ``(G, 4)``, and whether a box claims each: both ``(G, C)``."""
    iou = iou_of_columns(box_columns(candidates), box_columns(boxes)[:, :, None])
    # A single candidate has no standard deviation: its IoU is the threshold.
    threshold = iou.mean(dim=1) + (iou.std(dim=1) if iou.shape[1] > 1 else 0.0)
    centers = box_centers(candidates)
    inside = ((centers > boxes[:, None, :2]) & (centers < boxes[:, None, 2:])).all(dim=2)
    return iou, (iou >= threshold[:, None]) & inside & (iou > 0)


def _assign_claimed_anchors(anchor, iou, box, best_iou, matched, is_foreground) -> None:
    """Update the last three arguments, ``(R,)`` each, in place by claims, ``(M,)`` each.

    Blocks come in the order of their boxes, so an earlier block wins if IoUs are equal.
    """
    improved = best_iou.scatter_reduce(0, anchor, iou, "amax")
    wins = (iou == improved[anchor]) & (iou > best_iou[anchor])
    # Among equal IoUs the first box wins: the smallest index.
    first = torch.full_like(matched, torch.iinfo(torch.int64).max)
    first.scatter_reduce_(0, anchor[wins], box[wins], "amin")
    matched[anchor[wins]] = first[anchor[wins]]
    is_foreground[anchor[wins]] = True
    best_iou.copy_(improved)
