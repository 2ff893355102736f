import re
from pathlib import Path

import pytest
import torch
import yaml

from retinanet_ext import add_retinanet_ext_config, d2
from retinanet_ext.config.class_count import num_classes
from retinanet_ext.config.legal_values import LEGAL_RANGES, LEGAL_VALUES
from retinanet_ext.config.loading import load_config
from retinanet_ext.config.yaml_files import flat_keys
from retinanet_ext.embedding.harmonic import FrozenV1
from tests.builders import batch, faces, with_masks_and_keypoints
from tests.conftest import REPO_ROOT

# Ablation studies are not configs; see tests/ablation.
CONFIGS = sorted(path for path in (REPO_ROOT / "configs").rglob("*.yaml") if path.parent.name != "ablations")
SMALL = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(REPO_ROOT / "configs")))
def test_every_config_builds_and_trains_one_step(path, generator):
    cfg = load_config(str(path), SMALL, datasets=False)
    cfg.MODEL.EMBEDDING.NUM_IDENTITIES = 2  # the data would fill it in
    model = d2.build_model(cfg)
    is_facenet = cfg.MODEL.META_ARCHITECTURE in ("FaceNet", "HarmonicFaceNet")
    if cfg.MODEL.META_ARCHITECTURE == "HarmonicFaceNet":
        v1 = load_config("configs/embedding/facenet_nn4.yaml", SMALL, datasets=False)
        model.attach_v1(FrozenV1(d2.build_model(v1), size=(96, 96), image_format="BGR", input_format="BGR"))
    if is_facenet:
        channels = len(cfg.MODEL.PIXEL_MEAN)
        inputs = faces(generator, tuple(cfg.INPUT.FACE.SIZE), identities=(0, 0, 1), channels=channels)
    else:
        inputs = batch(generator, (64, 64), (64, 64), num_classes=min(3, num_classes(cfg)))
    if not is_facenet and cfg.MODEL.META_ARCHITECTURE != "FocalRetinaNet":
        inputs = with_masks_and_keypoints(generator, inputs, cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS)
        for image in inputs:
            image["instances"].gt_identities = torch.arange(len(image["instances"]))
    with d2.EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    names = ("mask", "keypoint", "embedding")
    branches = {f"loss_{name}" for name in names if cfg.MODEL[f"{name.upper()}_ON"]}
    assert {name for name in losses if name in {f"loss_{name}" for name in names}} == branches


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(REPO_ROOT / "configs")))
def test_every_config_is_safe_yaml_inside_this_folder(path):
    content = yaml.safe_load(path.read_text())
    base = content.get("_BASE_")
    if base:
        assert (REPO_ROOT / "configs") in (path.parent / base).resolve().parents


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(REPO_ROOT / "configs")))
def test_every_config_saves_before_its_end(path):
    solver = load_config(str(path), datasets=False).SOLVER
    assert solver.CHECKPOINT_PERIOD <= solver.MAX_ITER / 2


def new_keys() -> set[str]:
    plain, extended = d2.get_cfg(), d2.get_cfg()
    add_retinanet_ext_config(extended)
    return set(flat_keys(extended)) - set(flat_keys(plain))


KEY_FILES = ("keys.py", "embedding_keys.py", "reliability_keys.py")


@pytest.mark.parametrize("key", sorted(new_keys()))
def test_every_new_key_is_explained_and_read(key):
    files = [REPO_ROOT / "retinanet_ext" / "config" / name for name in KEY_FILES]
    source = "\n".join(path.read_text() for path in files)
    line = next(i for i, text in enumerate(source.splitlines()) if f"cfg.{key} =" in text)
    before = source.splitlines()[line - 2 : line]
    assert any(text.strip().startswith("#") for text in before), f"no comment above {key}"
    last_two = ".".join(key.split(".")[-2:])
    readers = [p for p in (REPO_ROOT / "retinanet_ext").rglob("*.py") if p.name not in KEY_FILES]
    assert any(re.search(rf"\b{re.escape(last_two)}\b", p.read_text()) for p in readers), f"nobody reads {key}"


