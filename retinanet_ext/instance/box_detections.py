"""Detections of a box branch: from class scores and box offsets of RoIs to the best boxes of each image.

:func:`detect_image` is the method step by step, for one image: a reference that inference does not call.
:func:`detect_batch` is what inference runs; tests compare the two.

N images, R RoIs of an image, M RoIs of all images, K classes.
"""

from collections.abc import Callable, Sequence

import torch

from retinanet_ext.detection.decoding import Detections
from retinanet_ext.ops import batched_nms


def detect_image(
    scores: torch.Tensor,
    deltas: torch.Tensor,
    rois: torch.Tensor,
    decode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    image_size: tuple[int, int],
    *,
    score_thresh: float,
    nms_thresh: float,
    max_detections: int,
) -> tuple[Detections, torch.Tensor]:
    """Detections of one image, and for each the index of its RoI, ``(D,)`` int64. A reference.

    The arguments are those of :func:`detect_batch`, for one image.
    """
    num_classes = scores.shape[1]
    boxes, classes, sources = [], [], torch.arange(len(rois), device=rois.device)
    is_usable = deltas.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
    scores, deltas, rois, sources = (values[is_usable] for values in (scores, deltas, rois, sources))
    for k in range(num_classes):
        columns = deltas if deltas.shape[1] == 4 else deltas[:, 4 * k : 4 * k + 4]
        boxes.append(clipped(decode(columns, rois), torch.tensor([image_size], device=rois.device)))
        classes.append(torch.full_like(sources, k))
    boxes, classes, sources = torch.cat(boxes), torch.cat(classes), sources.repeat(num_classes)
    scores = scores.t().flatten()
    passes = scores > score_thresh
    boxes, scores, classes, sources = (values[passes] for values in (boxes, scores, classes, sources))
    keep = batched_nms(boxes, scores, classes, nms_thresh)[:max_detections]
    return Detections(boxes[keep], scores[keep], classes[keep]), sources[keep]


def detect_batch(
    scores: torch.Tensor,
    deltas: torch.Tensor,
    rois: torch.Tensor,
    counts: Sequence[int],
    decode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    image_sizes: Sequence[tuple[int, int]],
    *,
    score_thresh: float,
    nms_thresh: float,
    max_detections: int,
) -> list[tuple[Detections, torch.Tensor]]:
    """Detections of each of N images, as :func:`detect_image`, except for the choice among equal scores.

    Boxes are decoded only for the scores that pass the threshold. On CUDA the host waits three times, whatever N is.

    Args:
        scores: ``(M, K)`` float32 in [0, 1], without background.
        deltas: ``(M, 4 K)`` or, if class-agnostic, ``(M, 4)``. An RoI with a score or offset that is not finite is
            dropped.
        rois: ``(M, 4)``, xyxy in pixels of the network's input, image by image.
        counts: RoIs of each image, N numbers whose sum is M.
        decode: ``(deltas (D, 4), rois (D, 4)) -> boxes (D, 4)``.
        image_sizes: height and width in pixels of each image; boxes are clipped to it.
        score_thresh: only scores above it count.
        nms_thresh: IoU above which the lower-scored box of a class is dropped.
        max_detections: at most this many detections are kept per image.

    Returns:
        For each image its detections, by descending score, and for each detection the index of its RoI among the M.
    """
    num_classes, device = scores.shape[1], scores.device
    is_usable = deltas.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
    roi, classes = torch.nonzero((scores > score_thresh) & is_usable[:, None], as_tuple=True)
    image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts, dtype=torch.int64)).to(device)[roi]
    columns = torch.zeros_like(classes) if deltas.shape[1] == 4 else classes
    boxes = decode(deltas.unflatten(1, (deltas.shape[1] // 4, 4))[roi, columns], rois[roi])
    sizes = torch.tensor(image_sizes, dtype=torch.int64).view(-1, 2).to(device)
    boxes, scores = clipped(boxes, sizes[image]), scores[roi, classes]
    keep = batched_nms(boxes, scores, image * num_classes + classes, nms_thresh)
    keep = keep[image[keep].argsort(stable=True)]  # image by image, by descending score within each
    numbers = torch.zeros(len(counts), dtype=torch.int64, device=device)
    numbers = numbers.index_add_(0, image[keep], torch.ones_like(keep)).tolist()
    results = []
    for index in keep.split(numbers):
        index = index[:max_detections]
        results.append((Detections(boxes[index], scores[index], classes[index]), roi[index]))
    return results


def clipped(boxes: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Boxes ``(D, 4)`` xyxy, clipped to images of sizes ``(D, 2)`` or ``(1, 2)``, height and width."""
    limits = sizes.flip(1).repeat(1, 2).to(boxes.dtype)
    return boxes.clamp(min=0).minimum(limits)
