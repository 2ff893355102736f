"""Anchor coverage, against all anchors that the engine's own generator makes, one by one."""

import numpy as np
import pytest
import torch

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import BoxMode, ImageList, T, build_anchor_generator, build_backbone
from retinanet_ext.data.checked_records import load_training_dicts
from retinanet_ext.data.doctor.anchor_coverage import anchor_coverage, sampled_records
from retinanet_ext.data.doctor.anchor_layout import anchor_layout
from retinanet_ext.data.doctor.resized_boxes import object_arrays, resized_boxes, resized_sizes, short_sides
from retinanet_ext.ops.box_math import pairwise_iou
from tests.builders import small_config


def random_records(count, seed=0, objects=12):
    rng = np.random.default_rng(seed)
    records = []
    for index in range(count):
        width, height = (int(side) for side in rng.integers(90, 300, 2))
        corner = rng.random((objects, 2)) * [width - 6, height - 6]
        size = np.exp(rng.uniform(1, 5, (objects, 2)))
        boxes = np.concatenate([corner, np.minimum(corner + size, [width, height])], axis=1).round(1)
        annotations = [
            {"bbox": box.tolist(), "bbox_mode": BoxMode.XYXY_ABS, "category_id": int(rng.integers(3)), "iscrowd": 0}
            for box in boxes
        ]
        records.append({"file_name": f"{index}.png", "width": width, "height": height, "annotations": annotations})
    return records


