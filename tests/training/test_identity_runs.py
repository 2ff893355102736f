"""FaceNet through the loaders and the trainer of either engine."""

import json
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet_ext import d2
from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import DatasetEvaluator
from retinanet_ext.training import trainer as trainer_module
from retinanet_ext.training.identity_loaders import check_pairs, identity_test_loader, identity_train_loader
from retinanet_ext.training.trainer import Trainer
from tests.data.conftest import catalogs  # noqa: F401

pytestmark = pytest.mark.usefixtures("catalogs")


@pytest.fixture
def config(tmp_path):
    """Makes a config of 8 training and 3 test identities with 5 images of 16 pixels each."""
    random = np.random.RandomState(0)
    for name in [f"train/p{i}" for i in range(8)] + [f"val/q{i}" for i in range(3)]:
        (tmp_path / name).mkdir(parents=True)
        for index in range(5):
            pixels = random.randint(0, 256, (20, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    (tmp_path / "faces.yaml").write_text(f"""
MODEL:
  META_ARCHITECTURE: FaceNet
  DEVICE: cpu
  WEIGHTS: ""
  BACKBONE: {{NAME: build_resnet_backbone, FREEZE_AT: 0}}
  RESNETS: {{DEPTH: 18, RES2_OUT_CHANNELS: 64, NORM: GN, OUT_FEATURES: [res3]}}
  EMBEDDING: {{DIM: 8}}
DATASETS:
  TRAIN: [faces_train]
  TEST: [faces_val]
  CUSTOM:
    - {{NAME: faces_train, FORMAT: identities, ROOT: {tmp_path}/train}}
    - {{NAME: faces_val, FORMAT: identities, ROOT: {tmp_path}/val}}
DATALOADER: {{NUM_WORKERS: 0, IMAGES_PER_IDENTITY: 2}}
INPUT: {{FACE: {{SIZE: [16, 16], SHIFT_JITTER: 0.2, LIGHT_JITTER: 0.2}}}}
SOLVER: {{IMS_PER_BATCH: 8, BASE_LR: 0.01, MAX_ITER: 6, CHECKPOINT_PERIOD: 3, WARMUP_ITERS: 0, STEPS: []}}
SEED: 3
""")

    def make(folder="run", *opts):
        return load_config(str(tmp_path / "faces.yaml"), ["OUTPUT_DIR", str(tmp_path / folder), *opts])

    return make


@pytest.mark.parametrize("workers", [0, 2])
def test_the_batches_of_a_loader_are_identities_with_their_images(config, workers):
    loader = identity_train_loader(config("run", "DATALOADER.NUM_WORKERS", str(workers)))
    assert loader.num_images == 40
    for batch in islice(loader, 8):
        numbers = [inputs["identity"] for inputs in batch]
        assert numbers[::2] == numbers[1::2] and len(set(numbers)) == 4
        assert len({inputs["image_id"] for inputs in batch}) == 8
        assert all(inputs["image_id"].startswith(f"p{inputs['identity']}/") for inputs in batch)
        assert all(i["image"].shape == (3, 16, 16) and i["image"].dtype == torch.uint8 for i in batch)


def test_without_images_per_identity_the_engine_gives_the_order(config):
    loader = identity_train_loader(config("run", "DATALOADER.IMAGES_PER_IDENTITY", "0"))
    ids = [inputs["image_id"] for batch in islice(loader, 5) for inputs in batch]
    assert len(set(ids)) == 40


def test_each_test_image_comes_once_in_order(config):
    ids = [inputs["image_id"] for batch in identity_test_loader(config(), "faces_val") for inputs in batch]
    assert ids == [f"q{identity}/{index}.png" for identity in range(3) for index in range(5)]


def test_pairs_are_checked_before_training(config, tmp_path, caplog):
    (tmp_path / "pairs.csv").write_text("q0/0.png,q0/1.png,1\nq0/0.png,q1/7.png,0\nq0/0.png,q1/1.png,0\n")
    item = {"NAME": "paired", "FORMAT": "identities", "ROOT": str(tmp_path / "val")}
    item["PAIRS"] = str(tmp_path / "pairs.csv")
    opts = ["DATASETS.CUSTOM", [item], "DATASETS.TRAIN", (), "DATASETS.TEST", ("paired",)]
    with pytest.raises(ValueError, match="'paired': 1 of 3 pairs .*'q1/7.png'"):
        Trainer.check_test_data(config("run", *opts))
    cfg = config("run", *opts, "DATASETS.ON_MISSING_PAIR", "count")
    caplog.set_level("INFO")
    check_pairs(cfg, "paired")
    assert "2 pairs (1 same)" in caplog.text and "1 left out" in caplog.text


class _CountingEvaluator(DatasetEvaluator):
    def __init__(self, dataset_name, *, output_dir, cfg):
        self.arguments = dataset_name, output_dir, cfg
        self.lengths = []

    def reset(self):
        self.lengths = []

    def process(self, inputs, outputs):
        self.lengths += [float(output["embedding"].norm()) for output in outputs]

    def evaluate(self):
        return {"verification": {"images": len(self.lengths)}}


def test_a_run_trains_and_an_evaluator_gets_the_config(config, tmp_path, monkeypatch):
    monkeypatch.setitem(trainer_module.EVALUATORS, "verification", _CountingEvaluator)
    (tmp_path / "run").mkdir()
    cfg = config("run", "SOLVER.OPTIMIZER", "AdaGrad")
    evaluator = Trainer.build_evaluator(cfg, "faces_val")
    assert evaluator.arguments == ("faces_val", str(tmp_path / "run" / "inference" / "faces_val"), cfg)
    trainer = Trainer(cfg)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.resume_or_load(resume=False)
    trainer.train()
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["verification"] == {"images": 15} and results["data"]["images"] == 15
    assert isinstance(trainer.optimizer, torch.optim.Adagrad)
    assert any(not value.equal(before[name]) for name, value in trainer.model.state_dict().items())


@pytest.mark.skipif(d2.ENGINE != "lite", reason="Detectron2's loader starts again from the first image")
@pytest.mark.parametrize(("optimizer", "seed", "workers"), [("SGD", "3", 0), ("AdaGrad", "-1", 2), ("AdamW", "3", 0)])
def test_stop_and_resume_equals_the_unbroken_run(config, optimizer, seed, workers):
    opts = ["SOLVER.OPTIMIZER", optimizer, "SEED", seed, "DATALOADER.NUM_WORKERS", str(workers), "DATASETS.TEST", "()"]
    opts += ["INPUT.FACE.ROTATION_JITTER", "10.0", "DATALOADER.RANDOM_NEGATIVES", "2"]

    def run(folder, stop_at=None, resume=False, data_seed=None):
        trainer = Trainer(config(folder, *opts))
        if data_seed is not None:
            trainer.data_loader.seed = data_seed
        torch.manual_seed(0)
        for parameter in trainer.model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        trainer.resume_or_load(resume=resume)
        seen = []
        trainer.model.register_forward_pre_hook(lambda model, args: seen.append([i["image"] for i in args[0]]))
        trainer.max_iter = stop_at or trainer.max_iter
        trainer.train()
        return seen, trainer.model.state_dict(), trainer.data_loader.seed

    unbroken, expected, data_seed = run("unbroken")
    first, _, _ = run("broken", stop_at=3, data_seed=data_seed)
    second, actual, _ = run("broken", resume=True)
    assert len(first) == len(second) == 3
    for joint, parts in zip(unbroken, first + second, strict=True):
        assert all(a.equal(b) for a, b in zip(joint, parts, strict=True))
    assert all(value.equal(actual[name]) for name, value in expected.items())


def test_the_metadata_may_hold_the_pairs_themselves(config):
    """Data that are registered in code may have ``Pairs`` there, not only a function that returns them."""
    cfg = config()
    records = d2.DatasetCatalog.get("faces_val")
    described = d2.MetadataCatalog.get("faces_val")
    d2.DatasetCatalog.register("in_code", lambda: records)
    d2.MetadataCatalog.get("in_code").set(
        identity_names=described.identity_names,
        evaluator_type="verification",
        verification_pairs=described.verification_pairs(),
    )
    cfg.DATASETS.TEST = ["in_code"]
    check_pairs(cfg, "in_code")
