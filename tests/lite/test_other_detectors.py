"""A config file that names parts which `lite` does not have."""

import pytest

from retinanet_ext.lite.cfg_node import get_cfg

# What a config of Detectron2 holds beside the keys that a model of this package reads.
KEPT = """
MODEL:
  META_ARCHITECTURE: RetinaNet
  LOAD_PROPOSALS: false
  ROI_BOX_CASCADE_HEAD: {IOUS: [0.5, 0.6]}
  SEM_SEG_HEAD: {NUM_CLASSES: 54}
  PANOPTIC_FPN: {COMBINE: {ENABLED: true}}
TEST: {PRECISE_BN: {ENABLED: false, NUM_ITER: 200}}
GLOBAL: {HACK: 1.0}
SEED: 5
"""


@pytest.fixture
def merge(tmp_path):
    def merge(text, *overrides):
        (tmp_path / "config.yaml").write_text(text)
        cfg = get_cfg()
        cfg.merge_from_file(str(tmp_path / "config.yaml"))
        cfg.merge_from_list(list(overrides))
        return cfg

    return merge


def test_they_are_kept(merge, tmp_path):
    cfg = merge(KEPT)
    assert cfg.SEED == 5
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 54 and cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED is True
    assert cfg.TEST.PRECISE_BN.NUM_ITER == 200
    (tmp_path / "again.yaml").write_text(cfg.dump())
    again = get_cfg()
    again.merge_from_file(str(tmp_path / "again.yaml"))
    assert again == cfg
    # Overrides reach what the file has.
    assert merge(KEPT, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5").MODEL.SEM_SEG_HEAD.NUM_CLASSES == 5


def test_frozen_configs_take_none(merge):
    cfg = get_cfg()
    cfg.freeze()
    with pytest.raises((AttributeError, KeyError)):
        cfg.merge_from_other_cfg(type(cfg)({"MODEL": {"SEM_SEG_HEAD": {"NUM_CLASSES": 5}}}))
    assert "SEM_SEG_HEAD" not in cfg.MODEL


@pytest.mark.parametrize("text", ["MODEL: {RPM: {NMS_THRESH: 0.7}}", "RPN: {NMS_THRESH: 0.7}", "INPUT: {MASK: x}"])
def test_other_unknown_keys_are_refused_as_ever(merge, text):
    with pytest.raises(KeyError, match="does not exist"):
        merge(text)


@pytest.mark.parametrize("key", ["MODEL.LOAD_PROPOSALS", "TEST.PRECISE_BN.ENABLED"])
def test_values_that_would_change_the_run_are_refused_with_key_and_remedy(merge, key):
    *sections, last = key.split(".")
    text = f"{last}: true"
    for section in reversed(sections):
        text = f"{section}: {{{text}}}"
    message = f"{key} is .*`lite`.*; set it to False, or install Detectron2"
    with pytest.raises(ValueError, match=f"config.yaml: {message}"):
        merge(text)
    with pytest.raises(ValueError, match=message):
        merge(KEPT, key, "True")