def test_adding_the_keys_changes_none_of_the_engines():
    plain, extended = d2.get_cfg(), d2.get_cfg()
    add_retinanet_ext_config(extended)
    for key in flat_keys(plain):
        a, b = plain, extended
        for part in key.split("."):
            a, b = a[part], b[part]
        assert a == b, key


def write(folder: Path, text: str) -> str:
    (folder / "config.yaml").write_text(text)
    return str(folder / "config.yaml")


@pytest.mark.parametrize(
    "text, message",
    [
        ("MODEL: {RETINANET: {NUM_CLASES: 3}}", "NUM_CLASES' does not exist; nearest: MODEL.RETINANET.NUM_CLASSES"),
        ("MODEL: {RETINANET: {MATCHER: {NAM: x}}}", "nearest: MODEL.RETINANET.MATCHER.NAME"),
        ("ROI_HEADS: {SCORE_THRESH_TEST: 0.1}", "nearest: .*SCORE_THRESH_TEST"),
    ],
)
def test_unknown_keys_name_the_nearest(tmp_path, text, message):
    with pytest.raises(KeyError, match=message):
        load_config(write(tmp_path, text), datasets=False)


def test_all_unknown_keys_are_named_at_once(tmp_path):
    with pytest.raises(KeyError, match="SOLVER.LR.*SOLVER.ITERS"):
        load_config(write(tmp_path, "SOLVER: {LR: 1, ITERS: 2}"), datasets=False)
    with pytest.raises(KeyError, match="the overrides: .*SOLVER.LR"):
        load_config(None, ["SOLVER.LR", "1"], datasets=False)


def test_wrong_types_and_odd_overrides(tmp_path):
    with pytest.raises(ValueError, match="SOLVER.MAX_ITER"):
        load_config(write(tmp_path, "SOLVER: {MAX_ITER: many}"), datasets=False)
    with pytest.raises(ValueError, match="KEY VALUE pairs, but there are 1"):
        load_config(None, ["SOLVER.MAX_ITER"], datasets=False)
    with pytest.raises(FileNotFoundError, match="'none.yaml' does not exist"):
        load_config("none.yaml")


@pytest.mark.parametrize("key", LEGAL_VALUES)
def test_values_that_no_engine_knows_are_refused_with_the_legal_ones(key):
    wrong = "99" if isinstance(LEGAL_VALUES[key][0], int) else "x"
    with pytest.raises(ValueError, match=f"{key} is '?{wrong}'?; legal values: {LEGAL_VALUES[key][0]!r}, "):
        load_config(None, [key, wrong], datasets=False)


@pytest.mark.parametrize(("legal", "key"), [(legal, key) for legal, _, keys in LEGAL_RANGES for key in keys])
def test_numbers_out_of_range_are_refused(legal, key):
    wrong = "2.0" if legal.endswith("1") else "-1"
    default = load_config(None, datasets=False)
    for part in key.split("."):
        default = default[part]
    given = f"[[{wrong}]]" if isinstance(default, (list, tuple)) else wrong
    with pytest.raises(ValueError, match=rf"{key} is [(\[]*{wrong}(\.0)?[\]),]*; legal: {legal}"):  # -1.0 for floats
        load_config(None, [key, given], datasets=False)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("SOLVER.BASE_LR", ".nan", "SOLVER.BASE_LR is nan; legal: finite numbers"),
        ("SOLVER.CLIP_GRADIENTS", "{CLIP_VALUE: .inf}", "CLIP_VALUE is inf; legal: finite numbers"),
        ("SOLVER.MAX_ITER", "null", r"SOLVER.MAX_ITER is empty \(null\); legal: a value like its default, 40000"),
        ("INPUT.MIN_SIZE_TRAIN", "[64, wide]", "MIN_SIZE_TRAIN is .*'wide'.*; legal: an integer from 0 each"),
        ("SOLVER.BASE_LR", "2024-01-01", "SOLVER.BASE_LR is of the type date; legal: text"),
        ("SOLVER.STEPS", "!!set {a}", "SOLVER.STEPS is of the type set; legal: text"),
        ("SEED", "&a [*a]", r"SEED\[0\] contains itself, by an alias"),
        ("SEED", "[" * 5000, "nested too deeply"),
        ("SEED", "[" * 40 + "]" * 40, "nested more than 32 levels deep"),
        ("SEED", "2024-13-77", "not valid YAML"),
        ("SEED", "9" * 5000, "config.yaml"),
        ("M{ODEL", "{}", r"config key 'M\{ODEL' does not exist"),
        ("SOLVER.MOX_ITER", "{}", "config key 'SOLVER.MOX_ITER' does not exist; nearest: SOLVER.MAX_ITER"),
        ("_BASE_", "5", "_BASE_ is 5; legal: the path of a config file"),
        ("_BASE_", "[[a]]", "_BASE_ is .* legal: the path of a config file"),
        ("_BASE_", "/dev/zero", "not a file, but a folder or a device"),
        ("_BASE_", "/", "not a file, but a folder or a device"),
    ],
)
def test_values_that_no_key_takes_are_refused_by_name(tmp_path, key, value, message):
    section, _, name = key.partition(".")
    path = write(tmp_path, f"{section}:\n  {name}: {value}" if name else f"{section}: {value}")
    with pytest.raises((ValueError, KeyError, FileNotFoundError), match=message) as caught:
        load_config(path, datasets=False)
    assert "config.yaml" in str(caught.value)