def brute_force(cfg, records, length):
    """IoU of each object with the best of all anchors that the model makes for its image."""
    section = cfg.MODEL.RETINANET if "RetinaNet" in cfg.MODEL.META_ARCHITECTURE else cfg.MODEL.RPN
    backbone = build_backbone(cfg)
    shapes = [backbone.output_shape()[name] for name in section.IN_FEATURES]
    generator = build_anchor_generator(cfg, shapes)
    best = []
    for record in records:
        resize = T.ResizeShortestEdge([length, length], cfg.INPUT.MAX_SIZE_TRAIN).get_transform(
            np.zeros((record["height"], record["width"], 3), np.uint8)
        )
        boxes = resize.apply_box(np.array([a["bbox"] for a in record["annotations"]]))
        image = torch.zeros(1, resize.new_h, resize.new_w)
        padded = ImageList.from_tensors([image], backbone.size_divisibility).tensor
        sizes = [[-(-side // shape.stride) for side in padded.shape[-2:]] for shape in shapes]
        anchors = torch.cat([level.tensor for level in generator([torch.zeros(1, 1, *size) for size in sizes])])
        best.append(pairwise_iou(torch.from_numpy(boxes).float(), anchors).amax(dim=1))
    return torch.cat(best).numpy()


@pytest.mark.parametrize("length, max_size", [(640, 1333), (800, 1333), (97, 120), (33, 1000), (0, 50)])
def test_sizes_after_the_resize_are_those_of_the_engine(length, max_size):
    sizes = np.random.default_rng(0).integers(3, 700, (800, 2))
    sizes[:50, 1] = sizes[:50, 0]
    engine = T.ResizeShortestEdge([length, length], max_size, "choice")
    expected = []
    for width, height in sizes:
        image = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (height, width, 3), (0, 0, 0))
        transform = engine.get_transform(image)
        expected.append((getattr(transform, "new_w", width), getattr(transform, "new_h", height)))
    assert (resized_sizes(sizes, length, max_size) == np.maximum(expected, 1)).all()


@pytest.mark.parametrize("file", ["configs/Base-RetinaNet.yaml", "configs/instance/mask_rcnn_R_50_FPN_1x.yaml"])
def test_it_equals_brute_force_over_all_anchors(file):
    overrides = ["MODEL.RESNETS.DEPTH", "50", "INPUT.MIN_SIZE_TRAIN", "(160, 200)", "INPUT.MAX_SIZE_TRAIN", "260"]
    cfg = load_config(file, overrides, datasets=False)
    records = random_records(10)
    best = np.concatenate([brute_force(cfg, records, length) for length in (160, 200)])
    coverage = anchor_coverage(cfg, records)
    assert coverage.thresholds == ((0.5,) if "RetinaNet" in file else (0.5, 0.7))
    for threshold, share in zip(coverage.thresholds, coverage.total.covered):
        assert share == pytest.approx((best >= threshold).mean(), abs=1e-9)
        assert 0.05 < share < 0.95
    assert coverage.total.mean_best_iou == pytest.approx(best.mean(), abs=1e-6)
    classes = np.tile([a["category_id"] for record in records for a in record["annotations"]], 2)
    for index, group in enumerate(coverage.by_class):
        assert group.objects == (classes == index).sum() / 2
        assert group.covered[0] == pytest.approx((best[classes == index] >= 0.5).mean())


def test_groups_of_every_kind_hold_all_objects():
    coverage = anchor_coverage(small_config("INPUT.MIN_SIZE_TRAIN", "(96, 128)"), random_records(6), ["a", "b", "c"])
    kinds = ("by_size", "by_resized_size", "by_ratio", "by_class", "side_curve", "ratio_curve")
    for groups in (getattr(coverage, kind) for kind in kinds):
        assert sum(group.objects for group in groups) == pytest.approx(72)
        covered = sum(group.objects * coverage.share(group) for group in groups if group.objects)
        assert covered / 72 == pytest.approx(coverage.share())
    assert coverage.as_dict()["by_class"][0]["name"] == "a"


def test_an_object_that_fits_an_anchor_and_one_that_fits_none():
    def record(*boxes, **fields):
        annotations = [
            {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": crowd} for box, crowd in boxes
        ]
        return {"file_name": "a.png", "width": 320, "height": 320, "annotations": annotations, **fields}

    # The anchors of 32 pixels are centred at multiples of 8: the first box is one of them, the second has a quarter of
    # its area, the third half the area of the one of 64. The crowd does not count.
    boxes = [((48, 48, 32, 32), 0), ((56, 56, 16, 16), 0), ((96, 96, 64, 32), 0), ((3, 3, 300, 300), 1)]
    cfg = small_config("INPUT.MIN_SIZE_TRAIN", "(320,)", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[1.0]]")
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    coverage = anchor_coverage(cfg, [record(*boxes)])
    assert (coverage.num_objects, coverage.total.covered) == (3, (pytest.approx(2 / 3),))
    assert coverage.total.mean_best_iou == pytest.approx((1 + 0.25 + 0.5) / 3)
    # 32 x 32 is of medium size already.
    assert [group.covered for group in coverage.by_size[:2]] == [(0.0,), (1.0,)]


def test_ranges_and_random_crops_stand_for_what_training_draws():
    cfg = small_config("INPUT.MIN_SIZE_TRAIN", "(640, 800)", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range")
    lengths = short_sides(cfg)
    assert (len(lengths), lengths[0], lengths[-1], np.mean(lengths)) == (16, 640, 800, pytest.approx(720, abs=1))
    records = random_records(400, objects=4)
    objects = object_arrays(records)
    for kind, size in [("relative", (0.5, 0.8)), ("relative_range", (0.6, 0.3)), ("absolute", (100, 170)),
                       ("absolute_range", (50, 120))]:  # fmt: skip
        cfg = small_config("INPUT.MIN_SIZE_TRAIN", "(0,)", "INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", kind)
        cfg.INPUT.CROP.SIZE = list(size)
        views = list(resized_boxes(cfg, objects))
        assert len(views) == 8
        mine = np.mean([view.sizes for view in views], axis=0)
        engine = T.RandomCrop(kind, size)
        theirs = [engine.get_crop_size((record["height"], record["width"]))[::-1] for record in records]
        np.testing.assert_allclose(mine.mean(axis=0), np.mean(theirs, axis=0), rtol=0.04)
        for view in views:
            shape = view.boxes[:, 2:] - view.boxes[:, :2]
            original = objects.boxes[:, 2:] - objects.boxes[:, :2]
            part = shape.clip(min=0).prod(axis=1) / original.prod(axis=1)
            np.testing.assert_array_equal(view.visible, part >= 0.5 - 1e-6)
            assert 0 < view.visible.mean() < 1
            assert (view.boxes[:, 2:] <= view.sizes[objects.image]).all() and (view.boxes >= 0).all()


def test_matchers_and_models_of_other_kinds():
    atss = anchor_layout(small_config("MODEL.RETINANET.MATCHER.NAME", "ATSSMatcher"))
    assert (atss.threshold, atss.thresholds, atss.main_threshold) == (None, (0.5,), 0.5)
    raised = small_config()
    raised.MODEL.RETINANET.IOU_THRESHOLDS, raised.MODEL.RETINANET.IOU_LABELS = [0.3, 0.6], [0, -1, 1]
    layout = anchor_layout(raised)
    assert (layout.thresholds, layout.main_threshold) == ((0.5, 0.6), 0.6)
    opts = ["MODEL.RPN.BOUNDARY_THRESH", "0"]
    two = anchor_layout(load_config("configs/instance/mask_rcnn_R_50_C4_paper.yaml", opts, datasets=False))
    assert (two.thresholds, two.main_threshold, two.boundary) == ((0.5, 0.7), 0.5, 0)
    assert anchor_layout(load_config("configs/quick/facenet.yaml", datasets=False)) is None


def test_the_random_numbers_of_the_run_stay_as_they_are():
    torch.manual_seed(3), np.random.seed(3)
    expected = torch.rand(3), np.random.rand()
    torch.manual_seed(3), np.random.seed(3)
    cfg = small_config("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.CROP.ENABLED", "True")
    anchor_coverage(cfg, random_records(2), max_objects=12)
    assert torch.equal(torch.rand(3), expected[0]) and np.random.rand() == expected[1]


def test_a_sample_is_of_whole_images_and_repeatable():
    records = random_records(30)
    sample = sampled_records(records, 60, seed=1)
    assert len(sample) == 5 and sample == sampled_records(records, 60, seed=1) != sampled_records(records, 60, seed=2)
    assert sampled_records(records, 360, seed=1) is records
    assert anchor_coverage(small_config("INPUT.MIN_SIZE_TRAIN", "(96,)"), records, max_objects=60).of_images == 30
    empty = [{"file_name": "a.png", "width": 10, "height": 10, "annotations": []}]
    assert anchor_coverage(small_config(), empty) is None


@pytest.fixture
def bccd(shared_data, monkeypatch):
    """The config for blood cells, without crops and file checks, with the anchors of the base config."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shared_data))
    overrides = ["DATASETS.CHECK_IMAGES", "none", "INPUT.CROP.ENABLED", "False"]
    cfg = load_config("configs/detection/bccd_R_18_FPN.yaml", overrides)
    base = load_config("configs/Base-RetinaNet.yaml", datasets=False)
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = base.MODEL.ANCHOR_GENERATOR.SIZES
    return cfg


def test_default_anchors_miss_the_platelets_of_bccd(bccd):
    records = load_training_dicts(bccd)
    coverage = anchor_coverage(bccd, records, bccd.MODEL.CLASS_NAMES)
    shares = {group.name: coverage.share(group) for group in coverage.by_class}
    some = records[::8]
    by_class = anchor_coverage(bccd, some, bccd.MODEL.CLASS_NAMES).by_class
    classes = np.array([a["category_id"] for record in some for a in record["annotations"]])
    # All images have one size, so that the anchors need to be made only once for each length.
    assert {(record["width"], record["height"]) for record in records} == {(640, 480)}
    merged = [{**records[0], "annotations": [a for record in some for a in record["annotations"]]}]
    best = np.stack([brute_force(bccd, merged, length) for length in (240, 256)])
    for index, group in enumerate(by_class):
        assert coverage.share(group) == pytest.approx((best[:, classes == index] >= 0.5).mean())
    assert shares["Platelets"] < 0.3 and min(shares["RBC"], shares["WBC"]) > 0.99
    assert coverage.by_class[2].objects == 292
