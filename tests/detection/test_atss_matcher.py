import pytest
import torch

from retinanet_ext.detection import ATSSMatcher, label_anchors
from retinanet_ext.detection import atss_matcher as module
from retinanet_ext.ops import pairwise_iou
from retinanet_ext.training.trainer import Trainer
from tests.builders import batch, small_config


def centers(boxes):
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def match_by_definition(levels, gt_boxes, topk):
    """The paper's algorithm 1, one box and one level at a time."""
    anchors = torch.cat(levels)
    best = [(0.0, None)] * len(anchors)
    iou = pairwise_iou(gt_boxes, anchors)
    for g, box in enumerate(gt_boxes):
        candidates, offset = [], 0
        for level in levels:
            distance = (centers(level) - centers(box[None])).square().sum(dim=1).sqrt()
            candidates += [offset + i for i in sorted(range(len(level)), key=lambda i: distance[i].item())[:topk]]
            offset += len(level)
        values = iou[g, candidates]
        threshold = values.mean() + values.std()
        for anchor in candidates:
            x, y = centers(anchors[anchor, None])[0].tolist()
            inside = box[0] < x < box[2] and box[1] < y < box[3]
            if iou[g, anchor] >= threshold and inside and iou[g, anchor] > best[anchor][0]:
                best[anchor] = (iou[g, anchor].item(), g)
    return [g for _, g in best]


def random_boxes(generator, count, low, high):
    center = torch.rand(count, 2, generator=generator) * 100
    size = low + torch.rand(count, 2, generator=generator) * (high - low)
    return torch.cat([center - size / 2, center + size / 2], dim=1)


@pytest.mark.parametrize("num_boxes", [0, 1, 30])
@pytest.mark.parametrize("block", [None, 1000])
def test_matches_are_those_of_the_definition(generator, num_boxes, block, device, monkeypatch):
    if block:  # a few boxes at a time
        monkeypatch.setitem(module.BLOCK_ENTRIES, device.type, block)
    levels = [random_boxes(generator, count, size, 2 * size) for count, size in ((300, 8), (80, 20), (5, 50))]
    gt_boxes = random_boxes(generator, num_boxes, 8, 60)
    matched, state = ATSSMatcher(topk=9)([level.to(device) for level in levels], gt_boxes.to(device))
    expected = match_by_definition(levels, gt_boxes, topk=9)
    assert matched.dtype == torch.int64 and state.dtype == torch.int8
    assert [m if s == 1 else None for m, s in zip(matched.tolist(), state.tolist())] == expected
    assert set(state.tolist()) <= {0, 1} and (num_boxes < 30 or sum(state) > 30)


def test_by_hand():
    # IoUs with the box: 1, 0.5 and 0.25, mean 0.5833, standard deviation 0.3819: the threshold is 0.965.
    levels = [torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 4], [0, 0, 4, 4], [40, 40, 48, 48]])]
    gt_boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
    assert ATSSMatcher(topk=3)(levels, gt_boxes)[1].tolist() == [1, 0, 0, 0]
    # With two candidates: mean 0.75, deviation 0.3536, above every IoU: no anchor reaches the threshold.
    assert ATSSMatcher(topk=2)(levels, gt_boxes)[1].tolist() == [0, 0, 0, 0]
    # With two anchors per position, two positions make four candidates.
    assert ATSSMatcher(topk=2, anchors_per_position=2)(levels, gt_boxes)[1].tolist() == [1, 0, 0, 0]


def test_of_equal_claims_the_first_box_gets_the_anchor():
    levels = [torch.tensor([[0.0, 0, 8, 8], [40, 40, 48, 48], [60, 60, 68, 68]])]
    gt_boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0]]).repeat(3, 1)
    targets = label_anchors(levels, [gt_boxes], [torch.tensor([2, 1, 0])], ATSSMatcher(topk=3), num_classes=3)
    assert targets.labels.tolist() == [[2, 3, 3]]


def test_a_config_names_it_and_trains_with_it(generator):
    cfg = small_config("MODEL.RETINANET.MATCHER.NAME", "ATSSMatcher", "MODEL.RETINANET.MATCHER.ATSS.TOPK", "5")
    model = Trainer.build_model(cfg)
    assert (model.anchor_matcher.topk, model.anchor_matcher.anchors_per_position) == (5, 9)
    losses = model(batch(generator, (64, 96), (64, 64)))
    sum(losses.values()).backward()
    assert all(loss > 0 for loss in losses.values())


FIVE_SIZES = "[[32], [64], [128], [256], [512]]"


@pytest.mark.parametrize(
    ("sizes", "ratios", "expected"),
    [
        ("[[32, 64]]", "[[0.5, 1.0, 2.0]]", 6),
        ("[32, 64]", "[[0.5, 1.0, 2.0]]", 6),
        ("[32, 64, 128, 256, 512]", "[1.0]", 5),  # five sizes on every level, not one size on each
        ("[32]", "[0.5, 1.0]", 2),
        (FIVE_SIZES, "[0.5, 1.0]", 2),
        ("[32, 64]", "[[1.0], [1.0], [1.0], [1.0], [1.0]]", 2),
        (FIVE_SIZES, "[[0.5, 1.0]]", 2),
    ],
)
def test_anchors_per_position_are_those_of_the_anchor_generator(generator, sizes, ratios, expected):
    opts = ["MODEL.ANCHOR_GENERATOR.SIZES", sizes, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", ratios]
    model = Trainer.build_model(small_config("MODEL.RETINANET.MATCHER.NAME", "ATSSMatcher", *opts))
    assert set(model.anchor_generator.num_cell_anchors) == {model.anchor_matcher.anchors_per_position} == {expected}
    assert len(model(batch(generator, (64, 96)))) == 2


def test_a_topk_below_one_is_refused():
    with pytest.raises(ValueError, match="ATSS.TOPK is 0; it must be at least 1"):
        ATSSMatcher(topk=0)
