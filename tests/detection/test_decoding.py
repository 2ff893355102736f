import warnings

import pytest
import torch

from retinanet_ext.detection import Box2BoxTransform, decode_image, decoding
from retinanet_ext.detection.decoding import decode_batch, decode_level
from retinanet_ext.ops import pairwise_iou

DECODE = Box2BoxTransform().apply_deltas
SETTINGS = {"score_thresh": 0.05, "topk": 1000, "nms_thresh": 0.5, "max_detections": 100}


def logit(p: float) -> float:
    return torch.logit(torch.tensor(p, dtype=torch.float64)).item()


@pytest.fixture(params=["as on CPU", "as on CUDA"])
def on_device(request, monkeypatch, device):
    """Decodes a batch on the device under test; on CPU also in CUDA's way, which never reads a value early."""
    if request.param == "as on CUDA":
        monkeypatch.setattr(decoding, "_is_sync_free", lambda values: False)
    elif device.type != "cpu":
        pytest.skip("only on CPU")

    def decode(logits, deltas, anchors, **settings):
        levels = ([x.to(device) for x in parts] for parts in (logits, deltas, anchors))
        found = decode_batch(*levels, DECODE, **{**SETTINGS, **settings})
        return [decoding.Detections(*(x.cpu() for x in detections)) for detections in found]

    return decode


def predictions(generator, num_images=3, sizes=(300, 70, 12), num_classes=5, extent=100.0):
    """Logits around the threshold, deltas and anchors of levels with ``sizes`` anchors."""
    levels = []
    for size in sizes:
        corners = torch.rand(size, 2, generator=generator) * extent
        anchors = torch.cat([corners, corners + 8 + 24 * torch.rand(size, 2, generator=generator)], dim=1)
        logits = torch.randn(num_images, size, num_classes, generator=generator) + logit(0.05)
        levels.append((logits, 0.2 * torch.randn(num_images, size, 4, generator=generator), anchors))
    return [list(parts) for parts in zip(*levels)]


def by_image(logits, deltas, anchors, **settings):
    images = range(len(logits[0]))
    return [
        decode_image([x[i] for x in logits], [x[i] for x in deltas], anchors, DECODE, **{**SETTINGS, **settings})
        for i in images
    ]


def assert_equal(actual, expected):
    """Equal, also in order: the scores of random predictions differ."""
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected):
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-6, atol=0)
        torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=1e-5, atol=1e-4)
        assert torch.equal(ours.classes, theirs.classes)


def by_brute_force(logits, deltas, anchors, score_thresh, topk, nms_thresh, max_detections):
    """Detections of one image: (score, box, class) of each, by plain loops over all entries."""
    found = []
    for level in zip(logits, deltas, anchors):
        boxes = DECODE(*level[1:])
        entries = [(score.item(), box, k) for box, row in zip(boxes, level[0].sigmoid()) for k, score in enumerate(row)]
        entries = sorted((x for x in entries if x[0] > score_thresh), key=lambda x: -x[0])
        found += entries[:topk]
    kept = []
    for score, box, k in sorted(found, key=lambda x: -x[0]):
        others = [x[1][None] for x in kept if x[2] == k]
        if not others or pairwise_iou(box[None], torch.cat(others)).max() <= nms_thresh:
            kept.append((score, box, k))
    return kept[:max_detections]


