import pytest
import torch

from benchmarks import decoding
from benchmarks.measure import format_cases, time_in_turns

TINY = ["--height=64", "--width=96", "--classes=3", "--images=2", "--topk=50"]


@pytest.fixture
def settings(device):
    return decoding.parse_arguments([*TINY, "--repeats=1", "--device", device.type])


@pytest.mark.parametrize("share", [0.0, 0.05, 1.0])
def test_share_of_the_scores_passes(settings, share):
    inputs = decoding.make_inputs(settings, share)
    scores = torch.cat([level.flatten() for level in inputs.logits]).sigmoid()
    assert (scores > decoding.SCORE_THRESH).float().mean().item() == pytest.approx(share, abs=0.015)


def test_anchors_by_hand():
    anchors = decoding.level_anchors((2, 3), stride=8)
    # In the third cell of the second row, the middle shape of the smallest size is a square of 32 pixels.
    assert anchors.shape == (2 * 3 * 9, 4)
    assert anchors[5 * 9 + 3].tolist() == [16 - 16, 8 - 16, 16 + 16, 8 + 16]


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_rows_agree_and_are_timed(settings, share):
    cases = decoding.measure(settings, share)
    names = [case.name for case in cases]
    assert names[:3] == ["retinanet_ext, whole batch", "retinanet_ext, reference by image", "torchvision"]
    assert all(len(case.seconds) == 1 and case.difference <= decoding.TOLERANCE for case in cases)
    table = format_cases(cases, cases[-1])
    assert all(f"| {name} " in table for name in names)


def test_wrong_detections_are_not_timed(settings, monkeypatch):
    right = decoding.decode_batch
    wrong = {
        "a box": lambda found: found._replace(boxes=found.boxes + 0.1),
        "a score": lambda found: found._replace(scores=found.scores + 1e-4),
        "a class": lambda found: found._replace(classes=found.classes + 1),
        "one too few": lambda found: decoding.Detections(*(x[1:] for x in found)),
        "nothing": lambda found: decoding.Detections(*(x[:0] for x in found)),
        "not a number": lambda found: found._replace(scores=found.scores * torch.nan),
    }
    timed = []
    monkeypatch.setattr(decoding, "time_in_turns", lambda *args: timed.append(args) or time_in_turns(*args))
    for change in wrong.values():
        monkeypatch.setattr(
            decoding, "decode_batch", lambda *args, change=change, **more: [change(x) for x in right(*args, **more)]
        )
        with pytest.raises(RuntimeError, match="whole batch differs from .*reference"):
            decoding.measure(settings, 0.05)
    assert not timed
