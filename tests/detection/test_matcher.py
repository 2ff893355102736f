import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import retinanet_ext
from retinanet_ext.detection import IoUMatcher, matcher
from retinanet_ext.detection.matcher import BACKGROUND, FOREGROUND, IGNORE
from retinanet_ext.ops.box_math import box_columns

# One ground truth box of 10x10. The anchors share its corner and width, so that the IoU is height / 10.
GT = torch.tensor([[0.0, 0.0, 10.0, 10.0]])


def anchors_with_iou(*ious: float) -> torch.Tensor:
    return torch.tensor([[0.0, 0.0, 10.0, 10.0 * iou] for iou in ious], dtype=torch.float64)


def test_bands_are_half_open():
    anchors = anchors_with_iou(0.25, 0.5, 0.625, 0.75, 1.0)
    _, state = IoUMatcher(thresholds=(0.5, 0.75), low_quality="never")(anchors, GT.double())
    assert state.tolist() == [BACKGROUND, IGNORE, IGNORE, FOREGROUND, FOREGROUND]


@pytest.mark.parametrize(
    "low_quality, expected",
    [("never", BACKGROUND), ("above_low", BACKGROUND), ("always", FOREGROUND)],
)
def test_best_anchor_below_the_low_threshold(low_quality, expected):
    _, state = IoUMatcher(low_quality=low_quality)(anchors_with_iou(0.1, 0.3), GT.double())
    assert state.tolist() == [BACKGROUND, expected]


@pytest.mark.parametrize(
    "low_quality, expected", [("never", IGNORE), ("above_low", FOREGROUND), ("always", FOREGROUND)]
)
def test_best_anchor_between_the_thresholds(low_quality, expected):
    _, state = IoUMatcher(low_quality=low_quality)(anchors_with_iou(0.1, 0.45), GT.double())
    assert state.tolist() == [BACKGROUND, expected]


def test_all_anchors_tied_for_best_are_foreground():
    _, state = IoUMatcher(low_quality="always")(anchors_with_iou(0.3, 0.3, 0.2), GT.double())
    assert state.tolist() == [FOREGROUND, FOREGROUND, BACKGROUND]


def test_a_low_quality_anchor_keeps_the_box_of_its_own_largest_iou():
    # Anchor 0 is the best for both boxes; its own best is box 0, and box 1 gets nothing.
    gt_boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 9.0, 10.0, 30.0]])
    matched, state = IoUMatcher(low_quality="always")(torch.tensor([[0.0, 0.0, 10.0, 10.0]]), gt_boxes)
    assert matched.tolist() == [0] and state.tolist() == [FOREGROUND]


def test_no_ground_truth_is_all_background():
    matched, state = IoUMatcher()(torch.rand(5, 4), torch.zeros(0, 4))
    assert matched.tolist() == [0] * 5 and state.tolist() == [BACKGROUND] * 5


def test_a_box_that_overlaps_no_anchor_makes_none_foreground():
    _, state = IoUMatcher(low_quality="always")(
        anchors_with_iou(1.0), torch.tensor([[50.0, 50.0, 60.0, 60.0]]).double()
    )
    assert state.tolist() == [BACKGROUND]


def by_a_loop(anchors, gt_boxes, low_quality):
    """The definition, pair by pair, in NumPy's float32."""
    iou = np.zeros((len(gt_boxes), len(anchors)), dtype=np.float32)
    for g, a in enumerate(gt_boxes.numpy()):
        for r, b in enumerate(anchors.numpy()):
            width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            if width > 0 and height > 0:
                area = width * height
                iou[g, r] = area / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - area)
    matched, state = [], []
    for column in iou.T:
        best = column.max(initial=-1)
        matched.append(int(column.argmax()) if len(column) else 0)  # the first among equal IoUs
        is_low_quality = any(value == row.max() and value > 0 for value, row in zip(column, iou))
        if best >= 0.5 or is_low_quality and (low_quality == "always" or (low_quality == "above_low" and best >= 0.4)):
            state.append(FOREGROUND)
        else:
            state.append(IGNORE if best >= 0.4 else BACKGROUND)
    return matched, state


def coarse_boxes(count: int, generator: torch.Generator) -> torch.Tensor:
    """Boxes on a coarse grid, so that some IoUs tie, some boxes have no area, and some are equal."""
    corner = torch.randint(0, 12, (count, 2), generator=generator)
    size = torch.randint(0, 8, (count, 2), generator=generator)
    return torch.cat([corner, corner + size], dim=1).float()


@pytest.fixture(params=["dense", "sparse"])
def form(request, monkeypatch):
    """Runs a test with both fast forms, whatever the number of boxes."""
    monkeypatch.setattr(matcher, "SPARSE_FROM", 10**9 if request.param == "dense" else 1)


@pytest.mark.parametrize("low_quality", ["always", "above_low", "never"])
@pytest.mark.parametrize("block_entries, chunk_anchors", [(1, 1), (200, 16), (2**22, 256)])
def test_equals_a_loop_whatever_the_blocks(form, low_quality, block_entries, chunk_anchors, generator, monkeypatch):
    set_blocks(monkeypatch, block_entries, chunk_anchors)
    anchors, gt_boxes = coarse_boxes(45, generator), coarse_boxes(15, generator)
    gt_boxes = torch.cat([gt_boxes, gt_boxes[:3], anchors[:2], torch.tensor([[90.0, 90.0, 95.0, 95.0]])])
    matched, state = IoUMatcher(low_quality=low_quality)(anchors, gt_boxes)
    expected_matched, expected_state = by_a_loop(anchors, gt_boxes, low_quality)
    assert matched.tolist() == expected_matched
    assert state.tolist() == expected_state


