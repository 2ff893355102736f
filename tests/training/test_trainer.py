"""Whole runs of the trainer: what they leave behind, how they resume, and how they fail."""

import json
import logging
import math
import os
import pickle
from argparse import Namespace

import pytest
import torch
import yaml

from retinanet_ext import d2
from retinanet_ext.training.launch import evaluate
from retinanet_ext.training.step import TrainStep
from retinanet_ext.training.trainer import Trainer
from tests.builders import INSTANCE_RUNS, batch, shapes_config, small_config


def read_losses(folder) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return {line["iteration"]: line["total_loss"] for line in lines if "total_loss" in line}


def test_a_run_leaves_its_record(shapes, tmp_path):
    # With this probability the untrained model finds something, so that there is a best checkpoint.
    opts = ["TEST.EVAL_PERIOD", "2", "TEST.BEST_METRIC", "bbox/AP", "MODEL.RETINANET.PRIOR_PROB", "0.6"]
    cfg = shapes_config(shapes, tmp_path / "run", *opts)
    d2.default_setup(cfg, Namespace(eval_only=False, config_file=""))
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()

    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["engine"] == d2.ENGINE and run["seed"] == 0 and torch.__version__.startswith(run["versions"]["torch"])
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {"AP", "AP50", "AP75", "APs", "APm", "APl"} <= set(results["bbox"])
    saved = (tmp_path / "run" / "config.yaml").read_text()
    assert "NUM_CLASSES: 5" in saved  # taken from the data
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "run.json", "metrics.json", "results.json", "model_final.pth", "last_checkpoint"} <= names
    assert any(name.startswith("events.out") for name in names)
    # A resumed run continues from the last checkpoint, whichever is the best.
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_final.pth"
    (folder,) = (tmp_path / "run" / "inference").iterdir()
    thresholds = json.loads((folder / "operating_thresholds.json").read_text())
    for name in ("model_final.pth", "model_best.pth"):
        stored = torch.load(tmp_path / "run" / name, weights_only=True)["operating_thresholds"]
        assert [one["name"] for one in stored["classes"]] == cfg.MODEL.CLASS_NAMES and stored["dataset"] == folder.name
    assert torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["operating_thresholds"] == thresholds


def test_a_saved_config_builds_the_same_model(shapes, tmp_path):
    from retinanet_ext.config.loading import load_config

    cfg = shapes_config(shapes, tmp_path)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = load_config(str(tmp_path / "config.yaml"))
    # Compared as trees: the YAML text writes an object that several of Detectron2's defaults share only once.
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())
    assert again.MODEL.CLASS_NAMES == ["circle", "rectangle", "triangle", "star", "cross"]


