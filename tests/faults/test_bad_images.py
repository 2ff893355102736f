"""Image files that are damaged while a run trains on them."""

import io
import json
import logging
import shutil
from argparse import Namespace
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet_ext import d2
from retinanet_ext.config.loading import load_config
from retinanet_ext.training.trainer import Trainer
from tests.builders import shapes_config
from tests.data.conftest import catalogs  # noqa: F401

COMMON = ["DATASETS.TEST", "()", "SOLVER.MAX_ITER", "12", "SOLVER.CHECKPOINT_PERIOD", "6"]


@pytest.fixture
def images(shapes, tmp_path):
    folder = tmp_path / f"damaged_{tmp_path.name}"
    shutil.copytree(shapes, folder)
    return folder


@pytest.fixture
def log():
    """What the hook logs. Setting up a run's log takes its messages from pytest's."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("retinanet_ext.training.bad_images")
    logger.addHandler(handler)
    yield stream
    logger.removeHandler(handler)


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def run(cfg, damage=None, at=2, resume=False, stop_at=None):
    """Train; ``damage`` is called after iteration ``at``. Returns the trainer and the file names of each batch."""
    d2.default_setup(cfg, Namespace(eval_only=False, config_file=""))
    trainer = Trainer(cfg)
    torch.manual_seed(0)
    for parameter in trainer.model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    trainer.resume_or_load(resume=resume)
    seen = []
    trainer.model.register_forward_pre_hook(lambda model, args: seen.append([i["file_name"] for i in args[0]]))
    if damage:
        trainer.register_hooks([d2.hooks.CallbackHook(after_step=lambda t: damage() if t.iter == at else None)])
    trainer.max_iter = stop_at or trainer.max_iter
    trainer.train()
    return trainer, seen


def listed(folder):
    return json.loads((folder / "bad_images.json").read_text())


@pytest.mark.parametrize(("workers", "policy"), [("0", "error"), ("2", "drop")])
def test_a_file_damaged_in_the_middle_of_an_epoch(images, tmp_path, workers, policy, times, log):
    truth = json.loads((images / "annotations" / "shapes_train.json").read_text())
    with_objects = {annotation["image_id"] for annotation in truth["annotations"]}  # the others are not trained on
    trained = [image["file_name"] for image in truth["images"] if image["id"] in with_objects]
    for attempt in range(times(1)):
        shutil.copytree(images / "train", tmp_path / "kept", dirs_exist_ok=True)
        victim = images / "train" / trained[attempt % len(trained)]
        folder = tmp_path / f"run{attempt}"
        # Workers read ahead, so that only the third epoch is sure to meet the damage.
        length = 12 if workers == "0" else 18
        words = [*COMMON, "DATALOADER.NUM_WORKERS", workers, "DATASETS.ON_BAD_IMAGE", policy, "SEED", str(attempt)]
        words += ["SOLVER.MAX_ITER", str(length)]
        log.truncate(0)
        _, seen = run(shapes_config(images, folder, *words), lambda path=victim: truncate(path))
        content = listed(folder)
        [bad] = content["images"]
        assert bad["file_name"] == str(victim) and "truncated" in bad["reason"]
        assert content["different_images"] == 1 and content["times"] == bad["times"] == len(bad["iterations"])
        assert all(3 <= iteration < length for iteration in bad["iterations"])
        assert str(victim) not in {name for i in bad["iterations"] for name in seen[i]}
        assert all(len(batch) == 2 for batch in seen) and len(seen) == length
        assert log.getvalue().count(f"Cannot read {victim}") == 1
        assert json.loads((folder / "run.json").read_text())["bad_images"] == content
        shutil.copytree(tmp_path / "kept", images / "train", dirs_exist_ok=True)


@pytest.mark.parametrize("budget", ["0", "2"])
def test_past_the_budget_the_run_stops(images, tmp_path, budget):
    files = sorted((images / "train").iterdir())
    cfg = shapes_config(images, tmp_path / "run", *COMMON, "DATASETS.BAD_IMAGE_BUDGET", budget)
    with pytest.raises(ValueError, match=f"DATASETS.BAD_IMAGE_BUDGET allows {budget};(.|\n)*truncated") as error:
        run(cfg, lambda: [truncate(path) for path in files[:8]])
    content = listed(tmp_path / "run")
    assert content["different_images"] > int(budget) == content["budget"]
    assert {image["file_name"] for image in content["images"]} <= set(map(str, files[:8]))
    assert str(tmp_path / "run" / "bad_images.json") in str(error.value)


def test_a_folder_that_vanishes_stops_the_run(images, tmp_path):
    cfg = shapes_config(images, tmp_path / "run", *COMMON, "DATASETS.BAD_IMAGE_BUDGET", "10", "DATALOADER.NUM_WORKERS",
                        "2")  # fmt: skip
    with pytest.raises(ValueError, match="11 training images in a row cannot be read.*Is the folder still there"):
        run(cfg, lambda: shutil.rmtree(images / "train"))
    assert listed(tmp_path / "run")["different_images"] == 11


@pytest.mark.skipif(d2.ENGINE != "lite", reason="Detectron2's loader starts again from the first image")
@pytest.mark.parametrize("workers", ["0", "2"])
def test_stop_and_resume_after_a_replacement_equals_the_unbroken_run(images, tmp_path, workers):
    words = [*COMMON, "DATALOADER.NUM_WORKERS", workers, "INPUT.MIN_SIZE_TRAIN", "(64, 80, 96)"]
    words += ["DATASETS.CHECK_IMAGES", "none"]
    truncate(sorted((images / "train").iterdir())[3])
    unbroken, seen = run(shapes_config(images, tmp_path / "unbroken", *words))
    _, first = run(shapes_config(images, tmp_path / "broken", *words), stop_at=6)
    resumed, second = run(shapes_config(images, tmp_path / "broken", *words), resume=True)
    assert first + second == seen
    for name, value in unbroken.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    assert listed(tmp_path / "broken") == listed(tmp_path / "unbroken")
    assert listed(tmp_path / "broken")["times"] >= 2


def test_an_evaluation_replaces_no_image(images, tmp_path):
    cfg = shapes_config(images, tmp_path / "run", "SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", "2")
    victim = sorted((images / "val").iterdir())[2]
    with pytest.raises(ValueError, match=f"Cannot read {victim}.*An evaluation replaces no image"):
        run(cfg, lambda: truncate(victim), at=0)


@pytest.mark.usefixtures("catalogs")
def test_identities_keep_their_places_in_the_batch(tmp_path):
    random = np.random.RandomState(0)
    for identity in range(6):
        (tmp_path / f"train/p{identity}").mkdir(parents=True)
        for index in range(4):
            pixels = random.randint(0, 256, (20, 16, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"train/p{identity}/{index}.png")
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
  CUSTOM: [{{NAME: faces_train, FORMAT: identities, ROOT: {tmp_path}/train}}]
  BAD_IMAGE_BUDGET: 10
DATALOADER: {{NUM_WORKERS: 2, IMAGES_PER_IDENTITY: 2}}
INPUT: {{FACE: {{SIZE: [16, 16]}}}}
SOLVER: {{IMS_PER_BATCH: 8, BASE_LR: 0.01, MAX_ITER: 12, WARMUP_ITERS: 0, STEPS: []}}
OUTPUT_DIR: {tmp_path}/run
SEED: 3
""")
    victims = [tmp_path / "train/p0/0.png", tmp_path / "train/p3/2.png"]
    _, seen = run(load_config(str(tmp_path / "faces.yaml")), lambda: [truncate(path) for path in victims])
    assert {image["file_name"] for image in listed(tmp_path / "run")["images"]} == set(map(str, victims))
    for batch in seen:
        assert sorted(Counter(Path(name).parent.name for name in batch).values()) == [2, 2, 2, 2]
