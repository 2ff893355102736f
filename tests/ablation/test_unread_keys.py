"""Overrides that no code reads are found, in whichever way code reads."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from retinanet_ext.ablation.study import load_study, with_changes
from retinanet_ext.ablation.unread_keys import check_overrides_are_read
from retinanet_ext.config.key_reads import keys_read_by_model
from retinanet_ext.config.loading import load_config
from retinanet_ext.losses import CLS_LOSS_REGISTRY
from tests.builders import small_config

LOSS, MATCHER = "MODEL.RETINANET.CLS_LOSS", "MODEL.RETINANET.MATCHER"


def study_of(tmp_path, *arms, overrides=None):
    content = {
        "TITLE": "t", "SOURCE": "s", "METRIC": "bbox/AP", "SEEDS": [0], "BASELINE": "arm0",
        "BASE": str(Path("configs/quick/retinanet.yaml").absolute()), "OVERRIDES": overrides or {},
        "ARMS": [{"NAME": f"arm{i}", "OVERRIDES": arm} for i, arm in enumerate(arms)],
    }  # fmt: skip
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content))
    return load_study(tmp_path / "s.yaml")


@pytest.mark.parametrize(
    ("overrides", "unread"),
    [
        ({f"{LOSS}.FOCAL_STAR.BETA": 0.0}, f"{LOSS}.FOCAL_STAR.BETA"),
        ({f"{LOSS}.NAME": "focal_star", f"{LOSS}.FOCAL_STAR.BETA": 0.0}, None),
        ({f"{LOSS}.NAME": "cross_entropy", "MODEL.RETINANET.FOCAL_LOSS_ALPHA": 0.5}, "FOCAL_LOSS_ALPHA"),
        (
            {f"{MATCHER}.NAME": "ATSSMatcher", f"{MATCHER}.LOW_QUALITY": "never"},
            "LOW_QUALITY",
        ),
        ({f"{MATCHER}.NAME": "ATSSMatcher", f"{MATCHER}.ATSS.TOPK": 5}, None),
        ({f"{MATCHER}.ATSS.TOPK": 5}, "MATCHER.ATSS.TOPK"),
        ({f"{LOSS}.NAME": "ohem", f"{LOSS}.OHEM.BATCH": 64, f"{LOSS}.HINGE.MARGIN": 0.1}, "HINGE.MARGIN"),
        # Not read while the model is built, but read elsewhere.
        ({"MODEL.WEIGHTS": "x.pth", "SOLVER.BASE_LR": 0.1, "INPUT.MIN_SIZE_TEST": 64}, None),
    ],
)
def test_an_arm_s_keys_must_be_read_by_its_model(tmp_path, overrides, unread):
    study = study_of(tmp_path, {"SOLVER.MAX_ITER": 7}, overrides)
    if unread is None:
        check_overrides_are_read(study)
    else:
        with pytest.raises(ValueError, match=f"arm 'arm1': nothing reads [A-Z_.]*{unread} in"):
            check_overrides_are_read(study)


@pytest.mark.parametrize("name", ["mask_retinanet", "mask_rcnn"])
def test_models_with_masks_read_the_keys_of_the_branches_that_they_have(name):
    part = {"mask_retinanet": "MODEL.RETINANET.ROIS.NMS_THRESH", "mask_rcnn": "MODEL.RPN.NMS_THRESH"}[name]
    read = keys_read_by_model(load_config(f"configs/quick/{name}.yaml", datasets=False))
    assert {part, "MODEL.ROI_MASK_HEAD.CONV_DIM", "MODEL.ROI_HEADS.POSITIVE_FRACTION"} <= read
    # Those of another mask head, and of a branch that is off.
    assert not {"MODEL.ROI_MASK_HEAD.NUM_FC", "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS"} & read
    assert ("MODEL.ROI_BOX_HEAD.FC_DIM" in read) == (name == "mask_rcnn")


def test_a_model_that_cannot_be_built_is_named(tmp_path):
    study = study_of(tmp_path, {}, {"MODEL.RETINANET.IOU_LABELS": [0, 1]})
    with pytest.raises(ValueError, match="study s, arm 'arm1': IOU_LABELS needs 3 entries"):
        check_overrides_are_read(study)


def test_what_all_arms_have_must_be_read_by_one_of_them(tmp_path):
    arms = {f"{LOSS}.NAME": "cross_entropy"}, {f"{LOSS}.NAME": "focal"}
    alpha = {"MODEL.RETINANET.FOCAL_LOSS_ALPHA": 0.5}
    check_overrides_are_read(study_of(tmp_path, *arms, overrides=alpha))
    with pytest.raises(ValueError, match="nothing reads MODEL.RETINANET.FOCAL_LOSS_ALPHA in the model of any arm"):
        check_overrides_are_read(study_of(tmp_path, arms[0], overrides=alpha))
    with pytest.raises(ValueError, match=f"nothing reads {LOSS}.HINGE.MARGIN in the model of any arm"):
        check_overrides_are_read(with_changes(study_of(tmp_path, *arms), overrides=[f"{LOSS}.HINGE.MARGIN", "0.1"]))


WAYS = {
    "attribute": lambda ohem: ohem.BATCH,
    "item": lambda ohem: ohem["BATCH"],
    "get": lambda ohem: ohem.get("BATCH"),
    "getattr": lambda ohem: getattr(ohem, "BATCH", 1),
    "items": lambda ohem: [value for key, value in ohem.items()],
    "values": lambda ohem: list(ohem.values()),
    "stars": lambda ohem: dict(**ohem),
    "dict": lambda ohem: dict(ohem),
    "clone": lambda ohem: ohem.clone().BATCH,
    "nothing": lambda ohem: "BATCH" in ohem and list(ohem.keys()),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_reading_counts(way, monkeypatch):
    monkeypatch.setitem(
        CLS_LOSS_REGISTRY._obj_map,
        "probe",
        lambda cfg: [WAYS[way](cfg.MODEL.RETINANET.CLS_LOSS.OHEM), nn.Identity()][1],
    )
    read = keys_read_by_model(small_config(f"{LOSS}.NAME", "probe"))
    assert (f"{LOSS}.OHEM.BATCH" in read) == (way != "nothing")
    assert f"{LOSS}.NAME" in read and "MODEL.RETINANET.FOCAL_LOSS_GAMMA" not in read


def test_a_part_that_looks_at_values_can_be_built(monkeypatch):
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = float(torch.ones(1).sum())

    monkeypatch.setitem(CLS_LOSS_REGISTRY._obj_map, "looks", lambda cfg: Looks())
    assert f"{LOSS}.NAME" in keys_read_by_model(small_config(f"{LOSS}.NAME", "looks"))
    with pytest.raises(KeyError, match="CLS_LOSS.NAME is 'fokal', which is not registered"):
        keys_read_by_model(small_config(f"{LOSS}.NAME", "fokal"))
