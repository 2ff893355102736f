"""Every built-in study: its arms match the rows of the paper, load, build, and take a step."""

import functools
import math

import pytest
import torch
import yaml

from retinanet_ext import d2
from retinanet_ext.ablation import study as studies
from retinanet_ext.ablation.study import arm_config, built_in_studies, with_changes
from retinanet_ext.ablation.unread_keys import check_overrides_are_read
from retinanet_ext.config.key_reads import is_read_by_models_only, keys_read_by_model
from retinanet_ext.config.loading import load_config
from retinanet_ext.training.step import TrainStep
from tests.builders import batch, faces, with_masks_and_keypoints

# The narrowest network of the same depth. No arm on COCO sets one of these keys. ResNet-18 has only one width.
SMALL_R18 = {
    "MODEL.DEVICE": "cpu", "MODEL.BACKBONE.FREEZE_AT": "0", "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": "8", "MODEL.FPN.OUT_CHANNELS": "8", "MODEL.RETINANET.NUM_CONVS": "1",
}  # fmt: skip
SMALL = {**SMALL_R18, "MODEL.RESNETS.RES2_OUT_CHANNELS": "16", "MODEL.RESNETS.WIDTH_PER_GROUP": "4"}
SMALL_HEADS = {
    "MODEL.ROI_BOX_HEAD.FC_DIM": "16", "MODEL.ROI_MASK_HEAD.CONV_DIM": "8", "MODEL.ROI_MASK_HEAD.FC_DIM": "16",
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": "(8,)",
}  # fmt: skip
LOSS = "MODEL.RETINANET.CLS_LOSS"
BASE = "retinanet_R_50_FPN_600_paper.yaml"
load_study = functools.cache(studies.load_study)
ON_COCO = [name for name in built_in_studies() if load_study(name).base.name == BASE]
MASK_TABLES = {"2a": 5, "2b": 3, "2c": 5, "2d": 2, "2e": 3, "5": 4, "6": 2}
PEOPLE = ["mask_table_5", "mask_table_6"]
TWO_STAGES = [f"mask_table_{name}" for name in MASK_TABLES]
FACES = [name for name in built_in_studies() if name.startswith("facenet_")]


@pytest.fixture(scope="module")
def tried() -> set[str]:
    """Configs that have taken their step. Several tables contain the default, which need not be repeated."""
    return set()


def test_every_table_is_there():
    tables = {"table_1a": 7, "table_1b": 8, "table_1c": 7, "table_1d": 10, "table_1e": 10, "table_3": 4}
    assert tables.items() <= {name: len(load_study(name).arms) for name in ON_COCO}.items()
    assert {"prior", "hinge"} <= set(ON_COCO)
    assert [len(load_study(name).arms) for name in TWO_STAGES] == list(MASK_TABLES.values())


@pytest.mark.parametrize("name", sorted(set(built_in_studies()) - set(FACES)))
def test_every_arm_trains(name, tried, generator):
    study = load_study(name)
    check_overrides_are_read(study)
    small = SMALL if name in ON_COCO else SMALL_R18
    if name in TWO_STAGES:
        small = {**SMALL, **SMALL_HEADS}
        read = set.union(*(keys_read_by_model(arm_config(study, arm, datasets=False)) for arm in study.arms))
        compared = {key for arm in study.arms for key in arm.overrides}
        read_by_none = {key for key in small if is_read_by_models_only(key)} - read
        small = {key: value for key, value in small.items() if key not in read_by_none | compared}
    study = with_changes(study, overrides=[word for pair in small.items() for word in pair])
    check_overrides_are_read(study)
    inputs = batch(generator, (64, 96), (96, 64), num_classes=1 if name in PEOPLE else 3)
    if name in TWO_STAGES or name == "shapes_masks":
        inputs = with_masks_and_keypoints(generator, inputs, num_keypoints=17)
    for arm in study.arms:
        cfg = arm_config(study, arm, datasets=False)
        model_keys = yaml.safe_load(cfg.dump())["MODEL"] | {"WEIGHTS": ""}
        if str(model_keys) in tried:
            continue
        tried.add(str(model_keys))
        _take_a_step(cfg, inputs, arm.name)


