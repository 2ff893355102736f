"""Decoding: from raw dense predictions to detections (Focal Loss paper, section 4.1 "Inference").

The file goes from the method to what runs:

1. :func:`decode_image` is the method step by step, for one image: a reference. Inference does not call it; tests
   compare the fast form with it. Only ``torch.jit.trace`` records it, because every step is a tensor operation.
2. :func:`decode_batch` is what inference runs. It finds the same for a whole batch, and waits for the device a fixed
   number of times.

N images per batch, K classes, R_l anchors on level l.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from retinanet_ext.ops import batched_nms, nms_of_valid

# NMS is tried on this many candidates per requested detection first; that is nearly always enough.
CANDIDATES_PER_DETECTION = 10


class Detections(NamedTuple):
    """Detections of one image: boxes ``(D, 4)`` xyxy in pixels, scores ``(D,)``, classes ``(D,)`` int64."""

    boxes: torch.Tensor
    scores: torch.Tensor
    classes: torch.Tensor


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
    """Detections of one image: best candidates of each level, class-wise NMS over all levels, best of what remains.

    A reference; inference runs :func:`decode_batch`. The arguments are the same, but without the image dimension: per
    level logits ``(R_l, K)``, deltas ``(R_l, 4)`` and anchors ``(R_l, 4)``.
    """
    levels = [
        decode_level(*level, decode, score_thresh=score_thresh, topk=topk) for level in zip(logits, deltas, anchors)
    ]
    boxes, scores, classes = (torch.cat(parts) for parts in zip(*levels))
    keep = batched_nms(boxes, scores, classes, nms_thresh)[:max_detections]
    return Detections(boxes[keep], scores[keep], classes[keep])


def decode_level(
    logits: torch.Tensor,
    deltas: torch.Tensor,
    anchors: torch.Tensor,
    decode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    score_thresh: float,
    topk: int,
) -> Detections:
    """The best candidates of one image on one feature level, by descending score. Part of the reference.

    An anchor may yield several candidates, one per class: the classifiers are independent.

    Args:
        logits: ``(R, K)``.
        deltas: ``(R, 4)``.
        anchors: ``(R, 4)``, xyxy in pixels.
        decode, score_thresh, topk: see :func:`decode_batch`.
    """
    scores = logits.float().sigmoid().flatten()
    candidates = torch.nonzero(scores > score_thresh).squeeze(1)
    # Sorted and cut, because a trace would keep the number of candidates that `topk` needs as a constant.
    scores, order = scores[candidates].sort(descending=True)
    scores, candidates = scores[:topk], candidates[order[:topk]]
    num_classes = logits.shape[1]
    anchor_index = torch.div(candidates, num_classes, rounding_mode="floor")
    boxes = decode(deltas[anchor_index], anchors[anchor_index])
    return Detections(boxes, scores, candidates % num_classes)


def decode_batch(
    logits: Sequence[torch.Tensor],
    deltas: Sequence[torch.Tensor],
    anchors: Sequence[torch.Tensor],
    decode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    score_thresh: float,
    topk: int,
    nms_thresh: float,
    max_detections: int,
) -> list[Detections]:
    """Detections of each image of a batch: as :func:`decode_image`, except for the choice among equal scores.

    On CUDA all shapes except those of the result are known in advance. So the host waits for the device only twice,
    whatever the number of images and levels: in NMS and for the numbers of detections. It waits twice more if the best
    ``CANDIDATES_PER_DETECTION * max_detections`` candidates of an image leave too few detections and the image has
    more candidates.

    Args:
        logits, deltas, anchors: per level ``(N, R_l, K)``, ``(N, R_l, 4)``, ``(R_l, 4)``; anchors xyxy in pixels.
            Half-precision logits are compared as they are; scores are float32. A NaN logit is never a candidate; the
            batch is then decoded a second time, without the NaNs.
        decode: ``(deltas (M, 4), anchors (M, 4)) -> boxes (M, 4)``.
        score_thresh: only scores above it count.
        topk: at most this many candidates are taken from each level of an image.
        nms_thresh: IoU above which the lower-scored box of a class is dropped.
        max_detections: at most this many detections are kept per image.

    Returns:
        For each of the N images its detections, by descending score; boxes are not clipped to the image.
    """
    limits = {"score_thresh": score_thresh, "topk": topk, "nms_thresh": nms_thresh, "max_detections": max_detections}
    if torch.jit.is_tracing():
        images = range(logits[0].shape[0])
        return [decode_image([x[i] for x in logits], [x[i] for x in deltas], anchors, decode, **limits) for i in images]
    levels = [_best_entries(*level, score_thresh, topk) for level in zip(logits, deltas, anchors)]
    *entries, has_nan = zip(*levels)
    scores, classes, level_deltas, level_anchors = (torch.cat(parts, dim=1) for parts in entries)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    total, num_classes = scores.shape[1], logits[0].shape[2]
    image = torch.arange(len(scores), device=scores.device)[:, None]
    for count in (min(total, CANDIDATES_PER_DETECTION * max_detections), total):
        first = order[:, :count]
        rows = (level_deltas[image, first].flatten(0, 1), level_anchors[image, first].flatten(0, 1))
        boxes, best, labels = decode(*rows).view(*first.shape, 4), scores[:, :count], classes[image, first]
        groups, num_groups = image * num_classes + labels, len(scores) * num_classes
        kept = nms_of_valid(boxes, best, groups, best > score_thresh, num_groups, nms_thresh)
        num_kept = kept.sum(dim=1)
        lacking = (num_kept < max_detections) & (scores[:, count:] > score_thresh).any(dim=1)
        flags = torch.stack([lacking.any(), torch.stack(has_nan).any()])
        *numbers, lacks_any, has_any_nan = torch.cat([num_kept.clamp(max=max_detections), flags]).tolist()
        if has_any_nan:
            logits = [level.masked_fill(level.isnan(), -torch.inf) for level in logits]
            return decode_batch(logits, deltas, anchors, decode, **limits)
        if not lacks_any:
            break
    index = kept.byte().argsort(dim=1, descending=True, stable=True)[:, :max_detections]
    found = [values[image, index] for values in (boxes, best, labels)]
    return [Detections(*(values[i, :number] for values in found)) for i, number in enumerate(numbers)]


def _best_entries(
    logits: torch.Tensor, deltas: torch.Tensor, anchors: torch.Tensor, score_thresh: float, topk: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The ``topk`` best scores of each image on one level (all, if there are fewer), by descending score.

    All of them belong to the ``topk`` anchors whose best class has the greatest logits, because no more anchors than
    that can hold one each. So a single pass reads all logits, and only small tensors are sorted.

    Returns:
        Scores ``(N, C)`` float32, classes ``(N, C)`` int64, deltas ``(N, C, 4)``, anchors ``(N, C, 4)``; and whether a
        logit is NaN, scalar bool: NaN counts as the greatest number, so the rest is then of no use.
    """
    num_images, num_anchors, num_classes = logits.shape
    first_row = torch.arange(0, num_images * num_anchors, num_anchors, device=logits.device)[:, None]
    best = logits.amax(dim=2)
    anchor = best.topk(min(topk, _num_candidates_needed(best, score_thresh))).indices
    anchor_logits = _rows(logits.flatten(0, 1), first_row + anchor).flatten(1)
    scores, entry = _best_scores(anchor_logits, score_thresh, topk)
    anchor = anchor.gather(1, torch.div(entry, num_classes, rounding_mode="floor"))
    deltas, anchors = _rows(deltas.flatten(0, 1), first_row + anchor), _rows(anchors, anchor)
    return scores, entry % num_classes, deltas, anchors, best.isnan().any()


