import pytest
import torch

from retinanet_ext.detection import Box2BoxTransform, decode_image
from retinanet_ext.detection.decoding import decode_level

DECODE = Box2BoxTransform().apply_deltas
SETTINGS = {"score_thresh": 0.05, "topk": 1000, "nms_thresh": 0.5, "max_detections": 100}


def logit(p: float) -> float:
    return torch.logit(torch.tensor(p, dtype=torch.float64)).item()


def test_level_by_hand():
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
    logits = torch.tensor([[logit(0.9), logit(0.04)], [logit(0.3), logit(0.6)]])
    deltas = torch.tensor([[0.1, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    found = decode_level(logits, deltas, anchors, DECODE, score_thresh=0.05, topk=10)
    assert found.scores.tolist() == pytest.approx([0.9, 0.6, 0.3])
    assert found.classes.tolist() == [0, 1, 0]
    # The first anchor moves by 0.1 of its width; the second anchor counts once for each class.
    assert found.boxes.tolist() == [[1, 0, 11, 10], [20, 0, 30, 10], [20, 0, 30, 10]]
    best = decode_level(logits, deltas, anchors, DECODE, score_thresh=0.05, topk=2)
    assert best.scores.tolist() == pytest.approx([0.9, 0.6])


def test_the_threshold_is_exclusive():
    logits = torch.zeros(1, 1)  # a score of exactly 0.5
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    assert len(decode_level(logits, torch.zeros(1, 4), box, DECODE, score_thresh=0.5, topk=5).scores) == 0
    assert len(decode_level(logits, torch.zeros(1, 4), box, DECODE, score_thresh=0.49, topk=5).scores) == 1


def test_nms_runs_over_all_levels():
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    logits = [torch.tensor([[logit(0.6)]]), torch.tensor([[logit(0.8)]])]
    found = decode_image(logits, [torch.zeros(1, 4)] * 2, [box, box + 1], DECODE, **SETTINGS)
    # IoU 81 / 119 > 0.5: the finer level's box loses to the coarser one's.
    assert found.boxes.tolist() == [[1, 1, 11, 11]]
    found = decode_image(logits, [torch.zeros(1, 4)] * 2, [box, box + 1], DECODE, **{**SETTINGS, "nms_thresh": 0.7})
    assert found.scores.tolist() == pytest.approx([0.8, 0.6])


def test_at_most_max_detections(generator):
    corner = torch.arange(50.0)[:, None] * 20
    anchors = torch.cat([corner, corner, corner + 10, corner + 10], dim=1)
    logits = torch.randn(50, 1, generator=generator)
    found = decode_image([logits], [torch.zeros(50, 4)], [anchors], DECODE, **{**SETTINGS, "max_detections": 7})
    expected = logits.flatten().sigmoid().sort(descending=True).values[:7]
    torch.testing.assert_close(found.scores, expected)


def test_nothing_found():
    found = decode_image([torch.full((3, 2), -20.0)], [torch.zeros(3, 4)], [torch.rand(3, 4)], DECODE, **SETTINGS)
    assert found.boxes.shape == (0, 4) and found.scores.shape == (0,) and found.classes.shape == (0,)
