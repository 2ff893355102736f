"""Learning rate and schedule, scaled from the batch that a config was written for."""

from argparse import Namespace

import pytest
import yaml

from retinanet_ext.config.batch_scaling import scaled_to_batch
from retinanet_ext.config.loading import load_config
from retinanet_ext.training import launch
from retinanet_ext.training.trainer import Trainer
from tests.builders import shapes_config, small_config
from tests.conftest import REPO_ROOT

CONFIGS = sorted(path for path in (REPO_ROOT / "configs").rglob("*.yaml") if path.parent.name != "ablations")
REFERENCE = ["SOLVER.REFERENCE_IMS_PER_BATCH", "16"]
SCHEDULE = ["SOLVER.BASE_LR", "0.01", "SOLVER.MAX_ITER", "1000", "SOLVER.STEPS", "(600, 805)", "SOLVER.WARMUP_ITERS",
            "50", "SOLVER.CHECKPOINT_PERIOD", "333", "TEST.EVAL_PERIOD", "100"]  # fmt: skip


def numbers(cfg):
    solver = cfg.SOLVER
    return [solver.BASE_LR, solver.MAX_ITER, tuple(solver.STEPS), solver.WARMUP_ITERS, solver.CHECKPOINT_PERIOD,
            cfg.TEST.EVAL_PERIOD]  # fmt: skip


@pytest.mark.parametrize(("batch", "expected"), [
    ("8", [0.005, 2000, (1200, 1610), 100, 666, 200]),
    ("32", [0.02, 500, (300, 402), 25, 166, 50]),
    ("24", [0.015, 667, (400, 537), 33, 222, 67]),
    ("1", [0.000625, 16000, (9600, 12880), 800, 5328, 1600]),
])  # fmt: skip
def test_rates_grow_with_the_batch_and_iterations_shrink(batch, expected):
    cfg = small_config(*SCHEDULE, *REFERENCE, "SOLVER.IMS_PER_BATCH", batch)
    scaled, message = scaled_to_batch(cfg)
    assert numbers(scaled) == expected
    assert scaled.SOLVER.REFERENCE_IMS_PER_BATCH == scaled.SOLVER.IMS_PER_BATCH == int(batch)
    assert numbers(cfg) == [0.01, 1000, (600, 805), 50, 333, 100]  # the config itself is not changed
    for line in message.splitlines():
        if line.startswith("SOLVER.BASE_LR"):
            assert line.split()[1:] == ["0.01", f"{expected[0]:g}"]
        if line.startswith("SOLVER.MAX_ITER"):
            assert line.split()[1:] == ["1000", str(expected[1])]
    again, message = scaled_to_batch(scaled)
    assert again is scaled and message == ""


@pytest.mark.parametrize("words", [[], [*REFERENCE, "SOLVER.IMS_PER_BATCH", "16"], ["SOLVER.IMS_PER_BATCH", "4"]])
def test_without_another_batch_nothing_is_scaled(words):
    cfg = small_config(*words)
    assert scaled_to_batch(cfg) == (cfg, "")


def test_what_is_off_stays_off():
    words = ["SOLVER.IMS_PER_BATCH", "160", "SOLVER.WARMUP_ITERS", "0", "TEST.EVAL_PERIOD", "0"]
    scaled, _ = scaled_to_batch(small_config(*REFERENCE, *words, "SOLVER.CHECKPOINT_PERIOD", "3"))
    assert (scaled.SOLVER.WARMUP_ITERS, scaled.TEST.EVAL_PERIOD, scaled.SOLVER.CHECKPOINT_PERIOD) == (0, 0, 1)


@pytest.mark.parametrize("optimizer", ["AdamW", "AdaGrad"])
def test_only_the_rate_of_sgd_is_scaled(optimizer):
    words = [*SCHEDULE, *REFERENCE, "SOLVER.IMS_PER_BATCH", "32", "SOLVER.OPTIMIZER", optimizer]
    scaled, message = scaled_to_batch(small_config(*words))
    assert numbers(scaled)[:2] == [0.01, 500]
    assert f"SOLVER.BASE_LR stays 0.01: the linear rule is for SGD, and the optimizer is {optimizer}" in message


def test_the_other_scaling_is_refused():
    with pytest.raises(ValueError, match="REFERENCE_IMS_PER_BATCH is 16 and SOLVER.REFERENCE_WORLD_SIZE 8"):
        scaled_to_batch(small_config(*REFERENCE, "SOLVER.REFERENCE_WORLD_SIZE", "8"))
    with pytest.raises(ValueError, match="SOLVER.REFERENCE_IMS_PER_BATCH is -1"):
        small_config("SOLVER.REFERENCE_IMS_PER_BATCH", "-1")


def test_a_run_is_scaled_once(shapes, tmp_path):
    """Also when it is resumed, with its own config or with that of the first start."""
    words = ["SOLVER.REFERENCE_IMS_PER_BATCH", "8", "SOLVER.MAX_ITER", "2", "DATASETS.TEST", "()"]
    words += ["SOLVER.CHECKPOINT_PERIOD", "1"]
    (tmp_path / "first.yaml").write_text(shapes_config(shapes, tmp_path / "run", *words).dump())
    launch.main(arguments(tmp_path / "first.yaml"))
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["SOLVER"]
    # Batches of 2 in place of 8: a quarter of the rate, four times the iterations.
    assert (saved["BASE_LR"], saved["MAX_ITER"], saved["CHECKPOINT_PERIOD"]) == (0.005, 8, 4)
    assert saved["REFERENCE_IMS_PER_BATCH"] == saved["IMS_PER_BATCH"] == 2
    assert "SOLVER.MAX_ITER" in (tmp_path / "run" / "log.txt").read_text()
    assert (tmp_path / "run" / "model_0000003.pth").exists()
    for file in (tmp_path / "first.yaml", tmp_path / "run" / "config.yaml"):
        trainer = Trainer(load_config(str(file)))
        trainer.resume_or_load(resume=True)
        assert (trainer.start_iter, trainer.max_iter) == (8, 8)
        assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {0.005}


def arguments(file):
    return Namespace(config_file=str(file), opts=[], resume=False, eval_only=False)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(REPO_ROOT / "configs")))
def test_our_own_configs_warm_up_and_clip(path):
    solver = load_config(str(path), datasets=False).SOLVER
    assert 0 < solver.WARMUP_ITERS <= solver.MAX_ITER / 5
    # Those that follow a paper closely name it; no paper here clips.
    clips = solver.CLIP_GRADIENTS.ENABLED and solver.CLIP_GRADIENTS.CLIP_TYPE == "norm"
    assert clips != path.stem.endswith("_paper")