def test_aliases_that_stand_for_billions_of_values_are_refused(tmp_path):
    lines = ["a0: &a0 [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(ValueError, match="more than 1,000,000 values; are its aliases"):
        load_config(write(tmp_path, "\n".join(lines)), datasets=False)


def test_bases_that_share_their_bases_are_read_once(tmp_path):
    """Forty levels of two bases each would be read 2^40 times."""
    (tmp_path / "0.yaml").write_text("SOLVER:\n  MAX_ITER: 7\n")
    for level in range(1, 40):
        (tmp_path / f"{level}.yaml").write_text(f"_BASE_: [{level - 1}.yaml, {level - 1}.yaml]\n")
    assert load_config(str(tmp_path / "39.yaml"), datasets=False).SOLVER.MAX_ITER == 7


def test_oks_sigmas_wait_for_the_number_of_keypoints_of_the_data():
    opts = ["MODEL.KEYPOINT_ON", "True", "TEST.KEYPOINT_OKS_SIGMAS", "[0.1, 0.1]"]
    assert load_config(None, opts, datasets=False).TEST.KEYPOINT_OKS_SIGMAS == [0.1, 0.1]
    with pytest.raises(ValueError, match="TEST.KEYPOINT_OKS_SIGMAS has 2 values, but .* is 3"):
        load_config(None, [*opts, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "3"], datasets=False)
    with pytest.raises(ValueError, match=r"TEST.KEYPOINT_OKS_SIGMAS is \[0.1, -0.1\]; legal: numbers above 0"):
        opts[-1] = "[0.1, -0.1]"
        load_config(None, [*opts, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "2"], datasets=False)


def test_a_list_given_as_a_word_is_told_how_lists_are_written():
    with pytest.raises(ValueError, match=r"the overrides: .*DATASETS.TRAIN; a list is written \['a', 'b'\]"):
        load_config(None, ["DATASETS.TRAIN", "cells"], datasets=False)
    with pytest.raises(ValueError, match="the overrides: .*SOLVER.MAX_ITER$"):
        load_config(None, ["SOLVER.MAX_ITER", "many"], datasets=False)


def test_sections_and_lower_case_keys_are_recognised(tmp_path):
    with pytest.raises(KeyError, match="'SOLVER' is a section and takes no value itself; its keys are .*MAX_ITER"):
        load_config(write(tmp_path, "SOLVER: 5"), datasets=False)
    with pytest.raises(KeyError, match="'solver.max_iter' does not exist; nearest: SOLVER.MAX_ITER"):
        load_config(None, ["solver.max_iter", "5"], datasets=False)
    with pytest.raises(KeyError, match="'SOLVER.1' does not exist"):
        load_config(write(tmp_path, "SOLVER: {1: 5}"), datasets=False)


def test_a_key_given_twice_is_refused(tmp_path):
    text = "SOLVER:\n  MAX_ITER: 5\nSEED: 1\nSOLVER:\n  BASE_LR: 0.1\n"
    with pytest.raises(ValueError, match="'SOLVER' occurs twice in one section; only the last would count\\n.*line 4"):
        load_config(write(tmp_path, text), datasets=False)


def test_files_that_cannot_be_read_as_a_config_are_named(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"\x80\x02\xff")
    with pytest.raises(ValueError, match="weights.pth is not a text file"):
        load_config(str(tmp_path / "weights.pth"), datasets=False)
    (tmp_path / "other.yaml").write_text("_BASE_: config.yaml")
    with pytest.raises(ValueError, match="is its own _BASE_: .*config.yaml -> .*other.yaml -> .*config.yaml"):
        load_config(write(tmp_path, "_BASE_: other.yaml"), datasets=False)


def test_unsafe_yaml_is_refused_on_either_engine(tmp_path):
    canary = tmp_path / "canary"
    path = write(tmp_path, f"SEED: !!python/object/apply:os.mkdir ['{canary}']\n")
    with pytest.raises(ValueError, match="os.mkdir.*is refused"):
        load_config(path, datasets=False)
    assert not canary.exists()


CUSTOM = "[{'NAME': '%s', 'FORMAT': 'coco', 'JSON': '%s', 'IMAGES': '%s'}]"


def test_number_of_classes_comes_from_the_data(shapes):
    json_file, images = shapes / "annotations" / "shapes_train.json", shapes / "train"
    opts = ["DATASETS.CUSTOM", CUSTOM % ("num_classes_test", json_file, images)]
    opts += ["DATASETS.TRAIN", "('num_classes_test',)", "DATASETS.TEST", "()"]
    cfg = load_config(None, opts)
    assert cfg.MODEL.RETINANET.NUM_CLASSES == len(cfg.MODEL.CLASS_NAMES) == 5
    assert load_config(None, [*opts, "MODEL.RETINANET.NUM_CLASSES", "5"]).MODEL.RETINANET.NUM_CLASSES == 5
    with pytest.raises(ValueError, match="NUM_CLASSES is 80, but dataset 'num_classes_test' has 5 classes: circle"):
        load_config(None, [*opts, "MODEL.RETINANET.NUM_CLASSES", "80"])
    with pytest.raises(KeyError, match="num_clases_test"):
        load_config(None, [*opts, "DATASETS.TRAIN", "('num_clases_test',)"])


def test_an_integer_is_good_enough_for_a_float(tmp_path):
    (tmp_path / "c.yaml").write_text("MODEL:\n  RETINANET:\n    FOCAL_LOSS_GAMMA: 3\nSOLVER:\n  MAX_ITER: 7\n")
    cfg = load_config(str(tmp_path / "c.yaml"), ["MODEL.RETINANET.FOCAL_LOSS_ALPHA", "-1"], datasets=False)
    assert (cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA, cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA) == (-1.0, 3.0)
    assert cfg.SOLVER.MAX_ITER == 7 and isinstance(cfg.SOLVER.MAX_ITER, int)
    with pytest.raises(ValueError, match="FOCAL_LOSS_GAMMA"):
        load_config(None, ["MODEL.RETINANET.FOCAL_LOSS_GAMMA", "much"], datasets=False)


@pytest.mark.parametrize("base", ["own_data/from_scratch.yaml", "configs/own_data/from_scratch.yaml"])
def test_configs_of_the_package_are_found_from_any_folder(base, tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text(f"_BASE_: {base}\nSOLVER: {{MAX_ITER: 7}}\n")
    monkeypatch.chdir(tmp_path)
    mine, theirs = load_config("mine.yaml", datasets=False), load_config(base, datasets=False)
    assert (mine.SOLVER.MAX_ITER, theirs.SOLVER.MAX_ITER) == (7, 880)
    assert mine.MODEL.RESNETS.DEPTH == theirs.MODEL.RESNETS.DEPTH == 18


def test_a_file_of_one_s_own_comes_before_a_config_of_the_package(tmp_path, monkeypatch):
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "retinanet.yaml").write_text("SOLVER: {MAX_ITER: 7}\n")
    monkeypatch.chdir(tmp_path)
    assert load_config("quick/retinanet.yaml", datasets=False).SOLVER.MAX_ITER == 7


def test_an_unknown_config_names_similar_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="'quick/retinanett.yaml' does not exist .* quick/retinanet.yaml"):
        load_config("quick/retinanett.yaml", datasets=False)


