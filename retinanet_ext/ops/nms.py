"""Non-maximum suppression: class-wise for one image or a whole batch, and of many boxes in blocks."""

from collections.abc import Iterator, Sequence

import torch

from .box_math import box_centers, box_columns, iou_of_columns

# On CPU torchvision compares all pairs of boxes in a call, also those of different groups. Many boxes in one call are
# slow, and so are many calls: groups share a call up to about this many boxes, where both cost the same.
BOXES_PER_CALL = 256
# Coordinates, in pixels, are clamped to this for the comparison. The largest one decides how far apart the groups are
# moved: without a bound, one wild box would cost all others their precision, and an infinite one their meaning.
LARGEST_COORDINATE = 2.0**20
# `nms_in_blocks` starts with small blocks, so that a caller who needs few boxes waits for few, and doubles them up to
# LARGEST_BLOCK. It compares runs of RUN neighbours: the IoUs of PAIRS_OF_RUNS pairs at a time, 6 MB with temporaries,
# after the extents of EXTENT_PAIRS pairs, 16 MB.
LARGEST_BLOCK = 2**14
RUN = 16
PAIRS_OF_RUNS = 2**10
EXTENT_PAIRS = 2**18


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


def nms_of_valid(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    groups: torch.Tensor,
    is_valid: torch.Tensor,
    num_groups: int,
    iou_threshold: float,
) -> torch.Tensor:
    """Which candidates of N images are valid and kept by :func:`batched_nms`: ``(N, C)`` bool.

    On CUDA this waits for the device once: no other shape depends on values.

    Args:
        boxes: ``(N, C, 4)``, xyxy in pixels.
        scores: ``(N, C)``.
        groups: ``(N, C)`` integers from 0 to ``num_groups - 1``; those of different images must differ.
        is_valid: ``(N, C)`` bool; the other candidates have no effect.
        num_groups: groups of all images.
        iou_threshold: a box is dropped when its IoU with a kept box of its group exceeds this.
    """
    # Invalid candidates become identical boxes in one extra group, whose first member suppresses the rest.
    groups = torch.where(is_valid, groups, num_groups)
    any_box = torch.arange(4, device=boxes.device, dtype=boxes.dtype)
    boxes = torch.where(is_valid[..., None], boxes, any_box)
    kept = batched_nms(boxes.flatten(0, 1), scores.flatten(), groups.flatten(), iou_threshold)
    return torch.zeros_like(is_valid).flatten().index_fill(0, kept, True).view_as(is_valid) & is_valid


