import pytest
import torch

from retinanet_ext.detection import IoUMatcher, matcher
from retinanet_ext.detection.matcher import BACKGROUND, FOREGROUND, IGNORE
from retinanet_ext.ops import pairwise_iou

# One ground truth box of 10x10, and anchors of the same corner that are lower, so that IoU is height / 10.
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


def test_all_anchors_tied_for_best_are_forced():
    _, state = IoUMatcher(low_quality="always")(anchors_with_iou(0.3, 0.3, 0.2), GT.double())
    assert state.tolist() == [FOREGROUND, FOREGROUND, BACKGROUND]


def test_a_forced_anchor_keeps_the_box_of_its_own_largest_iou():
    # Anchor 0 is the best for both boxes; its own best is box 0, and box 1 gets nothing.
    gt_boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 9.0, 10.0, 30.0]])
    matched, state = IoUMatcher(low_quality="always")(torch.tensor([[0.0, 0.0, 10.0, 10.0]]), gt_boxes)
    assert matched.tolist() == [0] and state.tolist() == [FOREGROUND]


def test_no_ground_truth_is_all_background():
    matched, state = IoUMatcher()(torch.rand(5, 4), torch.zeros(0, 4))
    assert matched.tolist() == [0] * 5 and state.tolist() == [BACKGROUND] * 5


def test_a_box_that_overlaps_no_anchor_forces_none():
    _, state = IoUMatcher(low_quality="always")(
        anchors_with_iou(1.0), torch.tensor([[50.0, 50.0, 60.0, 60.0]]).double()
    )
    assert state.tolist() == [BACKGROUND]


def by_full_matrix(anchors, gt_boxes, low_quality):
    """The definition over the whole matrix, anchor by anchor."""
    iou = pairwise_iou(gt_boxes, anchors)
    matched, state = [], []
    for r in range(len(anchors)):
        best = iou[:, r].max()
        matched.append(int((iou[:, r] == best).nonzero()[0]))
        is_best_of_some = any(iou[g, r] == iou[g].max() and iou[g, r] > 0 for g in range(len(gt_boxes)))
        if best >= 0.5 or is_best_of_some and (low_quality == "always" or (low_quality == "above_low" and best >= 0.4)):
            state.append(FOREGROUND)
        else:
            state.append(IGNORE if best >= 0.4 else BACKGROUND)
    return matched, state


@pytest.mark.parametrize("low_quality", ["always", "above_low", "never"])
@pytest.mark.parametrize("block_entries", [1, 200, 2**22])
def test_equals_the_definition_whatever_the_blocks(low_quality, block_entries, generator, monkeypatch):
    monkeypatch.setattr(matcher, "BLOCK_ENTRIES", block_entries)
    corner = torch.randint(0, 12, (60, 2), generator=generator)  # a coarse grid makes ties
    boxes = torch.cat([corner, corner + torch.randint(1, 8, (60, 2), generator=generator)], dim=1).float()
    anchors, gt_boxes = boxes[:45], boxes[45:]
    matched, state = IoUMatcher(low_quality=low_quality)(anchors, gt_boxes)
    expected_matched, expected_state = by_full_matrix(anchors, gt_boxes, low_quality)
    assert matched.tolist() == expected_matched
    assert state.tolist() == expected_state


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