@pytest.mark.parametrize("changes", [{}, {"topk": 40}, {"score_thresh": 0.2, "max_detections": 7}, {"nms_thresh": 0.1}])
def test_equals_brute_force(generator, on_device, changes):
    logits, deltas, anchors = predictions(generator)
    settings = {**SETTINGS, **changes}
    for i, found in enumerate(on_device(logits, deltas, anchors, **settings)):
        expected = by_brute_force([x[i] for x in logits], [x[i] for x in deltas], anchors, **settings)
        assert len(expected) > 5
        assert found.classes.tolist() == [k for _, _, k in expected]
        torch.testing.assert_close(found.scores, torch.tensor([score for score, _, _ in expected]))
        torch.testing.assert_close(found.boxes, torch.stack([box for _, box, _ in expected]), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("score_thresh", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("topk", [0, 1, 25, 1000])
@pytest.mark.parametrize("num_classes", [1, 5])
def test_batch_equals_each_image(generator, on_device, score_thresh, topk, num_classes):
    inputs = predictions(generator, num_classes=num_classes)
    # The images differ: the first has many detections, the last has none.
    for level in inputs[0]:
        level[0] += 1
        level[2] = -200
    settings = {"score_thresh": score_thresh, "topk": topk, "max_detections": 1500}
    found = on_device(*inputs, **settings)
    assert_equal(found, by_image(*inputs, **settings))
    assert len(found[2].scores) == 0
    if topk == 1000 and score_thresh == 0.05:
        assert len(found[0].scores) > len(found[1].scores) > 0


def test_more_candidates_are_tried_if_the_best_do_not_suffice(generator, on_device):
    # Many boxes of one class in a small area: NMS keeps few of the candidates that it sees first.
    inputs = predictions(generator, sizes=(800, 700), num_classes=1, extent=20.0)
    settings = {"score_thresh": 0.01, "max_detections": 15, "nms_thresh": 0.1}
    first = decoding.CANDIDATES_PER_DETECTION * settings["max_detections"]
    expected = by_image(*inputs, **settings)
    cutoffs = [torch.cat([x[i] for x in inputs[0]]).flatten().sigmoid().sort().values[-first] for i in range(3)]
    assert any(found.scores[-1] < cutoff for found, cutoff in zip(expected, cutoffs))
    assert_equal(on_device(*inputs, **settings), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(generator, on_device, dtype):
    logits, deltas, anchors = predictions(generator, num_images=2, sizes=(60, 20), num_classes=3)
    # Different numbers that bfloat16 holds exactly, so that no scores are equal.
    values = torch.cat([torch.arange(128, 256) * 2.0**e for e in range(-10, -6)])  # in [1/8, 2)
    values = values[torch.randperm(512, generator=generator)[:480]].view(2, 80, 3)
    logits, deltas = [x.to(dtype) for x in values.split([60, 20], dim=1)], [x.to(dtype) for x in deltas]
    found = on_device(logits, deltas, anchors)
    assert all(x.scores.dtype == x.boxes.dtype == torch.float32 for x in found)
    assert_equal(found, by_image([x.float() for x in logits], [x.float() for x in deltas], anchors))


def test_equal_scores(on_device):
    # All boxes apart, all scores equal: as many detections as asked for, each once.
    corner = torch.arange(20.0)[:, None] * 20
    anchors = torch.cat([corner, corner, corner + 10, corner + 10], dim=1)
    inputs = [torch.zeros(2, 20, 2)], [torch.zeros(2, 20, 4)], [anchors]
    for settings, expected in [({}, 40), ({"max_detections": 15}, 15), ({"topk": 11}, 11)]:
        for found in on_device(*inputs, **settings):
            assert found.scores.tolist() == [0.5] * expected
            assert len({(*box, k) for box, k in zip(found.boxes.tolist(), found.classes.tolist())}) == expected


def test_no_images(on_device):
    assert on_device([torch.zeros(0, 5, 3)], [torch.zeros(0, 5, 4)], [torch.rand(5, 4)]) == []


def test_nothing_found(on_device):
    for found in on_device([torch.full((2, 3, 2), -20.0)], [torch.zeros(2, 3, 4)], [torch.rand(3, 4)]):
        assert found.boxes.shape == (0, 4) and found.scores.shape == (0,) and found.classes.shape == (0,)


def test_detections_can_be_changed_in_place(generator, on_device):
    # Clipping to the image does this, also if the model is called outside of no_grad().
    logits, deltas, anchors = predictions(generator)
    found = on_device([x.requires_grad_() for x in logits], [x.requires_grad_() for x in deltas], anchors)
    others = [x.boxes.clone() for x in found[1:]]
    found[0].boxes[:, 0].clamp_(min=1e3)
    assert found[0].boxes[:, 0].min() == 1e3
    assert all(torch.equal(x.boxes, other) for x, other in zip(found[1:], others))


def test_nan_is_not_found(on_device):
    logits = torch.full((2, 8, 2), 1.0)
    logits[0] = torch.nan
    found = on_device([logits], [torch.zeros(2, 8, 4)], [torch.rand(8, 4) * 10])
    assert len(found[0].scores) == 0 and len(found[1].scores) > 0


def test_nan_hides_no_other_score(on_device):
    logits = torch.tensor([[[torch.nan], [3.0], [-9.0]]])
    anchors = torch.tensor([[0.0, 0.0, 9.0, 9.0], [20.0, 0.0, 29.0, 9.0], [40.0, 0.0, 49.0, 9.0]])
    found = on_device([logits], [torch.zeros(1, 3, 4)], [anchors])[0]
    assert found.scores.tolist() == pytest.approx([0.952574])  # 1 / (1 + e^-3)
    assert found.boxes.tolist() == [[20.0, 0.0, 29.0, 9.0]]
    # The other class of the same anchor.
    found = on_device([torch.tensor([[[torch.nan, 3.0, -9.0]]])], [torch.zeros(1, 1, 4)], [anchors[:1]])[0]
    assert found.scores.tolist() == pytest.approx([0.952574]) and found.classes.tolist() == [1]


@pytest.mark.parametrize("topk", [5, 40, 1000])
@pytest.mark.parametrize("share", [0.01, 0.3])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_wild_logits_equal_each_image(generator, on_device, value, share, topk):
    inputs = predictions(generator)
    for level in inputs[0][:2]:
        level[torch.rand(level.shape, generator=generator) < share] = value
    found, expected = on_device(*inputs, topk=topk), by_image(*inputs, topk=topk)
    if value == torch.inf:  # entries of equal scores, of which the choice is free
        assert [len(x.scores) for x in found] == [len(x.scores) for x in expected] or topk < 1000
        assert all(x.scores[0] == 1 for x in found)
    else:
        assert_equal(found, expected)
    assert all(len(x.scores) > 5 for x in found)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_wild_deltas_equal_each_image(generator, on_device, value):
    inputs = predictions(generator)
    for level in inputs[1]:
        level[torch.rand(level.shape, generator=generator) < 0.05] = value
    for ours, theirs in zip(on_device(*inputs), by_image(*inputs)):
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-6, atol=0)
        torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=1e-5, atol=1e-4, equal_nan=True)
        assert torch.equal(ours.classes, theirs.classes) and len(ours.scores) > 20
        assert not ours.boxes.isfinite().all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("num_images", [1, 4])
def test_waits_for_the_device_as_often_as_stated(generator, num_images):
    inputs = [[x.cuda() for x in parts] for parts in predictions(generator, num_images)]
    decode_batch(*inputs, torch.add, **SETTINGS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        decode_batch(*inputs, torch.add, **SETTINGS)
        torch.cuda.set_sync_debug_mode("default")
    assert len([x for x in caught if "synchroniz" in str(x.message)]) <= 2


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


def test_the_threshold_is_exclusive(on_device):
    inputs = [torch.zeros(1, 1, 1)], [torch.zeros(1, 1, 4)], [torch.tensor([[0.0, 0.0, 1.0, 1.0]])]  # a score of 0.5
    for score_thresh, expected in [(0.5, 0), (0.49, 1)]:
        assert len(by_image(*inputs, score_thresh=score_thresh)[0].scores) == expected
        assert len(on_device(*inputs, score_thresh=score_thresh)[0].scores) == expected


def test_nms_runs_over_all_levels(on_device):
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    inputs = [torch.full((1, 1, 1), logit(p)) for p in (0.6, 0.8)], [torch.zeros(1, 1, 4)] * 2, [box, box + 1]
    # IoU 81 / 119 > 0.5: the finer level's box loses to the coarser one's.
    for found in (on_device(*inputs), by_image(*inputs)):
        assert found[0].boxes.tolist() == [[1, 1, 11, 11]]
    for found in (on_device(*inputs, nms_thresh=0.7), by_image(*inputs, nms_thresh=0.7)):
        assert found[0].scores.tolist() == pytest.approx([0.8, 0.6])
