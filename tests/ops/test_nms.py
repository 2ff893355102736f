import pytest
import torch
import torchvision

from retinanet_ext.ops import batched_nms, nms, nms_in_blocks, nms_of_valid, pairwise_iou


def random_boxes(generator, count, size=60.0):
    boxes = torch.rand(count, 4, generator=generator) * size
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def by_definition(boxes, scores, groups, threshold):
    """One box after the other, by descending score, in float64."""
    kept = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        better = [j for j in kept if groups[j] == groups[i]]
        if not (pairwise_iou(boxes[i : i + 1].double(), boxes[better].double()) > threshold).any():
            kept.append(i)
    return kept


# Calls of one group, of several groups, and of all groups.
@pytest.mark.parametrize("boxes_per_call", [1, 20, nms.BOXES_PER_CALL, 10**6])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
def test_equals_the_definition(generator, device, monkeypatch, boxes_per_call, threshold):
    monkeypatch.setattr(nms, "BOXES_PER_CALL", boxes_per_call)
    boxes, groups = random_boxes(generator, 120) - 40, torch.randint(0, 9, (120,), generator=generator)
    scores = torch.randint(0, 30, (120,), generator=generator) / 30  # many are equal
    kept = batched_nms(boxes.to(device), scores.to(device), groups.to(device), threshold)
    assert kept.tolist() == by_definition(boxes, scores, groups, threshold)


def test_invalid_candidates_have_no_effect(generator, device):
    # Two images of three classes; the best candidates, some of them with boxes that are not numbers, are invalid.
    boxes, scores = random_boxes(generator, 80), torch.randperm(80, generator=generator) / 80
    groups = torch.randint(0, 3, (80,), generator=generator) + torch.tensor([0, 3]).repeat_interleave(40)
    is_valid = scores < 0.7
    boxes[scores > 0.9] = torch.nan
    arguments = (values.view(2, 40, *values.shape[1:]).to(device) for values in (boxes, scores, groups, is_valid))
    kept = nms_of_valid(*arguments, 6, 0.3)
    valid = torch.nonzero(is_valid).squeeze(1)
    expected = valid[by_definition(boxes[valid], scores[valid], groups[valid], 0.3)]
    assert kept.shape == (2, 40)
    assert torch.nonzero(kept.cpu().flatten()).squeeze(1).tolist() == sorted(expected.tolist())


def test_many_groups_at_large_coordinates(generator, device):
    # In float32, offsets beyond 1e8 pixels would leave steps of 8 pixels, the width of the boxes.
    count, num_groups = 3000, 1000
    boxes = random_boxes(generator, count, size=8.0) + 100_000
    scores = torch.randperm(count, generator=generator) / count
    groups = torch.randint(0, num_groups, (count,), generator=generator)
    kept = batched_nms(boxes.to(device), scores.to(device), groups.to(device), 0.5).cpu()
    expected = []
    for group in range(num_groups):
        members = torch.nonzero(groups == group).squeeze(1)
        expected.append(members[torchvision.ops.nms(boxes[members] - 100_000, scores[members], 0.5)])
    assert sorted(kept.tolist()) == sorted(torch.cat(expected).tolist())
    assert torch.equal(scores[kept], scores[kept].sort(descending=True).values)


def test_boxes_left_of_the_origin_stay_in_their_group(device):
    # The first box reaches about as far to the left of the origin as the second reaches to the right.
    boxes = torch.tensor([[-11.0, 0.0, -1.0, 10.0], [0.0, 0.0, 10.0, 10.0]], device=device)
    scores, groups = torch.tensor([0.9, 0.8], device=device), torch.tensor([1, 0], device=device)
    assert batched_nms(boxes, scores, groups, 0.5).tolist() == [0, 1]


@pytest.mark.parametrize("wild", [torch.nan, torch.inf, 1e30])
def test_a_wild_box_does_not_change_others(device, wild):
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [0, 0, wild, wild]], device=device)
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6], device=device)
    groups = torch.tensor([500, 500, 3, 500], device=device)
    assert batched_nms(boxes, scores, groups, 0.5).tolist() == [0, 2, 3]


def test_half_precision_boxes_are_compared_exactly(device):
    boxes = torch.tensor([[0.0, 0.0, 16.0, 16.0], [0.0, 0.0, 16.0, 8.0]], device=device, dtype=torch.float16)
    scores = torch.tensor([0.9, 0.8], device=device, dtype=torch.float16)
    for group in (0, 7, 30_000):  # the IoU is 1/2
        groups = torch.tensor([group, group], device=device)
        assert batched_nms(boxes, scores, groups, 0.5).tolist() == [0, 1]
        assert batched_nms(boxes, scores, groups, 0.49).tolist() == [0]


def test_no_boxes(device):
    kept = batched_nms(*(torch.zeros(shape, device=device) for shape in [(0, 4), (0,)]), torch.zeros(0), 0.5)
    assert kept.shape == (0,) and kept.dtype == torch.int64


def all_blocks(boxes, threshold, block):
    steps = list(nms_in_blocks(boxes, threshold, block))
    assert steps[-1][0] == len(boxes)
    return torch.cat([index for _, index in steps]).tolist()


# Blocks of one box, of some, growing ones, and a single one; runs that pairs and extents fill in parts.
@pytest.mark.parametrize(("block", "largest"), [(1, 1), (7, 7), (3, 50), (10**6, 16)])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("coarse", [False, True])
def test_blocks_equal_the_definition(generator, device, monkeypatch, block, largest, threshold, coarse):
    for name, value in {"LARGEST_BLOCK": largest, "RUN": 4, "PAIRS_OF_RUNS": 5, "EXTENT_PAIRS": 12}.items():
        monkeypatch.setattr(nms, name, value)
    boxes = random_boxes(generator, 150) - 40
    if coarse:  # equal boxes, IoUs equal to the threshold, boxes without area
        boxes = boxes.div(20).round() * 20
    expected = by_definition(boxes, torch.arange(150, 0, -1), torch.zeros(150), threshold)
    assert all_blocks(boxes.to(device), threshold, block) == expected


def test_blocks_of_boxes_of_all_scales_equal_one_call(generator, device):
    corner = torch.rand(5000, 2, generator=generator) * 300
    side = 2 ** (torch.rand(5000, 2, generator=generator) * 7)
    boxes = torch.cat([corner, corner + side], dim=1)
    for threshold in (0.1, 0.5):
        expected = torchvision.ops.nms(boxes.double(), torch.arange(5000, 0, -1).double(), threshold)
        assert all_blocks(boxes.to(device), threshold, 300) == expected.tolist()


def test_wild_boxes_in_blocks(device):
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, torch.nan, 5], [0, 0, torch.inf, torch.inf], [0, 0, 10, 9]])
    assert all_blocks(boxes.to(device), 0.5, 1) == [0, 1, 2]
    assert list(nms_in_blocks(boxes[:0].to(device), 0.5, 1)) == []