@pytest.mark.skipif(d2.ENGINE != "lite", reason="Detectron2 has these keys itself")
def test_a_config_with_keys_of_other_detectors_builds_the_same_model(tmp_path):
    text = f'_BASE_: "{REPO_ROOT}/configs/Base-RetinaNet.yaml"\n' + "MODEL: {{{}META_ARCHITECTURE: {}}}"
    plain = load_config(write(tmp_path, text.format("", "FocalRetinaNet")), SMALL, datasets=False)
    others = "RPN: {NMS_THRESH: 0.7}, SEM_SEG_HEAD: null, PANOPTIC_FPN: {COMBINE: {ENABLED: true}}, "
    cfg = load_config(write(tmp_path, text.format(others, "RetinaNet")), SMALL, datasets=False)
    assert cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED is True
    model, expected = d2.build_model(cfg), d2.build_model(plain)
    assert type(model) is type(expected)
    assert str(model) == str(expected)
    with pytest.raises(ValueError, match="config.yaml: MODEL.LOAD_PROPOSALS is True.*set it to False, or install"):
        load_config(write(tmp_path, text.format("LOAD_PROPOSALS: true, ", "RetinaNet")), SMALL, datasets=False)
    cfg = load_config(write(tmp_path, text.format("", "PanopticFPN")), SMALL, datasets=False)
    with pytest.raises(KeyError, match="MODEL.META_ARCHITECTURE is 'PanopticFPN', .*FocalRetinaNet.*install Detec"):
        d2.build_model(cfg)


