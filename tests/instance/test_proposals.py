"""Proposals: by hand, and the batched form against the one for an image."""

import pytest
import torch

from retinanet_ext.instance import proposals as proposals_module
from retinanet_ext.instance.proposals import proposals_of_batch, proposals_of_image
from retinanet_ext.ops import Box2BoxTransform

DECODE = Box2BoxTransform().apply_deltas
LIMITS = {"pre_nms_topk": 40, "nms_thresh": 0.6, "post_nms_topk": 25, "min_box_size": 3.0}


def outputs(generator, device, sizes=(200, 50, 9), num_images=3):
    """Logits, deltas and anchors of each level; some boxes reach beyond the images."""
    logits, deltas, anchors = [], [], []
    for size in sizes:
        corner = torch.rand(size, 2, generator=generator) * 100 - 10
        anchors.append(torch.cat([corner, corner + torch.rand(size, 2, generator=generator) * 40], dim=1))
        logits.append(torch.randn(num_images, size, generator=generator) * 3)
        deltas.append(torch.randn(num_images, size, 4, generator=generator) * 0.3)
    return [[level.to(device) for level in levels] for levels in (logits, deltas, anchors)]


@pytest.mark.parametrize("boxes_per_nms, per_proposal", [(1, (2, 4)), (10**6, (2, 4)), (10**6, (1,)), (10**6, ())])
def test_a_batch_has_the_proposals_of_its_images(boxes_per_nms, per_proposal, generator, device, monkeypatch):
    monkeypatch.setattr(proposals_module, "BOXES_PER_NMS", boxes_per_nms)
    monkeypatch.setattr(proposals_module, "CANDIDATES_PER_PROPOSAL", per_proposal)
    logits, deltas, anchors = outputs(generator, device)
    sizes = [(90, 100), (60, 80), (100, 50)]
    batch = proposals_of_batch(logits, deltas, anchors, DECODE, sizes, **LIMITS)
    for i, (found, size) in enumerate(zip(batch, sizes, strict=True)):
        image = ([level[i] for level in logits], [level[i] for level in deltas], anchors)
        expected = proposals_of_image(*image, DECODE, size, **LIMITS)
        assert 0 < len(expected.boxes) <= 25
        torch.testing.assert_close(found.boxes, expected.boxes)
        torch.testing.assert_close(found.logits, expected.logits)
        assert (found.boxes >= 0).all() and (found.boxes[:, 2:] <= torch.tensor(size[::-1], device=device)).all()
        assert (found.boxes[:, 2:] - found.boxes[:, :2] > 3).all()


def by_hand(boxes, logits, size=(100, 100), device="cpu", **changes):
    """Proposals of one image, given the boxes of each level."""
    anchors = [torch.tensor(level, dtype=torch.float32, device=device) for level in boxes]
    logits = [torch.tensor([level], dtype=torch.float32, device=device) for level in logits]
    deltas = [torch.zeros(1, len(level), 4, device=device) for level in anchors]
    limits = {"pre_nms_topk": 9, "nms_thresh": 0.5, "post_nms_topk": 9, "min_box_size": 0.0, **changes}
    return proposals_of_batch(logits, deltas, anchors, DECODE, [size], **limits)[0]


def test_nms_is_per_level(device):
    box, near, other = [10, 10, 30, 30], [11, 10, 31, 30], [60, 60, 90, 90]
    found = by_hand([[box, near], [near, other]], [[1.0, 2.0], [3.0, 0.0]], device=device)
    # `near` of the first level suppresses `box`, and does not touch `near` of the second level.
    assert found.logits.tolist() == [3.0, 2.0, 0.0]
    assert found.boxes.tolist() == [near, near, other]


def test_limits_count_before_and_after_nms(device):
    apart = [[[i * 20, 0, i * 20 + 10, 10] for i in range(5)], [[i * 20, 50, i * 20 + 10, 60] for i in range(5)]]
    logits = [[0.0, 1.0, 2.0, 3.0, 4.0], [-1.0, -2.0, -3.0, -4.0, -5.0]]
    # Two of each level enter, whichever level has the greater logits.
    assert by_hand(apart, logits, device=device, pre_nms_topk=2).logits.tolist() == [4.0, 3.0, -1.0, -2.0]
    assert by_hand(apart, logits, device=device, pre_nms_topk=2, post_nms_topk=3).logits.tolist() == [4.0, 3.0, -1.0]


def test_more_candidates_are_taken_where_nms_leaves_too_few(device):
    # Ten boxes of one place come first; NMS leaves one of them, and two proposals are wanted.
    boxes = [[[10 + i / 10, 10, 40, 40] for i in range(10)] + [[60, 60, 90, 90], [5, 50, 20, 70]]]
    logits = [[20.0 - i for i in range(12)]]
    assert by_hand(boxes, logits, device=device, pre_nms_topk=99, post_nms_topk=2).logits.tolist() == [20.0, 10.0]
    assert by_hand(boxes, logits, device=device, pre_nms_topk=99).logits.tolist() == [20.0, 10.0, 9.0]


def test_small_boxes_are_dropped_after_clipping(device):
    boxes = [[[0, 0, 10, 10], [96, 0, 116, 10], [200, 0, 220, 10], [20, 20, 24, 40], [20, 50, 26, 60]]]
    logits = [[1.0, 5.0, 4.0, 3.0, 2.0]]
    # 20 pixels wide, but 4 inside the image; outside; 4 pixels wide: not longer than 4.
    assert by_hand(boxes, logits, device=device, min_box_size=4.0).boxes.tolist() == [[20, 50, 26, 60], [0, 0, 10, 10]]
    # With a limit of 0 only the one without area goes.
    assert by_hand(boxes, logits, device=device).logits.tolist() == [5.0, 3.0, 2.0, 1.0]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["logits", "deltas"])
def test_what_is_not_finite_is_dropped(bad, where, generator, device):
    logits, deltas, anchors = outputs(generator, device)
    sizes = [(90, 100)] * 3
    best = int(logits[1][2].argmax())
    {"logits": logits, "deltas": deltas}[where][1][2, best] = bad
    found = proposals_of_batch(logits, deltas, anchors, DECODE, sizes, **LIMITS)
    assert all(values.isfinite().all() for image in found for values in image)
    image = ([level[2] for level in logits], [level[2] for level in deltas], anchors)
    expected = proposals_of_image(*image, DECODE, sizes[2], **LIMITS)
    if bad == torch.inf or where == "deltas":
        torch.testing.assert_close(found[2].boxes, expected.boxes)


def test_without_images_or_boxes(device):
    empty = ([torch.zeros(shape, device=device)] for shape in ((0, 5), (0, 5, 4), (5, 4)))
    assert proposals_of_batch(*empty, DECODE, [], **LIMITS) == []
    nothing = by_hand([[[5, 5, 5, 5]]], [[1.0]], device=device)
    assert nothing.boxes.shape == (0, 4) and nothing.logits.shape == (0,)


def test_half_precision_and_no_graph(generator, device):
    logits, deltas, anchors = outputs(generator, device)
    logits, deltas = ([level.bfloat16().requires_grad_() for level in levels] for levels in (logits, deltas))
    found = proposals_of_batch(logits, deltas, anchors, DECODE, [(90, 100)] * 3, **LIMITS)
    assert all(values.dtype == torch.float32 and not values.requires_grad for image in found for values in image)
