"""Class-wise non-maximum suppression, for the classes of one image or of a whole batch."""

from collections.abc import Sequence

import torch

# On CPU torchvision compares all pairs of boxes in a call, also those of different groups. Many boxes in one call are
# slow, and so are many calls: groups share a call up to about this many boxes, where both cost the same.
BOXES_PER_CALL = 256
# Coordinates, in pixels, are clamped to this for the comparison. The largest one decides how far apart the groups are
# moved: without a bound, one wild box would cost all others their precision, and an infinite one their meaning.
LARGEST_COORDINATE = 2.0**20


def batched_nms(boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Greedy NMS within each group, such as a class of an image: drops a box that overlaps a better, kept box.

    IoUs are computed in float64, with the groups moved apart by the extent of the boxes: float32 coordinates stay exact
    among thousands of groups. On CUDA this waits for the device once.

    Args:
        boxes: ``(M, 4)``, xyxy in pixels, of any floating type.
        scores: ``(M,)``.
        groups: ``(M,)`` integers from 0: the class, or for a batch of images ``image * num_classes + class``; boxes
            of different groups never suppress each other.
        iou_threshold: a box is dropped when its IoU with a kept box of its group exceeds this.

    Returns:
        Indices of the kept boxes, ``(P,)`` int64, by descending score; of equal scores the earlier box first.
    """
    # A trace must not depend on the number of boxes: it also runs where there are more, or none.
    is_tracing = torch.jit.is_tracing()
    if not is_tracing and len(boxes) == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    boxes, scores = _moved_apart(boxes, groups), scores.double()
    if boxes.device.type != "cpu" or is_tracing:
        return _nms(boxes, scores, iou_threshold)
    ordered_groups, order = groups.sort(stable=True)
    sizes = _sizes_of_calls(torch.unique_consecutive(ordered_groups, return_counts=True)[1].tolist())
    calls = zip(*(values.split(sizes) for values in (boxes[order], scores[order], order)))
    kept = [members[_nms(*rows, iou_threshold)] for *rows, members in calls]
    kept = torch.cat(kept).sort().values
    return kept[scores[kept].argsort(descending=True, stable=True)]


def _nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    # Importing torchvision takes about as long as importing torch. Training does not need it.
    from torchvision.ops import nms

    return nms(boxes, scores, iou_threshold)


def _moved_apart(boxes: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """The boxes in float64, with the groups moved so far apart that they cannot overlap."""
    boxes = boxes.double().nan_to_num(nan=0.0).clamp(-LARGEST_COORDINATE, LARGEST_COORDINATE)
    # In a trace there may be no boxes, which have no extent.
    extent = torch.cat([boxes, boxes.new_zeros(1, 4)]) if torch.jit.is_tracing() else boxes
    stride = extent.amax() - extent.amin() + 1
    return boxes + (groups * stride)[:, None]


def _sizes_of_calls(group_sizes: Sequence[int]) -> list[int]:
    """Boxes in each call: consecutive groups share one up to ``BOXES_PER_CALL`` boxes; no group is split."""
    sizes = []
    for size in group_sizes:
        if sizes and sizes[-1] + size <= BOXES_PER_CALL:
            sizes[-1] += size
        else:
            sizes.append(size)
    return sizes