def test_an_override_of_the_box_loss_that_would_be_ignored_is_refused():
    key = "MODEL.RETINANET.BBOX_REG_LOSS_TYPE"
    with pytest.raises(ValueError, match="BBOX_REG_LOSS_TYPE is 'smooth_l1', but .*BOX_LOSS.NAME is 'giou'"):
        load_config("quick/retinanet.yaml", [key, "smooth_l1"])
    for name in ("", "smooth_l1"):
        options = [key, "smooth_l1", "MODEL.RETINANET.BOX_LOSS.NAME", name]
        cfg = load_config("quick/retinanet.yaml", options, datasets=False)
        assert name == cfg.MODEL.RETINANET.BOX_LOSS.NAME


@pytest.mark.parametrize("section", ["RPN", "ROI_BOX_HEAD"])
def test_an_override_of_a_stages_box_loss_that_would_be_ignored_is_refused(section, tmp_path):
    path = write(tmp_path, f"MODEL: {{{section}: {{BOX_LOSS: {{NAME: giou}}}}}}")
    with pytest.raises(ValueError, match=f"MODEL.{section}.BBOX_REG_LOSS_TYPE is 'smooth_l1', but .*NAME is 'giou'"):
        load_config(path, [f"MODEL.{section}.BBOX_REG_LOSS_TYPE", "smooth_l1"], datasets=False)


def test_a_config_that_was_dumped_with_the_default_of_the_other_box_loss_key_loads_again(tmp_path):
    cfg = load_config("quick/retinanet.yaml", datasets=False)
    assert (cfg.MODEL.RETINANET.BOX_LOSS.NAME, cfg.MODEL.RETINANET.BBOX_REG_LOSS_TYPE) == ("giou", "smooth_l1")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    loaded = load_config(str(tmp_path / "config.yaml"), datasets=False)
    assert loaded.MODEL.RETINANET.BOX_LOSS == cfg.MODEL.RETINANET.BOX_LOSS