def nms_in_blocks(boxes: torch.Tensor, iou_threshold: float, block: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Greedy NMS of boxes of one group, as :func:`batched_nms`, in steps: the caller may stop at any time.

    Each step takes the next block of boxes, and drops those that overlap a box kept in an earlier step; NMS runs over
    what is left. A step has twice as many boxes as the one before, at most ``LARGEST_BLOCK``. Memory: a few numbers per
    box, 22 MB of comparisons, and NMS of one block.

    Args:
        boxes: ``(M, 4)``, xyxy in pixels, best first.
        iou_threshold: a box is dropped when its IoU with a kept box exceeds this.
        block: boxes of the first step, at least 1; may be more than ``LARGEST_BLOCK``.

    Yields:
        How many boxes have been seen, and the indices of those that this step keeps: ``(P,)`` int64, ascending.
    """
    if len(boxes) == 0:
        return
    boxes = _moved_apart(boxes, torch.zeros(len(boxes), device=boxes.device))  # one group: only made finite
    kept, start = boxes[:0], 0
    while start < len(boxes):
        end = min(start + block, len(boxes))
        index = torch.arange(start, end, device=boxes.device)
        index = index[~_overlaps_any(boxes[index], kept, iou_threshold)]
        rank = torch.arange(len(index), 0, -1, device=boxes.device)
        index = index[batched_nms(boxes[index], rank, torch.zeros_like(index), iou_threshold)]
        yield end, index
        kept, start, block = torch.cat([kept, boxes[index]]), end, max(block, min(2 * block, LARGEST_BLOCK))


def _overlaps_any(boxes: torch.Tensor, others: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Which of ``boxes`` ``(M, 4)`` have an IoU above the threshold with any of ``others`` ``(P, 4)``: ``(M,)`` bool.

    Boxes alike in scale, shape and position form runs, and only pairs of runs whose extents allow such an IoU are
    compared.
    """
    result = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    if not len(boxes) or not len(others):
        return result
    order, other_order = _runs_of_neighbours(boxes), _runs_of_neighbours(others)
    columns, other_columns = box_columns(boxes[order]), box_columns(others[other_order])
    found = torch.zeros(order.shape, dtype=torch.int32, device=boxes.device)
    scratch = boxes.new_empty(3 * RUN * RUN * PAIRS_OF_RUNS)
    for runs in torch.arange(order.shape[1], device=boxes.device).split(max(1, EXTENT_PAIRS // other_order.shape[1])):
        near = _may_overlap(columns[:, :, runs], other_columns, iou_threshold)
        pairs = torch.nonzero(near, as_tuple=True)
        for run, other_run in zip(runs[pairs[0]].split(PAIRS_OF_RUNS), pairs[1].split(PAIRS_OF_RUNS)):
            # Pairs are the last dimension: a long one, without broadcasting, is several times as fast.
            iou = iou_of_columns(columns[:, :, None, run], other_columns[:, None, :, other_run], scratch)
            found.index_add_(1, run, (iou.amax(dim=1) > iou_threshold).int())
    result[order[found > 0]] = True
    return result


def _runs_of_neighbours(boxes: torch.Tensor) -> torch.Tensor:
    """Indices ``(RUN, B)`` of ``boxes`` ``(M, 4)``: B runs of boxes alike in scale, shape and position. The last run is
    filled up with its last box."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1.0).unbind(1)
    area = width * height
    # An area 1.6 times as large is another scale: the third root of four, the usual step between anchors of a level.
    scale, shape = (area.log2() * 1.5).round(), (height / width).log2().round()
    column, row = (box_centers(boxes) / area.sqrt()[:, None]).floor().unbind(1)
    order = torch.arange(len(boxes), device=boxes.device)
    for key in (column, row, shape, scale):  # the last one is the main one: each sort keeps the order of equals
        order = order[key[order].argsort(stable=True)]
    return torch.cat([order, order[-1:].expand(-len(boxes) % RUN)]).view(-1, RUN).T


def _may_overlap(columns: torch.Tensor, other_columns: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Whether a box of a run ``(5, RUN, A)`` may have an IoU above the threshold with one of a run ``(5, RUN, B)``.

    Columns are those of ``box_columns``.

    Returns:
        ``(A, B)`` bool, true also in some cases where no IoU exceeds the threshold.
    """
    low, high, side, area = _extent_of_runs(columns)
    other_low, other_high, other_side, other_area = _extent_of_runs(other_columns)
    overlap = torch.minimum(high[..., None], other_high[:, None]) - torch.maximum(low[..., None], other_low[:, None])
    largest_side = torch.minimum(side[..., None], other_side[:, None])
    largest_intersection = torch.minimum(overlap, largest_side).clamp_(min=0).prod(dim=0)
    # An IoU is at most the intersection divided by the larger area. The factor leaves room for rounding.
    return largest_intersection > (1 - 1e-9) * iou_threshold * torch.maximum(area[:, None], other_area)


def _extent_of_runs(columns: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Lowest x and y, highest x and y, longest width and height, ``(2, B)`` each, and smallest area ``(B,)`` of each of
    the runs ``(5, RUN, B)``."""
    low, high = columns[:2], columns[2:4]
    return low.amin(dim=1), high.amax(dim=1), (high - low).amax(dim=1), columns[4].amin(dim=0)
