"""From raw dense predictions to detections (RetinaNet paper, section 4.1 "Inference")."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from retinanet_ext.ops import batched_nms


class Detections(NamedTuple):
    """Detections of one image: boxes ``(D, 4)`` xyxy in pixels, scores ``(D,)``, classes ``(D,)`` int64."""

    boxes: torch.Tensor
    scores: torch.Tensor
    classes: torch.Tensor


def decode_level(
    logits: torch.Tensor,
    deltas: torch.Tensor,
    anchors: torch.Tensor,
    decode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    score_thresh: float,
    topk: int,
) -> Detections:
    """The best candidates of one image on one feature level, by descending score.

    An anchor may yield several, one per class: the classifiers are independent.

    Args:
        logits: ``(R, K)``.
        deltas: ``(R, 4)``.
        anchors: ``(R, 4)``, xyxy in pixels.
        decode: ``(deltas (M, 4), anchors (M, 4)) -> boxes (M, 4)``.
        score_thresh: only scores above it count.
        topk: at most this many candidates.
    """
    scores = logits.float().sigmoid().flatten()
    candidates = torch.nonzero(scores > score_thresh).squeeze(1)
    scores, order = scores[candidates].topk(min(topk, len(candidates)))
    candidates = candidates[order]
    num_classes = logits.shape[1]
    anchor_index = torch.div(candidates, num_classes, rounding_mode="floor")
    boxes = decode(deltas[anchor_index], anchors[anchor_index])
    return Detections(boxes, scores, candidates % num_classes)


def decode_image(
    logits: Sequence[torch.Tensor],
    deltas: Sequence[torch.Tensor],
    anchors: Sequence[torch.Tensor],
    decode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    score_thresh: float,
    topk: int,
    nms_thresh: float,
    max_detections: int,
) -> Detections:
    """Detections of one image over all levels: candidates of each, class-wise NMS, the best of what is left.

    Args:
        logits, deltas, anchors: per level ``(R_l, K)``, ``(R_l, 4)``, ``(R_l, 4)``.
        score_thresh, topk: see :func:`decode_level`; the top k are taken on each level.
        nms_thresh: IoU above which the lower-scored box of a class is dropped.
        max_detections: at most this many are kept.

    Returns:
        Detections by descending score, boxes not clipped to the image.
    """
    levels = [
        decode_level(*level, decode, score_thresh=score_thresh, topk=topk) for level in zip(logits, deltas, anchors)
    ]
    boxes, scores, classes = (torch.cat(parts) for parts in zip(*levels))
    keep = batched_nms(boxes, scores, classes, nms_thresh)[:max_detections]
    return Detections(boxes[keep], scores[keep], classes[keep])
