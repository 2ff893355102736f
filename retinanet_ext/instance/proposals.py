"""Proposals: from the raw outputs of the first stage to the boxes that the second stage looks at.

The file goes from the method to what runs:

1. :func:`proposals_of_image` is the method step by step, for one image: a reference. Training and inference do not
   call it; tests compare the fast form with it.
2. :func:`proposals_of_batch` is what runs: the same for a whole batch.

N images per batch, R_l anchors on level l. Source: Ren et al., "Faster R-CNN", section 3.1; the choice per level is
that of Lin et al., "Feature Pyramid Networks".
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from retinanet_ext.ops import batched_nms, nms_of_valid

# On CUDA, NMS compares all pairs of the boxes in a call, also those of different images, and keeps a bit for each pair.
# Images share a call up to this many boxes: 33 MB.
BOXES_PER_NMS = 2**14
# NMS is tried on this many candidates per wanted proposal first, then on all. A box with a lower logit never affects
# one with a higher logit, so the first ones suffice if they leave enough.
CANDIDATES_PER_PROPOSAL = (2, 4)


class Proposals(NamedTuple):
    """Proposals of one image, by descending logit: boxes ``(P, 4)`` xyxy in pixels, logits ``(P,)`` float32."""

    boxes: torch.Tensor
    logits: torch.Tensor


def proposals_of_image(
    logits: Sequence[torch.Tensor],
    deltas: Sequence[torch.Tensor],
    anchors: Sequence[torch.Tensor],
    decode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    image_size: tuple[int, int],
    *,
    pre_nms_topk: int,
    nms_thresh: float,
    post_nms_topk: int,
    min_box_size: float,
) -> Proposals:
    """Proposals of one image: the best of each level, without those that are too small or overlap a better one.

    A reference; training and inference run :func:`proposals_of_batch`. The arguments are the same, but without the
    image dimension: per level logits ``(R_l,)``, deltas ``(R_l, 4)`` and anchors ``(R_l, 4)``.
    """
    candidates = []
    for level, (level_logits, level_deltas, level_anchors) in enumerate(zip(logits, deltas, anchors, strict=True)):
        best = level_logits.argsort(descending=True, stable=True)[:pre_nms_topk]
        boxes = decode(level_deltas[best].float(), level_anchors[best])
        candidates.append((boxes, level_logits[best].float(), torch.full_like(best, level)))
    boxes, scores, levels = (torch.cat(parts) for parts in zip(*candidates))
    is_finite = boxes.isfinite().all(dim=1) & scores.isfinite()
    height, width = image_size
    boxes = torch.stack([boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)], dim=2).flatten(1)
    is_large = ((boxes[:, 2:] - boxes[:, :2]) > min_box_size).all(dim=1)
    boxes, scores, levels = (values[is_finite & is_large] for values in (boxes, scores, levels))
    keep = batched_nms(boxes, scores, levels, nms_thresh)[:post_nms_topk]
    return Proposals(boxes[keep], scores[keep])


@torch.no_grad()
def proposals_of_batch(
    logits: Sequence[torch.Tensor],
    deltas: Sequence[torch.Tensor],
    anchors: Sequence[torch.Tensor],
    decode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    image_sizes: Sequence[tuple[int, int]],
    *,
    pre_nms_topk: int,
    nms_thresh: float,
    post_nms_topk: int,
    min_box_size: float,
) -> list[Proposals]:
    """Proposals of each image of a batch: as :func:`proposals_of_image`, except for the choice among equal logits.

    Only the best anchors are decoded. On CUDA all shapes but those of the result are known in advance: the host waits
    for the device once in each call of NMS, which images share up to ``BOXES_PER_NMS`` boxes, and once after it.
    Boxes and scores that are not finite are dropped.

    Args:
        logits, deltas, anchors: per level ``(N, R_l)``, ``(N, R_l, 4)``, ``(R_l, 4)``; anchors xyxy in pixels.
        decode: ``(deltas (M, 4), anchors (M, 4)) -> boxes (M, 4)``; gets float32.
        image_sizes: height and width in pixels of each of the N images; boxes are clipped to it.
        pre_nms_topk: at most this many candidates are taken from each level of an image.
        nms_thresh: IoU above which the lower-scored box of a level is dropped.
        post_nms_topk: at most this many proposals are kept per image, over all levels.
        min_box_size: boxes with a side that is not longer than this, after clipping, are dropped.
    """
    if not len(image_sizes):
        return []
    boxes, scores, levels = _candidates(logits, deltas, anchors, decode, pre_nms_topk)
    is_finite = boxes.isfinite().all(dim=2) & scores.isfinite()
    sizes = torch.tensor([[w, h, w, h] for h, w in image_sizes], dtype=boxes.dtype, device=boxes.device)
    boxes = torch.minimum(boxes.clamp(min=0), sizes[:, None])
    is_valid = is_finite & ((boxes[..., 2:] - boxes[..., :2]) > min_box_size).all(dim=2)
    total = scores.shape[1]
    for count in sorted({min(total, factor * post_nms_topk) for factor in CANDIDATES_PER_PROPOSAL} | {total}):
        candidates = (values[:, :count] for values in (boxes, scores, levels, is_valid))
        kept = _not_suppressed(*candidates, nms_thresh, len(logits))
        num_kept = kept.sum(dim=1)
        lacks = (num_kept < post_nms_topk) & is_valid[:, count:].any(dim=1)
        numbers, lacking = torch.stack([num_kept.clamp(max=post_nms_topk), lacks.long()]).tolist()
        if not any(lacking):
            break
    index = kept.byte().argsort(dim=1, descending=True, stable=True)[:, :post_nms_topk]
    image = torch.arange(len(boxes), device=boxes.device)[:, None]
    boxes, scores = boxes[image, index], scores[image, index]
    return [Proposals(boxes[i, :number], scores[i, :number]) for i, number in enumerate(numbers)]


def _candidates(
    logits: Sequence[torch.Tensor],
    deltas: Sequence[torch.Tensor],
    anchors: Sequence[torch.Tensor],
    decode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    topk: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The best of each level of each image by descending logit: boxes ``(N, C, 4)``, logits ``(N, C)`` and levels
    ``(N, C)``."""
    parts = []
    for level, (level_logits, level_deltas, level_anchors) in enumerate(zip(logits, deltas, anchors, strict=True)):
        num_images, num_anchors = level_logits.shape
        scores, index = level_logits.topk(min(topk, num_anchors), dim=1)
        image = torch.arange(num_images, device=index.device)[:, None]
        parts.append((scores.float(), level_deltas[image, index].float(), level_anchors[index], index * 0 + level))
    scores, deltas, anchors, levels = (torch.cat(values, dim=1) for values in zip(*parts))
    boxes = decode(deltas.flatten(0, 1), anchors.flatten(0, 1)).view_as(deltas)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    image = torch.arange(len(scores), device=scores.device)[:, None]
    return boxes[image, order], scores, levels[image, order]


def _not_suppressed(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    levels: torch.Tensor,
    is_valid: torch.Tensor,
    nms_thresh: float,
    num_levels: int,
) -> torch.Tensor:
    """Which of the candidates ``(N, C)`` are valid and remain after NMS per image and level: ``(N, C)`` bool."""
    num_images, per_image = scores.shape
    groups = torch.arange(num_images, device=scores.device)[:, None] * num_levels + levels
    candidates = (boxes, torch.where(is_valid, scores, -torch.inf), groups, is_valid)
    images_per_call = num_images if boxes.device.type == "cpu" else max(1, BOXES_PER_NMS // max(1, per_image))
    calls = zip(*(values.split(images_per_call) for values in candidates))
    return torch.cat([nms_of_valid(*call, num_images * num_levels, nms_thresh) for call in calls])