def set_blocks(monkeypatch, block_entries, chunk_anchors=256):
    monkeypatch.setattr(matcher, "BLOCK_ENTRIES", {"cpu": block_entries, "cuda": block_entries})
    monkeypatch.setattr(matcher, "CHUNK_ANCHORS", chunk_anchors)


@pytest.mark.parametrize("block_entries", [1, 500, 2**22])
@pytest.mark.parametrize("counts", [[3, 0, 12, 5], [0, 0], [1], [2, 9, 9]])
def test_a_batch_is_its_images(form, block_entries, counts, generator, device, monkeypatch):
    set_blocks(monkeypatch, block_entries, 16)
    anchors = coarse_boxes(100, generator)
    images = [coarse_boxes(count, generator) for count in counts]
    padded = torch.zeros(len(counts), max(counts), 4)
    for row, boxes in zip(padded, images):
        row[: len(boxes)] = boxes
    matched, state = IoUMatcher().match_batch(anchors.to(device), padded.to(device), counts)
    # The form that other devices run, with all images at once.
    assert matched.dtype == torch.int64 and state.dtype == torch.int8
    dense = matcher._best_matches_dense(box_columns(anchors).to(device), padded.to(device), counts)
    for image, boxes in enumerate(images):
        expected_matched, expected_state = by_a_loop(anchors, boxes, "always")
        assert matched[image].tolist() == expected_matched
        assert state[image].tolist() == expected_state
        reference = matcher.best_matches_reference(anchors, boxes)
        assert reference.matched.tolist() == expected_matched
        for fast, expected in zip(dense, reference, strict=True):
            assert torch.equal(fast[image].cpu(), expected)


def test_many_boxes_of_all_sizes_on_the_anchors_of_an_image(form, generator):
    """Realistic anchors of several levels, compared with the reference."""
    anchors, gt_boxes = grid_anchors(96, 160), torch.rand(150, 4, generator=generator) * 100
    gt_boxes[:, 2:] = gt_boxes[:, :2] + 2 + gt_boxes[:, 2:].square() / 60
    matched, state = IoUMatcher()(anchors, gt_boxes)
    reference = matcher.best_matches_reference(anchors, gt_boxes)
    foreground = (reference.best_iou >= 0.5) | reference.low_quality
    assert torch.equal(state == FOREGROUND, foreground)
    assert torch.equal(state == IGNORE, (reference.best_iou >= 0.4) & ~foreground)
    assert torch.equal(matched, reference.matched)


def grid_anchors(height: int, width: int) -> torch.Tensor:
    """9 anchors at every position of strides 8 to 128, in the order level, row, column."""
    levels = []
    for stride in (8, 16, 32, 64, 128):
        y, x = torch.meshgrid(torch.arange(0, height, stride), torch.arange(0, width, stride), indexing="ij")
        centers = torch.stack([x, y, x, y], dim=2).reshape(-1, 1, 4)
        sides = [
            (4 * stride * 2 ** (i / 3) * r, 4 * stride * 2 ** (i / 3) / r) for i in range(3) for r in (0.7, 1, 1.4)
        ]
        cell = torch.tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in sides])
        levels.append((centers + cell).reshape(-1, 4))
    return torch.cat(levels)


MEMORY_SCRIPT = """
import pathlib, torch
from retinanet_ext.detection import IoUMatcher
torch.set_num_threads(1)
anchors, boxes, small = torch.load("inputs.pt")
IoUMatcher()(anchors, small)  # loads what is loaded on first use
def status(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) // 1024
pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark to the present size
before = status("VmHWM:")
matched, state = IoUMatcher()(anchors, boxes)
print(int((state == 1).sum()), status("VmHWM:") - before)
"""


def test_ten_thousand_boxes_in_500_megabytes(generator, tmp_path):
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("needs /proc/self/clear_refs to measure memory")
    anchors = grid_anchors(800, 1344)
    assert len(anchors) == 201600
    corner = torch.rand(10000, 2, generator=generator) * torch.tensor([1300.0, 780.0])
    size = 10 + torch.rand(10000, 2, generator=generator) * 1300  # large boxes: few IoUs can be skipped
    limit = torch.tensor([1333.0, 800.0])
    boxes = torch.cat([corner, torch.minimum(corner + size, limit)], dim=1)
    torch.save((anchors, boxes, boxes[:100]), tmp_path / "inputs.pt")
    environment = {**os.environ, "PYTHONPATH": str(Path(retinanet_ext.__file__).parents[1])}
    command = [sys.executable, "-c", MEMORY_SCRIPT]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    foreground, grown_mib = map(int, result.stdout.split())
    assert foreground > 10000
    # The matrix alone would be 8 GB.
    assert grown_mib < 400


def test_matches_detectron2(generator):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    from detectron2.modeling.matcher import Matcher
    from detectron2.structures import Boxes
    from detectron2.structures import pairwise_iou as d2_pairwise_iou

    corner = torch.rand(600, 2, generator=generator) * 100
    boxes = torch.cat([corner, corner + 5 + torch.rand(600, 2, generator=generator) * 40], dim=1)
    anchors, gt_boxes = boxes[:560], boxes[560:]
    for allow in (True, False):
        theirs = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=allow)
        expected_matched, expected_state = theirs(d2_pairwise_iou(Boxes(gt_boxes), Boxes(anchors)))
        matched, state = IoUMatcher(low_quality="always" if allow else "never")(anchors, gt_boxes)
        assert torch.equal(matched, expected_matched) and torch.equal(state, expected_state)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"thresholds": (0.5, 0.4)}, "must be ascending"),
        ({"labels": (0, 1)}, "needs 3 entries"),
        ({"labels": (0, 2, 1)}, "may hold 1"),
        ({"low_quality": "alway"}, "legal values: always, above_low, never. Did you mean 'always'"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        IoUMatcher(**change)
