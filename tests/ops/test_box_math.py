import pytest
import torch

from retinanet_ext.ops import batched_nms, box_areas, pairwise_iou
from retinanet_ext.ops.box_math import box_columns, iou_of_columns


def test_pairwise_iou_by_hand():
    boxes1 = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    boxes2 = torch.tensor([[1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 2.0, 1.0], [5.0, 5.0, 6.0, 6.0], [0.0, 0.0, 0.0, 0.0]])
    # By column: 1 of 4 + 4 - 1; half of the box; apart; no area. A box without area overlaps nothing, not even itself.
    expected = torch.tensor([[1 / 7, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(pairwise_iou(boxes1, boxes2), expected)
    assert box_areas(boxes1).tolist() == [4.0, 0.0]


def test_pairwise_iou_against_a_loop_over_pixels(generator):
    corners = torch.randint(0, 8, (12, 2), generator=generator)
    boxes = torch.cat([corners, corners + torch.randint(1, 8, (12, 2), generator=generator)], dim=1)
    masks = torch.zeros(12, 16, 16, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        mask[y1:y2, x1:x2] = True
    iou = pairwise_iou(boxes.float(), boxes.float())
    for i in range(12):
        for j in range(12):
            expected = (masks[i] & masks[j]).sum() / (masks[i] | masks[j]).sum()
            assert iou[i, j].item() == pytest.approx(expected.item())


def test_pairwise_iou_of_no_boxes():
    assert pairwise_iou(torch.zeros(0, 4), torch.zeros(3, 4)).shape == (0, 3)


def test_pairwise_iou_equals_detectron2(generator):
    structures = pytest.importorskip("detectron2.structures", reason="Detectron2 is not installed")
    rows = torch.rand(40, 4, generator=generator) * 50
    rows[:30, 2:] += rows[:30, :2]  # the last ten stay as they are: some are inverted
    rows = torch.cat([rows, torch.tensor([[3.0, 3, 3, 8], [6, 6, 4, 4], [0.25, 0.5, 0.75, 1.5], [0, 0, 0, 0]])])
    theirs = structures.pairwise_iou(structures.Boxes(rows), structures.Boxes(rows.flip(0)))
    assert torch.equal(pairwise_iou(rows, rows.flip(0)), theirs)


def test_iou_of_columns_equals_the_readable_form_in_every_bit(generator, device):
    rows = torch.rand(60, 4, generator=generator) * 50
    rows[:40, 2:] += rows[:40, :2]  # the last twenty stay as they are: some are inverted
    special = [
        [3.0, 3, 3, 8],
        [6, 6, 4, 4],
        [0, 0, 0, 0],
        [float("nan"), 0, 9, 9],
        [0, 0, 1e-30, 1e-30],
        [0, 0, 1e9, 1e9],
    ]
    rows = torch.cat([rows, torch.tensor(special)]).to(device)
    for dtype in (torch.float32, torch.float64):
        boxes1, boxes2 = rows.to(dtype), rows.flip(0)[:50].to(dtype)
        expected = pairwise_iou(boxes1, boxes2)
        columns1, columns2 = box_columns(boxes1)[..., None], box_columns(boxes2)
        assert (expected > 0).sum() > 500
        assert torch.equal(iou_of_columns(columns1, columns2), expected)
        scratch = torch.full((3 * expected.numel() + 5,), 7.0, dtype=dtype, device=device)
        result = iou_of_columns(columns1, columns2, scratch)
        assert torch.equal(result, expected) and result.data_ptr() == scratch.data_ptr()


def test_iou_of_columns_of_batches_and_of_no_boxes(generator):
    boxes = torch.rand(2, 3, 4, generator=generator).cumsum(dim=2)
    others = torch.rand(5, 4, generator=generator).cumsum(dim=1)
    iou = iou_of_columns(box_columns(boxes)[..., None], box_columns(others))
    assert torch.equal(iou, torch.stack([pairwise_iou(image_boxes, others) for image_boxes in boxes]))
    assert iou_of_columns(box_columns(torch.zeros(0, 4))[..., None], box_columns(others)).shape == (0, 5)


def test_batched_nms_keeps_classes_apart():
    boxes = torch.tensor(
        [[0.0, 0.0, 10.0, 10.0], [1.0, 0.0, 11.0, 10.0], [1.0, 0.0, 11.0, 10.0], [50.0, 50.0, 60.0, 60.0]]
    )
    scores = torch.tensor([0.6, 0.9, 0.8, 0.7])
    # 1 beats 0, which has IoU 9/11 with it and the same class; 2 is of another class.
    assert batched_nms(boxes, scores, torch.tensor([0, 0, 1, 0]), 0.5).tolist() == [1, 2, 3]
    assert batched_nms(boxes, scores, torch.tensor([0, 0, 1, 0]), 0.9).tolist() == [1, 2, 3, 0]


def test_batched_nms_keeps_a_box_at_the_threshold():
    # Intersection 5, union 10: the IoU is 0.5 exactly, and only greater ones suppress.
    boxes = torch.tensor([[0.0, 0.0, 10.0, 1.0], [0.0, 0.0, 5.0, 1.0]])
    assert batched_nms(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]), 0.5).tolist() == [0, 1]


# Beyond 4000 numbers torchvision itself switches to another method.
@pytest.mark.parametrize("count", [0, 1, 50, 2000])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9])
def test_batched_nms_equals_detectron2(generator, count, threshold):
    layers = pytest.importorskip("detectron2.layers", reason="Detectron2 is not installed")
    boxes = torch.rand(count, 4, generator=generator) * 60
    boxes[:, 2:] += boxes[:, :2]
    # Few distinct scores: it also matters which of two boxes with equal scores suppresses the other.
    scores = torch.randint(0, 20, (count,), generator=generator) / 20
    classes = torch.randint(0, 3, (count,), generator=generator)
    for dtype in (torch.float32, torch.float16):
        typed_boxes = boxes.to(dtype)
        ours = batched_nms(typed_boxes, scores, classes, threshold)
        theirs = layers.batched_nms(typed_boxes, scores, classes, threshold)
        # Among equal scores, ours puts the earlier box first; theirs does not always.
        assert torch.equal(scores[ours], scores[theirs])
        assert set(ours.tolist()) == set(theirs.tolist())
