"""Checkpoints of whole runs, on either engine: damage, divergence, what they say about themselves, which ones stay."""

import json
import logging

import pytest
import torch

from retinanet_ext.checkpoint.weights import load_weights
from retinanet_ext.d2 import hooks
from retinanet_ext.training.launch import evaluate
from retinanet_ext.training.trainer import Trainer
from tests.builders import shapes_config

SHORT = ["SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "1", "DATASETS.TEST", "()"]


def trained(cfg, *more_hooks):
    trainer = Trainer(cfg)
    trainer.register_hooks([*more_hooks])
    trainer.resume_or_load(resume=False)
    trainer.train()


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture
def log(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("retinanet_ext"), "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


def test_a_run_resumes_from_the_newest_checkpoint_that_is_whole(shapes, tmp_path, log):
    cfg = shapes_config(shapes, tmp_path, *SHORT, "SOLVER.CHECKPOINTS_KEPT", "3")
    trained(cfg)
    names = sorted(path.name for path in tmp_path.glob("*.pth"))
    assert names == ["model_0000001.pth", "model_0000002.pth", "model_0000003.pth", "model_final.pth"]
    for name in names[1:]:
        flip(tmp_path / name)
    (tmp_path / "run.json").write_text("")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 2
    expected = torch.load(tmp_path / "model_0000001.pth")["model"]
    assert all(torch.equal(value, expected[name]) for name, value in trainer.model.state_dict().items())
    for part in ("resuming from model_0000001.pth", "model_final.pth: damaged", "model_0000002.pth: damaged",
                 "resumed from ", "run.json cannot be read"):  # fmt: skip
        assert part in log.text
    (tmp_path / "last_checkpoint").write_bytes(b"\xff\x80\0")
    again = Trainer(cfg)
    again.resume_or_load(resume=True)
    assert again.start_iter == 2
    flip(tmp_path / "model_0000001.pth")
    expected = "cannot resume from (.|\n)*model_0000001.pth: damaged(.|\n)*model_final.pth: damaged"
    with pytest.raises(ValueError, match=expected):
        Trainer(cfg).resume_or_load(resume=True)


class _Diverge(hooks.HookBase):
    """Sets a weight to NaN after an iteration, before the hooks that save."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_step(self):
        if self.trainer.iter == self.iteration:
            optimizer = self.trainer.optimizer
            step = optimizer.step

            def diverge(*args, **kwargs):
                step(*args, **kwargs)
                with torch.no_grad():
                    self.trainer.model.head.bbox_pred.weight[0, 0, 0, 0] = float("nan")

            optimizer.step = diverge


@pytest.mark.parametrize("period", ["1", "100"])
def test_a_diverged_run_fails_and_keeps_its_last_good_checkpoint(shapes, tmp_path, period):
    cfg = shapes_config(shapes, tmp_path, *SHORT, "SOLVER.CHECKPOINT_PERIOD", period)
    with pytest.raises(FloatingPointError, match="head.bbox_pred.weight"):
        trained(cfg, _Diverge(3))
    left = sorted(path.name for path in tmp_path.glob("*.pth"))
    assert left == ([f"model_000000{iteration}.pth" for iteration in range(3)] if period == "1" else [])
    if left:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=True)
        assert trainer.start_iter == 3


def test_all_processes_are_told_of_a_divergence(shapes, tmp_path, monkeypatch):
    from retinanet_ext.training import finite_weights

    hook = finite_weights.FiniteWeightsHook(2)
    model = torch.nn.Linear(1, 1)
    hook.trainer = type("Trainer", (), {"iter": 1, "max_iter": 5, "model": model})
    hook.after_step()
    monkeypatch.setattr(finite_weights.comm, "all_gather", lambda value: [value, "weight (1 of 1 values)"])
    with pytest.raises(FloatingPointError, match="after iteration 1 .first rank 1: weight"):
        hook.after_step()
    hook.trainer.iter = 2  # no checkpoint follows
    hook.after_step()


def test_the_best_value_is_remembered_after_a_resume(shapes, tmp_path):
    opts = ["SOLVER.MAX_ITER", "1", "SOLVER.CHECKPOINT_PERIOD", "1", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"]
    trained(shapes_config(shapes, tmp_path, *opts, "TEST.BEST_METRIC", "bbox/AP"))
    record = json.loads((tmp_path / "model_best.json").read_text())
    assert record["iteration"] == 0 and (tmp_path / "model_best.pth").is_file()
    (tmp_path / "model_best.json").write_text(json.dumps({**record, "value": 99.0, "kept": []}))
    trainer = Trainer(shapes_config(shapes, tmp_path, *opts, "SOLVER.MAX_ITER", "2"))
    trainer.resume_or_load(resume=True)
    trainer.train()
    assert trainer.iter == 2
    assert torch.load(tmp_path / "model_best.pth")["iteration"] == 0
    assert json.loads((tmp_path / "model_best.json").read_text())["value"] == 99.0


def test_an_evaluation_takes_the_newest_whole_checkpoint_and_refuses_bad_weights(shapes, tmp_path, log):
    trained(shapes_config(shapes, tmp_path, *SHORT, "SOLVER.CHECKPOINT_PERIOD", "2"))
    flip(tmp_path / "model_final.pth")
    evaluate(shapes_config(shapes, tmp_path), resume=True)
    assert "resuming from model_0000003.pth" in log.text
    content = torch.load(tmp_path / "model_0000003.pth")
    content["model"]["head.bbox_pred.bias"][0] = float("inf")
    torch.save(content, tmp_path / "inf.pth")
    with pytest.raises(ValueError, match="inf.pth holds NaN or infinite weights, first in head.bbox_pred.bias"):
        evaluate(shapes_config(shapes, tmp_path, "MODEL.WEIGHTS", str(tmp_path / "inf.pth")), resume=False)


def test_a_checkpoint_says_how_it_was_made(shapes, tmp_path, log):
    cfg = shapes_config(shapes, tmp_path, *SHORT, "MODEL.LICENSE", "CC0 1.0")
    trained(cfg)
    entry = torch.load(tmp_path / "model_final.pth", weights_only=True)["provenance"]
    assert "MAX_ITER: 4" in entry["config"] and entry["versions"]["torch"] and entry["license"] == "CC0 1.0"
    assert entry["git"] is None or len(entry["git"]["commit"]) == 40
    (data,) = entry["data"]
    assert (data["name"],) == tuple(cfg.DATASETS.TRAIN) and data["file"].endswith(".json")
    from hashlib import sha256
    from pathlib import Path

    content = Path(data["file"]).read_bytes()
    assert data["sha256"] == sha256(content).hexdigest() and data["bytes"] == len(content)
    load_weights(Trainer.build_model(cfg), str(tmp_path / "model_final.pth"))
    assert "license of the weights in " in log.text and ": CC0 1.0; of the data" in log.text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"", []),
        (b'{"images": []}', []),
        (b'{"info": {"licenses": 3}, "licenses" : [{"id": 1, "name": "A", "url": "http://a"}, {"id": 2}, 5]}', ["A http://a"]),
        (b'{"a": "\\"licenses\\": [", "licenses": [{"name": "B"}]}', ["B"]),
        (b'{"licenses": [' + b"[" * 5000, []),
    ],
)  # fmt: skip
def test_licenses_of_a_coco_file(text, found):
    from retinanet_ext.training.provenance import licenses

    assert licenses(text) == found


@pytest.mark.parametrize(("key", "value"), [("SOLVER.CHECKPOINTS_KEPT", "-1"), ("TEST.BEST_KEPT", "0")])
def test_counts_out_of_range_are_refused(shapes, tmp_path, key, value):
    with pytest.raises(ValueError, match=f"{key} is {value}; legal: an integer"):
        shapes_config(shapes, tmp_path, key, value)
