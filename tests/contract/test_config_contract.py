"""The config of `lite` against Detectron2's."""

from pathlib import Path

import pytest
import torch
import yaml

pytest.importorskip("detectron2", reason="compares lite with Detectron2, which is not installed")

from detectron2 import model_zoo
from detectron2.config import CfgNode as D2CfgNode
from detectron2.config import configurable as d2_configurable
from detectron2.config import get_cfg as d2_get_cfg
from detectron2.modeling import build_backbone as d2_build_backbone
from detectron2.modeling import build_model as d2_build_model

from retinanet_ext import add_retinanet_ext_config
from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import ENGINE, build_model
from retinanet_ext.lite.backbone import build_backbone as lite_build_backbone
from retinanet_ext.lite.cfg_node import CfgNode, configurable, get_cfg

SAFE_SIZES = [[x, x * 2 ** (1.0 / 3), x * 2 ** (2.0 / 3)] for x in (32, 64, 128, 256, 512)]


def flatten(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def assert_shared_keys_agree(ours, theirs):
    theirs = dict(flatten(theirs))
    for key, value in flatten(ours):
        assert key in theirs, f"{key} is not a key of Detectron2"
        assert (type(value), value) == (type(theirs[key]), theirs[key]), key


def test_every_default_is_detectron2s():
    assert_shared_keys_agree(get_cfg(), d2_get_cfg())


def test_only_keys_of_other_detectors_are_missing():
    ours = dict(flatten(get_cfg()))
    other_detectors = ("MODEL.ROI_BOX_CASCADE_HEAD.", "MODEL.SEM_SEG_HEAD.", "MODEL.PANOPTIC_FPN.", "TEST.PRECISE_BN.")
    missing = {key for key, _ in flatten(d2_get_cfg()) if key not in ours and not key.startswith(other_detectors)}
    assert missing == {"GLOBAL.HACK"}


@pytest.fixture
def with_safe_tag(tmp_path):
    """Copies a config of Detectron2 and its bases, with the one unsafe line rewritten."""

    def copy(name):
        source = model_zoo.get_config_file(name)
        target = tmp_path / "configs" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(source) as file:
            lines = file.read().splitlines()
        for index, line in enumerate(lines):
            if line.startswith("_BASE_:"):
                base = line.split(":", 1)[1].strip(' "')
                copy(str((target.parent / base).resolve().relative_to((tmp_path / "configs").resolve())))
            if "!!python" in line:
                lines[index] = line[: line.index("!!")] + str(SAFE_SIZES)
        target.write_text("\n".join(lines))
        return str(target)

    return copy


@pytest.mark.parametrize("name", ["R_50_FPN_1x", "R_50_FPN_3x", "R_101_FPN_3x"])
def test_detectron2s_retinanet_files_load_unchanged_but_for_the_tag(name, with_safe_tag):
    name = f"COCO-Detection/retinanet_{name}.yaml"
    with pytest.raises(ValueError, match="Base-RetinaNet.yaml, line 8: the tag !!python/object/apply:eval"):
        get_cfg().merge_from_file(model_zoo.get_config_file(name))
    ours, theirs = get_cfg(), d2_get_cfg()
    ours.merge_from_file(with_safe_tag(name))
    theirs.merge_from_file(model_zoo.get_config_file(name))  # evaluates the tag
    assert ours.MODEL.META_ARCHITECTURE == "RetinaNet"
    assert_shared_keys_agree(ours, theirs)


def configs_of(*folders):
    """Detectron2's YAML files in these folders, and the three bases of two-stage models; without RetinaNet's."""
    root = Path(model_zoo.get_config_file("Base-RCNN-FPN.yaml")).parent
    files = [*root.glob("Base-RCNN-*.yaml"), *(file for folder in folders for file in (root / folder).glob("*.yaml"))]
    return sorted(str(file.relative_to(root)) for file in files if "retinanet" not in file.name)


@pytest.mark.parametrize("name", configs_of("COCO-Detection", "COCO-InstanceSegmentation", "COCO-Keypoints"))
def test_detectron2s_two_stage_files_load_as_they_are(name):
    ours, theirs = get_cfg(), d2_get_cfg()
    theirs.merge_from_file(model_zoo.get_config_file(name))
    if theirs.MODEL.LOAD_PROPOSALS:  # Fast R-CNN
        with pytest.raises(ValueError, match=f"{name}: MODEL.LOAD_PROPOSALS is True.* install Detectron2"):
            ours.merge_from_file(model_zoo.get_config_file(name))
        return
    ours.merge_from_file(model_zoo.get_config_file(name))
    assert_shared_keys_agree(ours, theirs)
    with torch.device("meta"):
        found, expected = lite_build_backbone(ours), d2_build_backbone(theirs)
    assert [(name, value.shape) for name, value in found.state_dict().items()] == [
        (name, value.shape) for name, value in expected.state_dict().items()
    ]
    assert found.output_shape().keys() == expected.output_shape().keys()


@pytest.mark.parametrize("name", configs_of("Misc"))
def test_other_two_stage_files_of_detectron2_load_or_name_what_lacks(name):
    ours, theirs = get_cfg(), d2_get_cfg()
    theirs.merge_from_file(model_zoo.get_config_file(name))
    if theirs.TEST.PRECISE_BN.ENABLED:
        with pytest.raises(ValueError, match=f"{name}: TEST.PRECISE_BN.ENABLED is True.* install Detectron2"):
            ours.merge_from_file(model_zoo.get_config_file(name))
        return
    ours.merge_from_file(model_zoo.get_config_file(name))
    assert_shared_keys_agree(ours, theirs)
    if any(theirs.MODEL.RESNETS.DEFORM_ON_PER_STAGE):
        with pytest.raises(ValueError, match="DEFORM_ON_PER_STAGE: the lite engine has no deformable convolutions"):
            lite_build_backbone(ours)


@pytest.mark.skipif(ENGINE != "lite", reason="loads the file on lite")
def test_a_whole_config_of_detectron2_builds_its_model_on_lite(tmp_path):
    theirs = d2_get_cfg()
    add_retinanet_ext_config(theirs)
    theirs.merge_from_file(model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml"))
    theirs.MODEL.WEIGHTS, theirs.MODEL.DEVICE = "", "cpu"
    (tmp_path / "config.yaml").write_text(theirs.dump())
    ours = load_config(str(tmp_path / "config.yaml"), datasets=False)
    assert yaml.safe_load(ours.dump()) == yaml.safe_load(theirs.dump())  # nothing is dropped
    expected = {name: value.shape for name, value in d2_build_model(theirs).state_dict().items()}
    found = {name: value.shape for name, value in build_model(ours).state_dict().items()}
    assert found.pop("loss_normalizer.average") == ()
    assert found == expected


@pytest.mark.parametrize(
    "overrides",
    [
        ["SOLVER.STEPS", "[1, 2]"],
        ["SOLVER.STEPS", "(1, 2)"],
        ["MODEL.WEIGHTS", "None"],
        ["MODEL.WEIGHTS", "a/b.pth"],
        ["SOLVER.WEIGHT_DECAY_BIAS", "0.1"],
        ["DATASETS.TRAIN", "('a', 'b')"],
        ["SOLVER.BASE_LR", "1e-3", "SEED", "3"],
        ["TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 1.0, 2.0]]"],
    ],
)
def test_overrides_are_read_alike(overrides):
    ours, theirs = get_cfg(), d2_get_cfg()
    ours.merge_from_list(overrides)
    theirs.merge_from_list(overrides)
    assert_shared_keys_agree(ours, theirs)


@pytest.mark.parametrize("overrides", [["SEED"], ["SEED", "x"], ["SEED", "1.5"], ["SOLVER.BASE_LR", "1"], ["NO", 1]])
def test_overrides_are_refused_alike(overrides):
    for cfg in (get_cfg(), d2_get_cfg()):
        with pytest.raises((AssertionError, ValueError, KeyError)):
            cfg.merge_from_list(overrides)


@pytest.mark.parametrize("decorate, node", [(configurable, CfgNode), (d2_configurable, D2CfgNode)])
def test_configurable_call_forms(decorate, node):
    class Part:
        @decorate
        def __init__(self, a, b=2):
            self.values = (a, b)

        @classmethod
        def from_config(cls, cfg, x=None):
            return {"a": cfg.SEED, "b": x}

    @decorate(from_config=lambda cfg, x=1: {"a": cfg.SEED, "b": x})
    def build(a, b=2, *, c=3):
        return a, b, c

    cfg = node({"SEED": -1})
    calls = [
        Part(1),
        Part(a=1, b=3),
        Part(cfg),
        Part(cfg=cfg),
        Part(cfg, 7),
        Part(cfg, x=7),
        Part(cfg, 7, a=5),
    ]
    assert [part.values for part in calls] == [
        (1, 2),
        (1, 3),
        (-1, None),
        (-1, None),
        (-1, 7),
        (-1, 7),
        (5, 7),
    ]
    assert [build(1), build(cfg), build(cfg=cfg, c=8), build(cfg, 9), build(cfg, x=9, a=0)] == [
        (1, 2, 3),
        (-1, 1, 3),
        (-1, 1, 8),
        (-1, 9, 3),
        (0, 9, 3),
    ]
    with pytest.raises(TypeError):
        Part(cfg, nonsense=1)