@pytest.mark.parametrize("name", FACES)
def test_every_arm_of_facenet_trains(name, tried, generator):
    study = load_study(name)
    check_overrides_are_read(study)
    for arm in study.arms:
        cfg = arm_config(study, arm, datasets=False)
        cfg.MODEL.DEVICE, cfg.MODEL.EMBEDDING.NUM_IDENTITIES = "cpu", 3
        model_keys = yaml.safe_load(cfg.dump())["MODEL"] | {"WEIGHTS": ""}
        if str(model_keys) in tried:
            continue
        tried.add(str(model_keys))
        torch.manual_seed(0)
        model = d2.build_model(cfg).train()
        inputs = faces(generator, tuple(cfg.INPUT.FACE.SIZE), identities=(0, 0, 1, 1, 2, 2))
        with d2.EventStorage():
            losses = model(inputs)
        sum(losses.values()).backward()
        assert all(loss.isfinite() for loss in losses.values()), arm.name
        assert all(parameter.grad is not None for parameter in model.parameters()), arm.name


def test_arms_are_the_rows_of_the_tables_of_facenet():
    values = {name: [arm.paper.get("VAL@FAR=0.001") for arm in load_study(name).arms] for name in FACES}
    assert values.pop("facenet_selection") == [None] * 4
    assert values == {
        "facenet_table_3": [87.9, 89.4, 88.3, 82.0, 82.4, 51.9],
        "facenet_table_4": [67.3, 81.4, 83.9, 85.5, 86.1, 86.5, 37.8, 79.5, 84.5, 85.7, 86.4],
        "facenet_table_5": [86.8, 87.9, 87.7, 85.6],
        "facenet_table_6": [76.3, 85.1, 85.1, 86.2],
    }
    assert settings("facenet_table_5", "MODEL.EMBEDDING.DIM") == [[64], [128], [256], [512]]
    sizes = settings("facenet_table_3", "INPUT.FACE.SIZE")
    assert sizes == [[[220, 220]], [[224, 224]], [[160, 160]], [[96, 96]], [[165, 165]], [[140, 116]]]


def _take_a_step(cfg, inputs, name):
    torch.manual_seed(0)
    model = d2.build_model(cfg)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    step = TrainStep(model, [inputs], optimizer, storage=d2.get_event_storage)
    predictor = model.head if hasattr(model, "head") else model.roi_heads.box_predictor
    before = predictor.cls_score.bias.clone()
    with d2.EventStorage() as storage:
        step.run_step()
    branches = [f"loss_{part}" for part in ("mask", "keypoint") if cfg.MODEL[f"{part.upper()}_ON"]]
    for loss in ["loss_cls", *branches]:
        assert math.isfinite(storage.latest()[loss][0]) and storage.latest()[loss][0] > 0, (name, loss)
    assert not torch.equal(predictor.cls_score.bias, before), name
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters()), name


def settings(study, *keys):
    """The values of these keys in each arm."""
    loaded = load_study(study)
    return [[_get(arm_config(loaded, arm, datasets=False), key) for key in keys] for arm in loaded.arms]


def test_arms_are_the_rows_of_the_tables():
    retinanet = "MODEL.RETINANET"
    alphas = settings("table_1a", f"{LOSS}.NAME", f"{retinanet}.FOCAL_LOSS_ALPHA")
    assert alphas == [["balanced_cross_entropy", a] for a in (0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)]
    gammas = settings("table_1b", f"{retinanet}.FOCAL_LOSS_GAMMA", f"{retinanet}.FOCAL_LOSS_ALPHA")
    assert gammas[:7] == [
        [0, 0.75], [0.1, 0.75], [0.2, 0.75], [0.5, 0.5], [1, 0.25], [2, 0.25], [5, 0.25],
    ]  # fmt: skip
    ohem_keys = [f"{LOSS}.OHEM.{key}" for key in ("NEGATIVES_PER_POSITIVE", "NMS_THRESH", "BATCH")]
    ohem = settings("table_1d", f"{LOSS}.NAME", *ohem_keys)
    rows = [(0, 0.7), (0, 0.5), (3, 0.5)]
    assert ohem[:9] == [["ohem", ratio, nms, size] for ratio, nms in rows for size in (128, 256, 512)]
    assert [row[0] for row in ohem[9:]] == ["focal"]
    depths = settings("table_1d", "MODEL.RESNETS.DEPTH", "MODEL.WEIGHTS")
    assert set(map(tuple, depths)) == {(101, "detectron2://ImageNetPretrained/MSRA/R-101.pkl")}
    scales = settings("table_1e", "MODEL.RESNETS.DEPTH", "INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TEST", "MODEL.WEIGHTS")
    assert scales == [
        [depth, (size,), size, f"detectron2://ImageNetPretrained/MSRA/R-{depth}.pkl"]
        for depth in (50, 101)
        for size in (400, 500, 600, 700, 800)
    ]
    stars = settings("table_3", f"{LOSS}.NAME", f"{retinanet}.FOCAL_LOSS_GAMMA", f"{LOSS}.FOCAL_STAR.BETA")
    assert stars[1:] == [["focal", 2, 1], ["focal_star", 2, 1], ["focal_star", 4, 0]]