@pytest.mark.skipif(d2.ENGINE != "lite", reason="Detectron2's loader starts again from the first image")
@pytest.mark.parametrize(("workers", "kind"), [(0, "boxes"), (2, "boxes"), (0, "one stage"), (0, "two stages")])
def test_stop_and_resume_equals_the_unbroken_run(shapes, tmp_path, workers, kind):
    file, *opts = INSTANCE_RUNS.get(kind, ["configs/quick/retinanet.yaml"])
    common = [*opts, "SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "3", "DATALOADER.NUM_WORKERS", str(workers)]
    common += ["INPUT.MIN_SIZE_TRAIN", "(64, 80, 96)", "DATASETS.TEST", "()"]

    def run(folder, stop_at=None, resume=False):
        trainer = Trainer(shapes_config(shapes, folder, *common, file=file))
        torch.manual_seed(0)  # the seed of the weights; default_setup sets it in a real run
        for parameter in trainer.model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        trainer.resume_or_load(resume=resume)
        losses = []
        trainer.register_hooks([d2.hooks.CallbackHook(after_step=lambda t: losses.append(_last_loss(t)))])
        if stop_at is not None:
            trainer.max_iter = stop_at
        trainer.train()
        return losses, trainer.model.state_dict()

    unbroken, expected = run(tmp_path / "unbroken")
    first, _ = run(tmp_path / "broken", stop_at=3)
    second, actual = run(tmp_path / "broken", resume=True)
    assert first + second == unbroken  # to the last bit, so the images and their augmentations are the same too
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


@pytest.mark.parametrize("change", [("MODEL.FPN.OUT_CHANNELS", "32"), ("MODEL.RETINANET.NUM_CONVS", "2")])
def test_resuming_with_another_model_is_refused(shapes, tmp_path, change):
    # With as many parameters of other shapes, the engines would leave them random, and the optimizer would fail later.
    common = ["SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()"]
    Trainer(shapes_config(shapes, tmp_path, *common)).train()
    trainer = Trainer(shapes_config(shapes, tmp_path, *common, *change))
    with pytest.raises(ValueError, match="cannot resume from .*model_final.pth(.|\n)*the config is that of the run"):
        trainer.resume_or_load(resume=True)


class _RunsCode:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (self.canary,)


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_resuming_runs_no_code_of_the_checkpoint(shapes, tmp_path, suffix):
    canary, evil = str(tmp_path / "canary"), tmp_path / f"evil{suffix}"
    data = {"model": {}, "trainer": _RunsCode(canary), "iteration": 1}
    evil.write_bytes(pickle.dumps(data)) if suffix == ".pkl" else torch.save(data, evil)
    (tmp_path / "last_checkpoint").write_text(evil.name)
    trainer = Trainer(shapes_config(shapes, tmp_path, "DATASETS.TEST", "()"))
    with pytest.raises(ValueError, match=f"cannot resume from .*evil{suffix}(.|\n)*mkdir"):
        trainer.resume_or_load(resume=True)
    with pytest.raises(ValueError, match=f"evil{suffix}(.|\n)*mkdir"):
        evaluate(shapes_config(shapes, tmp_path), resume=True)
    assert not os.path.exists(canary)


def test_what_is_added_to_the_checkpointer_is_saved(shapes, tmp_path):
    trainer = Trainer(shapes_config(shapes, tmp_path, "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "1"))
    trainer.checkpointer.add_checkpointable("extra", torch.nn.Linear(1, 1))
    trainer.train()
    assert "weight" in torch.load(tmp_path / "model_final.pth")["extra"]


def test_resuming_a_complete_run_says_so(shapes, tmp_path, caplog, monkeypatch):
    cfg = shapes_config(shapes, tmp_path, "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()")
    Trainer(cfg).train()
    monkeypatch.setattr(logging.getLogger("retinanet_ext"), "propagate", True)  # setting up a log turns it off
    Trainer(cfg).resume_or_load(resume=True)
    assert "that run is complete: raise SOLVER.MAX_ITER, now 1" in caplog.text


@pytest.mark.parametrize(("period", "said"), [("3", True), ("2", False)])
def test_a_period_beyond_the_end_is_announced(shapes, tmp_path, caplog, monkeypatch, period, said):
    opts = ["SOLVER.MAX_ITER", "2", "SOLVER.CHECKPOINT_PERIOD", period, "DATASETS.TEST", "()"]
    cfg = shapes_config(shapes, tmp_path, *opts)
    monkeypatch.setattr(logging.getLogger("retinanet_ext"), "propagate", True)
    with caplog.at_level(logging.INFO):
        Trainer(cfg).train()
    announced = f"SOLVER.CHECKPOINT_PERIOD is {period}, above SOLVER.MAX_ITER 2: only the final checkpoint"
    assert (announced in caplog.text) == said
    assert (tmp_path / "model_0000001.pth").exists() != said


@pytest.mark.parametrize(
    ("key", "wrong", "right"),
    [
        ("MODEL.META_ARCHITECTURE", "FocalRetinanet", "FocalRetinaNet"),
        ("MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn", "build_retinanet_resnet_fpn_backbone"),
    ],
)
def test_names_that_nobody_registered_are_refused_with_the_key(key, wrong, right):
    with pytest.raises(KeyError, match=f"{key} is '{wrong}', which is not registered; registered: {right}"):
        Trainer.build_model(small_config(key, wrong))


def _last_loss(trainer) -> float:
    return trainer.storage.latest()["total_loss"][0]


def test_a_loss_that_is_not_finite_names_losses_and_images(generator):
    model = d2.build_model(small_config())
    with torch.no_grad():
        model.head.bbox_pred.bias.fill_(math.nan)
    before = {name: value.clone() for name, value in model.head.state_dict().items()}
    inputs = batch(generator, (64, 64), (64, 64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = TrainStep(model, [inputs], optimizer, storage=d2.get_event_storage)
    with pytest.raises(FloatingPointError, match=r"loss_box_reg = nan.*image_0.png, image_1.png.*BASE_LR"):
        step.run_step()
    for name, value in model.head.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)


def test_learns_to_overfit_real_images(shared_data, tmp_path):
    # Eight images of coco_mini, of eight kinds of scenes, each with two to five objects of at least 40 pixels.
    chosen = [84533, 37666, 420862, 172123, 353072, 432430, 281789, 213148]
    source = json.loads((shared_data / "coco_mini" / "annotations" / "instances_train2017.json").read_text())
    source["images"] = [image for image in source["images"] if image["id"] in chosen]
    source["annotations"] = [a for a in source["annotations"] if a["image_id"] in chosen]
    assert len(source["images"]) == 8 and len(source["annotations"]) == 19
    (tmp_path / "eight.json").write_text(json.dumps(source))
    custom = {"NAME": "eight", "FORMAT": "coco", "JSON": str(tmp_path / "eight.json")}
    custom["IMAGES"] = str(shared_data / "coco_mini" / "train2017")
    opts = ["DATASETS.CUSTOM", str([custom]), "DATASETS.TRAIN", "('eight',)", "DATASETS.TEST", "('eight',)"]
    opts += ["MODEL.RESNETS.NORM", "GN", "MODEL.FPN.NORM", "GN", "MODEL.RETINANET.NORM", "GN", "SEED", "1"]
    opts += ["MODEL.FPN.OUT_CHANNELS", "64", "INPUT.MIN_SIZE_TRAIN", "(192,)", "INPUT.MIN_SIZE_TEST", "192"]
    opts += ["INPUT.RANDOM_FLIP", "none", "SOLVER.IMS_PER_BATCH", "8", "SOLVER.MAX_ITER", "150"]
    opts += ["SOLVER.BASE_LR", "0.02", "SOLVER.WARMUP_ITERS", "20", "SOLVER.AMP.ENABLED", "False"]
    opts += ["OUTPUT_DIR", str(tmp_path)]
    from retinanet_ext.config.loading import load_config

    cfg = load_config("configs/quick/retinanet.yaml", opts)
    torch.manual_seed(1)
    trainer = Trainer(cfg)
    trainer.train()
    results = Trainer.test(cfg, trainer.model)
    assert results["bbox"]["AP50"] >= 85
