import json

import pytest
import torch

from benchmarks import focal_loss
from benchmarks.measure import Case

TINY = ["--images=2", "--anchors=50", "--classes=3", "--repeats=2", "--threads=1"]
ROWS = ["retinanet_ext", "plain formula", "torchvision", "fvcore, as Detectron2 calls it"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_rows_agree_and_are_timed(dtype, capsys, tmp_path, device):
    file = tmp_path / "times.json"
    focal_loss.main([*TINY, f"--dtype={dtype}", f"--json={file}", f"--device={device.type}"])
    output = capsys.readouterr().out
    assert all(f"| {row} " in output for row in ROWS) and "floor: " in output
    cases = json.loads(file.read_text())["tables"]["focal_loss"]
    assert [case["name"] for case in cases] == ROWS
    assert all(len(case["seconds"]) == 2 and case["difference"] is not None for case in cases)


@pytest.mark.parametrize("wrong", ["loss", "gradient", "nan"])
def test_a_wrong_row_is_not_timed(wrong, device):
    settings = focal_loss.make_arguments().parse_args([*TINY, f"--device={device.type}"])
    logits, labels = focal_loss.make_inputs(settings)
    right = focal_loss.make_cases(logits, labels, gamma=2.0)[0]
    loss, gradient = right.run()
    if wrong == "loss":
        loss = loss * 1.001
    elif wrong == "gradient":
        gradient = torch.where(labels[..., None] == -1, 0.001, gradient)
    else:
        gradient = gradient * torch.nan
    with pytest.raises(RuntimeError, match="bad differs .* nothing was timed"):
        focal_loss.check([right, Case("bad", lambda: (loss, gradient))], logits, labels, 2.0, "float32")


def test_inputs_hold_all_kinds_of_anchors():
    settings = focal_loss.make_arguments().parse_args(["--images=1", "--anchors=5000", "--classes=3"])
    _, labels = focal_loss.make_inputs(settings)
    assert set(labels.unique().tolist()) == {-1, 0, 1, 2, 3}
