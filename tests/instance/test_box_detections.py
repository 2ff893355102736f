"""The batched form of detection equals the one that goes image by image and class by class."""

import pytest
import torch

from retinanet_ext.instance.box_detections import detect_batch, detect_image
from retinanet_ext.ops import Box2BoxTransform

DECODE = Box2BoxTransform((10.0, 10.0, 5.0, 5.0)).apply_deltas
LIMITS = {"score_thresh": 0.2, "nms_thresh": 0.5, "max_detections": 12}


@pytest.mark.parametrize("columns", [4, 12])
def test_batch_equals_image_by_image(columns, generator, device):
    counts, sizes = [30, 0, 7, 50], [(60, 80), (50, 50), (40, 90), (100, 70)]
    rois = torch.rand(sum(counts), 4, generator=generator) * 40
    rois[:, 2:] += rois[:, :2] + 10
    scores = torch.rand(sum(counts), 3, generator=generator)
    deltas = torch.randn(sum(counts), columns, generator=generator)
    deltas[3, 1], scores[33, 0] = torch.inf, torch.nan  # such RoIs are dropped
    rois, scores, deltas = rois.to(device), scores.to(device), deltas.to(device)
    found = detect_batch(scores, deltas, rois, counts, DECODE, sizes, **LIMITS)
    first = 0
    for (detections, source), count, size in zip(found, counts, sizes, strict=True):
        rows = slice(first, first + count)
        expected, index = detect_image(scores[rows], deltas[rows], rois[rows], DECODE, size, **LIMITS)
        for a, b in zip(detections, expected):
            assert torch.equal(a, b)
        assert torch.equal(source, index + first)
        assert not {3, 33} & set(source.tolist())
        first += count
    assert [len(detections.scores) for detections, _ in found][:2] == [12, 0]


def test_by_hand():
    rois = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 60, 40]])
    scores = torch.tensor([[0.9, 0.3], [0.8, 0.6], [0.1, 0.7]])
    ((detections, source),) = detect_batch(scores, torch.zeros(3, 4), rois, [3], DECODE, [(30, 50)], **LIMITS)
    # Class 0: the second box overlaps the first. Class 1: the first overlaps the second. The third is clipped.
    assert detections.boxes.tolist() == [[0, 0, 10, 10], [20, 20, 50, 30], [0, 0, 10, 9]]
    assert detections.classes.tolist() == [0, 1, 1] and source.tolist() == [0, 2, 1]
    assert detections.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