def _rows(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """``table[index]`` for a table ``(M, D)``; several times as fast on CPU."""
    return table.index_select(0, index.flatten()).view(*index.shape, table.shape[1])


def _num_candidates_needed(logits: torch.Tensor, score_thresh: float) -> int:
    """How many candidates an image needs at most, from logits ``(N, M)``: on CPU those above the threshold, else M."""
    if not _is_sync_free(logits):
        return logits.shape[1]
    return max((logits.float().sigmoid() > score_thresh).sum(dim=1).tolist(), default=0)


def _best_scores(logits: torch.Tensor, score_thresh: float, topk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``topk`` best scores of each image and their columns in ``logits`` ``(N, M)``, both ``(N, C)``.

    On CPU only scores above the threshold are sorted, which is much less work; -inf pads images with fewer scores.
    """
    if not _is_sync_free(logits) or not len(logits):
        best, column = logits.topk(min(topk, logits.shape[1]))
        return best.float().sigmoid(), column
    scores = logits.float().sigmoid()
    columns = [torch.nonzero(row > score_thresh).squeeze(1) for row in scores]
    passing = pad_sequence([row[i] for row, i in zip(scores, columns)], batch_first=True, padding_value=-torch.inf)
    best, index = passing.topk(min(topk, passing.shape[1]))
    return best, pad_sequence(columns, batch_first=True).gather(1, index)


def _is_sync_free(values: torch.Tensor) -> bool:
    """Whether the host can read values, for example to choose a shape, without waiting for a device: on CPU only."""
    return values.device.type == "cpu"