def test_arms_are_the_rows_of_the_tables_of_mask_rcnn():
    model, people = "MODEL.ROI_MASK_HEAD", ["MODEL.MASK_ON", "MODEL.KEYPOINT_ON"]
    resnets = [f"MODEL.RESNETS.{key}" for key in ("DEPTH", "NUM_GROUPS")]
    backbones = settings("mask_table_2a", *resnets, "MODEL.ROI_HEADS.IN_FEATURES")
    pyramid = ["p2", "p3", "p4", "p5"]
    assert backbones == [
        [50, 1, ["res4"]], [101, 1, ["res4"]], [50, 1, pyramid], [101, 1, pyramid], [101, 32, pyramid],
    ]  # fmt: skip
    weights = [path.rsplit("/")[-1] for (path,) in settings("mask_table_2a", "MODEL.WEIGHTS")]
    assert weights == ["R-50.pkl", "R-101.pkl", "R-50.pkl", "R-101.pkl", "X-101-32x8d.pkl"]
    assert settings("mask_table_2b", f"{model}.NAME", f"{model}.CLS_AGNOSTIC_MASK") == [
        ["SoftmaxMaskHead", False], ["FCNMaskHead", False], ["FCNMaskHead", True],
    ]  # fmt: skip
    layers = settings("mask_table_2c", "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "MODEL.ROI_HEADS.IN_FEATURES")
    names = ("ROIPool", "ROIWarpMax", "ROIWarp", "ROIAlignMax", "ROIAlignV2")
    assert layers == [[name, ["res4"]] for name in names]
    for study, stage, branch in (("mask_table_2d", ["res5"], "MASK"), ("mask_table_6", pyramid, "KEYPOINT")):
        poolers = [f"MODEL.ROI_{part}_HEAD.POOLER_TYPE" for part in ("BOX", branch)]
        rows = settings(study, *poolers, "MODEL.ROI_HEADS.IN_FEATURES")
        assert rows == [["ROIPool", "ROIPool", stage], ["ROIAlignV2", "ROIAlignV2", stage]]
    heads = settings("mask_table_2e", f"{model}.NAME", f"{model}.NUM_FC")
    assert heads[:2] == [["MLPMaskHead", 2], ["MLPMaskHead", 3]] and heads[2][0] == "FCNMaskHead"
    assert settings("mask_table_5", *people) == [[False, False], [True, False], [False, True], [True, True]]
    assert settings("mask_table_6", *people) == [[False, True]] * 2


def test_the_c4_arm_among_the_backbones_is_the_c4_config():
    study = load_study("mask_table_2a")
    arm = arm_config(study, study.arms[0], datasets=False)
    config = load_config("configs/instance/mask_rcnn_R_50_C4_paper.yaml", datasets=False)
    keys = keys_read_by_model(config) | keys_read_by_model(arm)
    different = [key for key in sorted(keys) if key.startswith("MODEL.") and _get(arm, key) != _get(config, key)]
    assert [key for key in different if not hasattr(_get(arm, key), "items")] == []
    assert arm.SOLVER == config.SOLVER and arm.INPUT == config.INPUT


def test_anchors_of_table_1c_are_the_octaves_of_the_paper():
    study = load_study("table_1c")
    rows = [(1, 1), (2, 1), (3, 1), (1, 3), (2, 3), (3, 3), (4, 3)]
    for arm, (scales, ratios) in zip(study.arms, rows, strict=True):
        anchors = arm_config(study, arm, datasets=False).MODEL.ANCHOR_GENERATOR
        expected = [[base * 2 ** (k / scales) for k in range(scales)] for base in (32, 64, 128, 256, 512)]
        torch.testing.assert_close(torch.tensor(anchors.SIZES), torch.tensor(expected))
        shapes = [[1.0]] if ratios == 1 else [[0.5, 1.0, 2.0]]
        assert shapes == anchors.ASPECT_RATIOS
        assert arm.name.startswith(f"{scales}_scale") and f"_{ratios}_ratio" in arm.name


@pytest.mark.parametrize(
    ("study", "rows"),
    [
        ("table_1a", "0.0 0.0 0.0, 10.8 16.0 11.7, 30.2 46.7 32.8, 31.1 49.4 33.0, 30.8 49.7 32.3, 28.7 47.4 29.9, "
         "25.1 41.7 26.1"),
        ("table_1b", "31.1 49.4 33.0, 31.4 49.9 33.1, 31.9 50.7 33.4, 32.9 51.7 35.2, 33.7 52.0 36.2, 34.0 52.5 36.5, "
         "32.2 49.6 34.8, 33.6"),
        ("table_1c", "30.3 49.0 31.8, 31.9 50.0 34.0, 31.8 49.4 33.7, 32.4 52.3 33.9, 34.2 53.1 36.5, 34.0 52.5 36.5, "
         "33.8 52.1 36.2"),
        ("table_1d", "31.1 47.2 33.2, 31.8 48.8 33.9, 30.6 47.0 32.6, 32.8 50.3 35.1, 31.0 47.4 33.0, 27.6 42.0 29.2, "
         "31.1 47.2 33.2, 28.3 42.4 30.3, 24.0 35.5 25.8, 36.0 54.9 38.7"),
        ("table_1e", "30.5 47.8 32.7 11.2 33.8 46.1 64, 32.5 50.9 34.8 13.9 35.8 46.7 72, "
         "34.3 53.2 36.9 16.2 37.4 47.4 98, 35.1 54.2 37.7 18.0 39.3 46.4 121, 35.7 55.0 38.5 18.9 38.9 46.3 153, "
         "31.9 49.5 34.1 11.6 35.8 48.5 81, 34.4 53.1 36.8 14.7 38.5 49.1 90, 36.0 55.2 38.7 17.4 39.6 49.7 122, "
         "37.1 56.6 39.8 19.1 40.6 49.4 154, 37.8 57.5 40.8 20.2 41.1 49.2 198"),
        ("table_3", "31.1 49.4 33.0, 34.0 52.5 36.5, 33.8 52.7 36.3, 33.9 51.8 36.4"),
        ("mask_table_2a", "30.3 51.2 31.5, 32.7 54.2 34.3, 33.6 55.2 35.3, 35.4 57.3 37.5, 36.7 59.5 38.9"),
        ("mask_table_2b", "24.8 44.1 25.1, 30.3 51.2 31.5, 29.7"),
        ("mask_table_2c", "26.9 48.8 26.4, 27.2 49.2 27.1, 27.1 48.9 27.1, 30.2 51.0 31.8, 30.3 51.2 31.5"),
        ("mask_table_2d", "23.6 46.5 21.6, 30.9 51.8 32.1"),
        ("mask_table_2e", "31.5 53.7 32.8, 31.5 54.0 32.6, 33.6 55.2 35.3"),
        ("mask_table_5", "52.5, 53.6, 50.7, 52.0"),
        ("mask_table_6", "59.8 86.2 66.7 55.1 67.4, 64.2 86.6 69.7 58.7 73.0"),
    ],
)  # fmt: skip
def test_the_paper_s_numbers(study, rows):
    columns = ("AP", "AP50", "AP75", "APs", "APm", "APl", "ms")
    if study == "mask_table_6":  # keypoints have no small objects
        columns = ("AP", "AP50", "AP75", "APm", "APl")
    expected = [dict(zip(columns, map(float, row.split()))) for row in rows.split(", ")]
    assert [arm.paper for arm in load_study(study).arms] == expected


def test_all_on_coco_train_as_the_paper_does():
    for name in ON_COCO:
        study = load_study(name)
        cfg = arm_config(study, study.arms[0], datasets=False)
        assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.IMS_PER_BATCH) == (90000, (60000, 80000), 16)
        assert study.seeds == (0, 1, 2) and study.metric == "bbox/AP"


def test_mask_rcnn_trains_as_in_the_paper():
    metrics = {"mask_table_5": "bbox/AP", "mask_table_6": "keypoints/AP"}
    for name in TWO_STAGES:
        study = load_study(name)
        assert study.seeds == (0, 1, 2) and study.metric == metrics.get(name, "segm/AP")
        schedule = (90000, (60000, 80000)) if name in PEOPLE else (160000, (120000,))
        for arm in study.arms:
            solver = arm_config(study, arm, datasets=False).SOLVER
            # ResNeXt: one image per GPU on 8 GPUs.
            batch_and_rate = (8, 0.01) if arm.name == "X-101-FPN" else (16, 0.02)
            assert batch_and_rate == (solver.IMS_PER_BATCH, solver.BASE_LR)
            assert schedule == (solver.MAX_ITER, solver.STEPS) and solver.WEIGHT_DECAY == 1e-4


def _get(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg
