"""Anchors proposed for a dataset, and the warning when training starts."""

import logging
import shlex

import numpy as np
import pytest
import yaml

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import BoxMode, build_model
from retinanet_ext.data.checked_records import load_training_dicts
from retinanet_ext.data.doctor.anchor_coverage import anchor_coverage
from retinanet_ext.data.doctor.anchor_proposal import propose_anchors
from retinanet_ext.data.doctor.coverage_warning import quick_sample, warn_of_poor_coverage
from tests.builders import small_config


def records_of(boxes_wh, size=256, per_image=4, seed=0, classes=None):
    """Images with boxes of these widths and heights at random places."""
    rng, records = np.random.default_rng(seed), []
    classes = np.zeros(len(boxes_wh), int) if classes is None else classes
    for start in range(0, len(boxes_wh), per_image):
        annotations = [
            {"bbox": [*(rng.random(2) * (size - np.array(wh))), *wh], "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": 0,
             "category_id": int(kind)}
            for wh, kind in zip(boxes_wh[start : start + per_image], classes[start : start + per_image])
        ]  # fmt: skip
        records.append({"file_name": f"{start}.png", "width": size, "height": size, "annotations": annotations})
    return records


def small_and_tall(count=160):
    rng = np.random.default_rng(5)
    width = rng.uniform(7, 13, count)
    return records_of(np.stack([width, width * rng.uniform(2.5, 4, count)], axis=1))


CASES = {
    "one stage": ("configs/Base-RetinaNet.yaml", 0.8),
    "two stages": ("configs/instance/mask_rcnn_R_50_FPN_1x.yaml", 0.7),
    "one level": ("configs/instance/mask_rcnn_R_50_C4_1x.yaml", 0.0),
}


@pytest.mark.parametrize("case", CASES)
def test_a_proposal_is_an_override_that_fits_the_same_model(case):
    file, least = CASES[case]
    resize = ["INPUT.MIN_SIZE_TRAIN", "(256,)"]
    cfg, records = load_config(file, resize, datasets=False), small_and_tall()
    proposal = propose_anchors(cfg, records, ["pole"])
    assert not proposal.is_default
    assert proposal.before.share() < 0.25 and proposal.after.share() > max(proposal.before.share() + 0.1, least)

    changed = load_config(file, [*resize, *proposal.overrides], datasets=False)
    assert shlex.split(proposal.command_line) == proposal.overrides
    anchors = yaml.safe_load(proposal.yaml)["MODEL"]["ANCHOR_GENERATOR"]
    given = changed.MODEL.ANCHOR_GENERATOR
    assert (anchors["SIZES"], anchors["ASPECT_RATIOS"]) == (given.SIZES, given.ASPECT_RATIOS)
    # What is claimed for the proposal is what the config that was loaded has.
    assert anchor_coverage(changed, records, ["pole"]) == proposal.after
    assert anchor_coverage(cfg, records, ["pole"]) == proposal.before
    old = cfg.MODEL.ANCHOR_GENERATOR
    assert [len(row) for row in given.SIZES] == [len(row) for row in old.SIZES]
    assert [len(row) for row in given.ASPECT_RATIOS] == [len(row) for row in old.ASPECT_RATIOS]


def test_weights_fit_the_model_with_the_proposed_anchors(tmp_path):
    cfg = small_config("INPUT.MIN_SIZE_TRAIN", "(256,)")
    proposal = propose_anchors(cfg, small_and_tall(40))
    (tmp_path / "a.yaml").write_text(proposal.yaml)
    shapes = {name: value.shape for name, value in build_model(cfg).state_dict().items()}
    cfg.merge_from_file(str(tmp_path / "a.yaml"))
    assert proposal.sizes == cfg.MODEL.ANCHOR_GENERATOR.SIZES
    assert {name: value.shape for name, value in build_model(cfg).state_dict().items()} == shapes


def test_the_same_seed_gives_the_same_anchors_and_good_anchors_stay():
    cfg = small_config("INPUT.MIN_SIZE_TRAIN", "(256,)")
    first, second = (propose_anchors(cfg, small_and_tall(40), seed=3) for _ in range(2))
    assert first == second
    again = propose_anchors(load_config_with(cfg, first), small_and_tall(40), seed=3)
    assert again.is_default and again.sizes == first.sizes and again.before == again.after
    fitting = records_of(np.full((40, 2), 64.0))
    assert propose_anchors(cfg, fitting).is_default
    assert propose_anchors(load_config("configs/quick/facenet.yaml", datasets=False), fitting) is None


def load_config_with(cfg, proposal):
    cfg = cfg.clone()
    cfg.merge_from_list(proposal.overrides)
    return cfg


def test_a_rare_class_counts_as_much_as_a_frequent_one():
    rng = np.random.default_rng(0)
    large, small = rng.uniform(60, 90, (190, 2)), rng.uniform(13, 17, (10, 2))
    classes = np.repeat([0, 1], [190, 10])
    records = records_of(np.concatenate([large, small]), classes=classes)
    proposal = propose_anchors(small_config("INPUT.MIN_SIZE_TRAIN", "(256,)"), records, ["large", "small"])
    before, after = ([coverage.share(group) for group in coverage.by_class]
                     for coverage in (proposal.before, proposal.after))  # fmt: skip
    assert before[0] > 0.99 and before[1] < 0.5 and min(after) >= 0.9


def test_the_proposal_for_bccd_finds_the_platelets(shared_data, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shared_data))
    overrides = ["DATASETS.CHECK_IMAGES", "none", "INPUT.CROP.ENABLED", "False"]
    cfg = load_config("configs/detection/bccd_R_18_FPN.yaml", overrides)
    base = load_config("configs/Base-RetinaNet.yaml", datasets=False)
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = base.MODEL.ANCHOR_GENERATOR.SIZES
    proposal = propose_anchors(cfg, load_training_dicts(cfg), cfg.MODEL.CLASS_NAMES)
    assert proposal.before.share(proposal.before.by_class[2]) < 0.3
    assert min(proposal.after.share(group) for group in proposal.after.by_class) > 0.95


def warning_of(cfg, records, caplog):
    caplog.clear()
    with caplog.at_level(logging.INFO):
        warn_of_poor_coverage(cfg, quick_sample(cfg, records), len(records))
    return [record for record in caplog.records if "nchor coverage" in record.getMessage()]


def test_poor_coverage_is_a_warning_that_says_what_is_missed(caplog):
    cfg = small_config("INPUT.MIN_SIZE_TRAIN", "(256,)", "OUTPUT_DIR", "output/my run")
    (record,) = warning_of(cfg, small_and_tall(), caplog)
    assert record.levelno == logging.WARNING
    for part in ("% of 160 objects have", "small (below 32 x 32) (", "taller than 3 : 1 (",
                 "retinanet-ext doctor data --config-file 'output/my run/config.yaml'"):  # fmt: skip
        assert part in record.getMessage()


def test_a_frequent_class_far_behind_is_named_though_the_average_is_good(caplog):
    classes = np.repeat([0, 1], [190, 10])
    sizes = np.where(classes[:, None] == 0, 64.0, 14.0) * np.ones((1, 2))
    cfg = small_config("INPUT.MIN_SIZE_TRAIN", "(256,)")
    cfg.MODEL.CLASS_NAMES = ["cell", "platelet", "none"]
    (record,) = warning_of(cfg, records_of(sizes, classes=classes), caplog)
    assert record.levelno == logging.WARNING and "the class platelet (" in record.getMessage()


def test_good_coverage_no_anchors_and_0_make_no_warning(caplog):
    cfg, good = small_config("INPUT.MIN_SIZE_TRAIN", "(256,)"), records_of(np.full((40, 2), 64.0))
    (record,) = warning_of(cfg, good, caplog)
    assert record.levelno == logging.INFO
    cfg.DATASETS.MIN_ANCHOR_COVERAGE = 0.0
    assert warning_of(cfg, small_and_tall(), caplog) == []
    assert warning_of(load_config("configs/quick/facenet.yaml", datasets=False), good, caplog) == []
    atss = small_config("INPUT.MIN_SIZE_TRAIN", "(256,)", "MODEL.RETINANET.MATCHER.NAME", "ATSSMatcher")
    (record,) = warning_of(atss, small_and_tall(), caplog)
    assert record.levelno == logging.INFO


def test_a_failure_never_stops_the_run(caplog):
    cfg = small_config("INPUT.MIN_SIZE_TRAIN", "(256,)")
    (record,) = warning_of(cfg, [{"file_name": "a.png", "width": 9, "height": 9, "annotations": [{"bbox": 3}]}], caplog)
    assert record.levelno == logging.WARNING and "could not be computed" in record.getMessage()


@pytest.mark.parametrize("value", ["-0.1", "90"])
def test_an_illegal_bound_is_refused(value):
    with pytest.raises(ValueError, match="MIN_ANCHOR_COVERAGE.*from 0 to 1"):
        small_config("DATASETS.MIN_ANCHOR_COVERAGE", value)
