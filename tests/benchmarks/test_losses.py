import json

import pytest

from benchmarks import losses
from benchmarks.measure import Case

TINY = ["--images=2", "--anchors=50", "--classes=3", "--repeats=2", "--threads=1"]


@pytest.mark.parametrize("dtype, names", [("float32", list(losses.LOSSES)), ("bfloat16", ["hinge", "varifocal"])])
def test_all_losses_agree_and_are_timed(dtype, names, capsys, tmp_path, device):
    file = tmp_path / "times.json"
    losses.main([*TINY, f"--dtype={dtype}", f"--json={file}", f"--device={device.type}", "--losses", *names])
    output, tables = capsys.readouterr().out, json.loads(file.read_text())["tables"]
    assert list(tables) == names and all(f"| {name} " in output for name in names)
    for cases in tables.values():
        assert [case["name"] for case in cases] == ["dense", "plain formula"]
        assert all(len(case["seconds"]) == 2 and case["difference"] is not None for case in cases)


def test_every_registered_loss_of_the_package_is_there():
    from retinanet_ext.losses import CLS_LOSS_REGISTRY

    ours = {name for name, builder in CLS_LOSS_REGISTRY if builder.__module__.startswith("retinanet_ext.losses.")}
    assert ours == {*losses.LOSSES, "ohem"}  # OHEM's choice of anchors has no plain formula


def test_a_wrong_row_is_not_timed(device):
    settings = losses.make_arguments().parse_args([*TINY, f"--device={device.type}"])
    predictions, targets = losses.make_batch(*losses.make_inputs(settings))
    loss, gradient = losses.make_cases("hinge", predictions, targets)[0].run()
    for wrong in ((loss * 1.001, gradient), (loss, gradient + 0.001), (loss * float("nan"), gradient)):
        with pytest.raises(RuntimeError, match="hinge, bad differs .* nothing was timed"):
            losses.check("hinge", [Case("bad", lambda w=wrong: w)], predictions, targets, "float32")
