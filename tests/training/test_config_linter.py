"""Keys that nothing reads are found in all sections, with the key that was probably meant; others are not reported."""

import logging
from pathlib import Path

import pytest
import torch

from retinanet_ext.config.key_reads import _RecordingNode
from retinanet_ext.config.loading import load_config
from retinanet_ext.config.yaml_files import own_keys
from retinanet_ext.d2 import DatasetMapper
from retinanet_ext.training.config_linter import _CONDITIONS, check_keys_are_read, unread_keys
from retinanet_ext.training.trainer import Trainer

RETINANET, TWO_STAGES, FACENET = "quick/retinanet.yaml", "quick/mask_rcnn.yaml", "quick/facenet.yaml"
CONFIGS = sorted(path for path in Path("configs").rglob("*.yaml") if "ablations" not in path.parts)


def found(file, *opts):
    return {entry.key: entry.hint for entry in unread_keys(load_config(file, opts, datasets=False), opts[::2])}


@pytest.mark.parametrize(
    ("file", "key", "value", "hint"),
    [
        (RETINANET, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.3", "reads MODEL.RETINANET.SCORE_THRESH_TEST"),
        (RETINANET, "MODEL.ROI_HEADS.NUM_CLASSES", "5", "reads MODEL.RETINANET.NUM_CLASSES"),
        (RETINANET, "MODEL.MASK_ON", "True", "use `MODEL.META_ARCHITECTURE InstanceRetinaNet`"),
        (RETINANET, "MODEL.RETINANET.CLS_LOSS.OHEM.BATCH", "64", "CLS_LOSS.NAME is 'focal'"),
        (RETINANET, "MODEL.ROI_MASK_HEAD.NUM_FC", "3", "has no part that reads it"),
        (RETINANET, "INPUT.CROP.SIZE", "[0.5, 0.5]", "`INPUT.CROP.ENABLED True`"),
        (RETINANET, "INPUT.MASK_FORMAT", "bitmask", "`MODEL.MASK_ON True`"),
        (RETINANET, "SOLVER.STEPS", "(3,)", "`SOLVER.LR_SCHEDULER_NAME WarmupMultiStepLR`"),
        (RETINANET, "DATALOADER.REPEAT_THRESHOLD", "0.5", "`DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler`"),
        (RETINANET, "TEST.AUG.FLIP", "False", "`TEST.AUG.ENABLED True`"),
        (RETINANET, "INPUT.FACE.MARGIN", "0.4", "`MODEL.META_ARCHITECTURE FaceNet`"),
        (TWO_STAGES, "MODEL.RETINANET.SCORE_THRESH_TEST", "0.3", "reads MODEL.ROI_HEADS.SCORE_THRESH_TEST"),
        (TWO_STAGES, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "3", "`MODEL.KEYPOINT_ON True`"),
        (FACENET, "INPUT.MIN_SIZE_TEST", "300", "a model that detects"),
    ],
)
def test_a_key_that_nothing_reads_is_found_with_what_was_meant(file, key, value, hint):
    assert hint in found(file, key, value)[key]


@pytest.mark.parametrize(
    ("file", "opts"),
    [
        (RETINANET, ("MODEL.RETINANET.SCORE_THRESH_TEST", "0.3", "SOLVER.BASE_LR", "0.5", "OUTPUT_DIR", "elsewhere")),
        (RETINANET, ("MODEL.RETINANET.CLS_LOSS.NAME", "ohem", "MODEL.RETINANET.CLS_LOSS.OHEM.BATCH", "64")),
        (RETINANET, ("INPUT.CROP.ENABLED", "True", "INPUT.CROP.SIZE", "[0.5, 0.5]", "INPUT.MIN_SIZE_TEST", "300")),
        (TWO_STAGES, ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.3", "MODEL.ROI_MASK_HEAD.NUM_CONV", "3")),
        (FACENET, ("MODEL.EMBEDDING.LOSS.MARGIN", "0.3", "DATALOADER.IMAGES_PER_IDENTITY", "7")),
    ],
)
def test_keys_that_are_read_are_not_reported(file, opts):
    assert found(file, *opts) == {}


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_no_config_of_this_package_sets_a_key_that_nothing_reads(path):
    cfg = load_config(str(path), datasets=False)
    assert unread_keys(cfg, own_keys(str(path))) == []


def test_values_of_the_base_configs_are_not_reported():
    assert unread_keys(load_config(RETINANET, datasets=False)) == []


def test_the_number_of_classes_that_loading_took_from_the_data_is_not_reported():
    cfg = load_config(RETINANET, datasets=False)
    cfg.MODEL.CLASS_NAMES = ["a", "b", "c"]
    cfg.MODEL.RETINANET.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    assert unread_keys(cfg) == []
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
    assert [entry.key for entry in unread_keys(cfg)] == ["MODEL.ROI_HEADS.NUM_CLASSES"]


SOLVERS = [
    ("SOLVER.LR_SCHEDULER_NAME", name) for name in ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")
]


@pytest.mark.parametrize(
    "opts", [*SOLVERS, ("SOLVER.OPTIMIZER", "AdamW"), ("SOLVER.CLIP_GRADIENTS.ENABLED", "True"), ()], ids=str
)
def test_the_conditions_of_the_solver_are_those_under_which_it_is_built(opts):
    """A key that the solver reads while it is built is never reported as unread."""
    cfg = load_config(RETINANET, [*opts, "SOLVER.STEPS", "(2, 4)"], datasets=False)
    read = set()
    recorder = _RecordingNode(cfg, read)
    optimizer = Trainer.build_optimizer(recorder, torch.nn.Linear(2, 2))
    Trainer.build_lr_scheduler(recorder, optimizer)
    if "AdamW" in opts:  # it is made from the engine's SGD
        read -= {"SOLVER.MOMENTUM", "SOLVER.NESTEROV"}
    unread = {key for key, (is_read, _) in _CONDITIONS.items() if key.startswith("SOLVER.") and not is_read(cfg)}
    # Engines read the switch of a section, and the warm-up's form, in any case.
    unread -= {"SOLVER.CLIP_GRADIENTS", "SOLVER.WARMUP_FACTOR", "SOLVER.WARMUP_METHOD"}
    assert read & unread == set()


@pytest.mark.parametrize("crop", ["True", "False"])
def test_the_conditions_of_the_mapper_are_those_under_which_it_reads(crop):
    cfg = load_config(RETINANET, ["INPUT.CROP.ENABLED", crop], datasets=False)
    read = set()
    DatasetMapper(_RecordingNode(cfg, read), is_train=True)
    assert ("INPUT.CROP.SIZE" in read) == _CONDITIONS["INPUT.CROP"][0](cfg) == (crop == "True")


def test_a_run_is_warned_and_a_strict_one_refused(caplog):
    opts = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.3"]
    cfg = load_config(RETINANET, opts, datasets=False)
    with caplog.at_level(logging.WARNING):
        check_keys_are_read(cfg, RETINANET, opts, strict=False)
    assert "MODEL.RETINANET.SCORE_THRESH_TEST" in caplog.text
    with pytest.raises(ValueError, match=r"--strict: .*\n.*ROI_HEADS.SCORE_THRESH_TEST is 0.3"):
        check_keys_are_read(cfg, RETINANET, opts, strict=True)
    check_keys_are_read(cfg, RETINANET, [], strict=True)
