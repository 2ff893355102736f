"""A run of FaceNet from training to an answer: verification at the end, the best checkpoint, calibration, verify."""

import json

import torch

from retinanet_ext.cli.main import main
from retinanet_ext.training.trainer import Trainer
from tests.data.conftest import catalogs  # noqa: F401
from tests.training.test_identity_runs import config  # noqa: F401


def test_a_run_verifies_keeps_the_best_and_is_calibrated(config, catalogs, tmp_path, capsys):  # noqa: F811
    cfg = config("run", "TEST.EVAL_PERIOD", "3", "TEST.BEST_METRIC", "verification/accuracy", "SOLVER.MAX_ITER", "6")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(cfg.dump())
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    # Three identities with five images each.
    assert results["verification"]["num_same"] == 30 and results["verification"]["num_different"] == 75
    assert 0 <= results["verification"]["accuracy"] <= 100 and results["data"]["images"] == 15
    written = tmp_path / "run" / "inference" / "faces_val"
    assert json.loads((written / "verification.json").read_text())["metrics"] == results["verification"]
    assert (written / "verification.html").is_file()
    assert (tmp_path / "run" / "model_best.pth").is_file()

    run = ["--config-file", str(tmp_path / "run"), "--device", "cpu"]
    assert main(["calibrate", *run, "--dataset", "faces_val", "--far", "0.05"]) == 0
    assert "30 same, 75 different; faces_val" in capsys.readouterr().out
    assert "calibration" in torch.load(tmp_path / "run" / "model_best.pth", weights_only=True)
    images = [str(tmp_path / "val" / "q0" / f"{number}.png") for number in (0, 0)]
    assert main(["verify", *run, *images]) == 0
    assert "asked for 0.05" in capsys.readouterr().out

    # A calibrated checkpoint starts another run, and its calibration does not go over to the new weights.
    (tmp_path / "next").mkdir()
    cfg = config("next", "MODEL.WEIGHTS", str(tmp_path / "run" / "model_best.pth"), "SOLVER.MAX_ITER", "1")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert "calibration" not in torch.load(tmp_path / "next" / "model_final.pth", weights_only=True)
