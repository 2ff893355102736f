"""Masks and keypoints on their way from records to `Instances`: `lite` side by side with Detectron2."""

import itertools
import uuid

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch

pytest.importorskip("detectron2", reason="compares lite with Detectron2, which is not installed")

from detectron2 import config as d2_config
from detectron2 import data as d2_data
from detectron2 import structures as d2_structures
from detectron2.data import detection_utils as d2_utils
from detectron2.data import transforms as D2T
from detectron2.data.datasets import load_coco_json

from retinanet_ext.lite import data as lite_data
from retinanet_ext.lite import structures as lite_structures
from retinanet_ext.lite.cfg_node import get_cfg as lite_get_cfg
from retinanet_ext.lite.data import detection_utils as lite_utils
from retinanet_ext.lite.data import transforms as LT

ENGINES = ((lite_utils, LT), (d2_utils, D2T))
HEIGHT, WIDTH = 48, 64
TRANSFORMS = {
    "resize": lambda T: [T.ResizeTransform(HEIGHT, WIDTH, 31, 77)],
    "horizontal flip": lambda T: [T.HFlipTransform(WIDTH)],
    "two horizontal flips": lambda T: [T.HFlipTransform(WIDTH), T.HFlipTransform(WIDTH)],
    "vertical flip": lambda T: [T.VFlipTransform(HEIGHT)],
    "crop": lambda T: [T.CropTransform(20, 10, 25, 30)],
    "rotation": lambda T: [T.RotationTransform(HEIGHT, WIDTH, 33)],
    "all": lambda T: [T.CropTransform(9, 10, 50, 37), T.ResizeTransform(37, 50, 60, 71), T.HFlipTransform(71)],
}


def star(center, radius, points=5):
    angles = np.arange(2 * points) * np.pi / points
    radii = np.where(np.arange(2 * points) % 2, radius / 2.5, radius)
    return (np.array(center) + radii[:, None] * np.stack([np.sin(angles), -np.cos(angles)], 1)).reshape(-1).tolist()


POLYGONS = [star((25, 20), 14), star((45, 30), 17.3, 3)]
RLE = mask_util.merge(mask_util.frPyObjects(POLYGONS, HEIGHT, WIDTH))
KEYPOINTS = [25.5, 20, 2, 11, 20, 1, 39, 20, 2, 25, 6, 2, 0, 0, 0, 63.9, 47.9, 2]
FLIPPED = [0, 2, 1, 3, 4, 5]


def annotation(segmentation):
    box = {"bbox": [11.0, 6.0, 50.0, 36.0], "category_id": 3, "iscrowd": 0}
    return {**box, "segmentation": segmentation, "keypoints": list(KEYPOINTS)}


def transformed(segmentation, name):
    results = []
    for utils, T in ENGINES:
        modes = lite_structures.BoxMode if utils is lite_utils else d2_structures.BoxMode
        given = {**annotation(segmentation), "bbox_mode": modes.XYWH_ABS}
        transforms = T.TransformList(TRANSFORMS[name](T))
        size = transforms.apply_image(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).shape[:2]
        new = utils.transform_instance_annotations(given, transforms, size, keypoint_hflip_indices=FLIPPED)
        results.append((utils, new, size))
    return results


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
@pytest.mark.parametrize("segmentation", [POLYGONS, RLE], ids=["polygons", "run lengths"])
def test_one_annotation(segmentation, mask_format, name):
    if segmentation is RLE and mask_format == "polygon":
        for utils, new, size in transformed(segmentation, name):
            with pytest.raises(ValueError, match="polygon"):
                utils.annotations_to_instances([new], size, mask_format)
        return
    ours, theirs = (
        (new, utils.annotations_to_instances([new], size, mask_format))
        for utils, new, size in transformed(segmentation, name)
    )
    np.testing.assert_allclose(ours[0]["bbox"], theirs[0]["bbox"], atol=1e-9)
    np.testing.assert_allclose(ours[0]["keypoints"], theirs[0]["keypoints"], atol=1e-9)
    assert_same_instances(ours[1], theirs[1])


def assert_same_instances(mine, other):
    assert mine.image_size == other.image_size
    assert set(mine.get_fields()) == set(other.get_fields())
    torch.testing.assert_close(mine.gt_boxes.tensor, other.gt_boxes.tensor, rtol=0, atol=1e-4)
    assert torch.equal(mine.gt_classes, other.gt_classes)
    if mine.has("gt_masks"):
        boxes = mine.gt_boxes.tensor
        assert type(mine.gt_masks).__name__ == type(other.gt_masks).__name__
        for near in (boxes, boxes + torch.tensor([-3.3, 2.1, 4.7, -0.4])):
            assert torch.equal(mine.gt_masks.crop_and_resize(near, 28), other.gt_masks.crop_and_resize(near, 28))
        if isinstance(mine.gt_masks, lite_structures.BitMasks):
            assert torch.equal(mine.gt_masks.tensor, other.gt_masks.tensor)
    if mine.has("gt_keypoints"):
        assert mine.gt_keypoints.tensor.dtype == other.gt_keypoints.tensor.dtype == torch.float32
        torch.testing.assert_close(mine.gt_keypoints.tensor, other.gt_keypoints.tensor, rtol=0, atol=1e-4)


def test_forms_of_run_lengths_are_one_mask():
    """pycocotools knows the counts as bytes; JSON has them as text or as a list, and the mask may be an array."""
    bits = mask_util.decode(RLE)
    starts = np.flatnonzero(np.diff(np.concatenate([[0], bits.flatten(order="F"), [2]])) != 0)
    counts = np.diff(np.concatenate([[0], starts])).tolist()
    listed = {"size": [HEIGHT, WIDTH], "counts": counts}
    text = {**RLE, "counts": RLE["counts"].decode()}
    for form in (RLE, text, listed, bits, bits.astype(bool)):
        new = lite_utils.transform_instance_annotations(
            {**annotation(form), "bbox_mode": lite_structures.BoxMode.XYWH_ABS}, [LT.VFlipTransform(HEIGHT)],
            (HEIGHT, WIDTH),
        )  # fmt: skip
        assert np.array_equal(new["segmentation"], bits[::-1].astype(bool))


@pytest.mark.parametrize("by_box, by_mask", [(True, True), (True, False), (False, True)])
def test_empty_instances(by_box, by_mask):
    kept = []
    for utils, structures in ((lite_utils, lite_structures), (d2_utils, d2_structures)):
        instances = structures.Instances((9, 9))
        instances.gt_boxes = structures.Boxes([[0, 0, 4, 4], [1, 1, 1, 5], [0, 0, 3, 3], [2, 2, 1, 5]])
        instances.gt_masks = structures.PolygonMasks([[[0, 0, 4, 0, 4, 4]], [[0, 0, 4, 0, 4, 4]], [], []])
        found, mask = utils.filter_empty_instances(instances, by_box, by_mask, return_mask=True)
        again = utils.filter_empty_instances(instances, by_box=by_box, by_mask=by_mask)
        assert len(again) == len(found) == int(mask.sum())
        kept.append(mask.tolist())
    assert kept[0] == kept[1]


def test_crop_around_an_object():
    drawn = []
    for utils, modes in ((lite_utils, lite_structures.BoxMode), (d2_utils, d2_structures.BoxMode)):
        np.random.seed(3)
        crops = []
        for box in ([5, 5, 20, 9], [0, 0, 3, 3], [60, 40, 4, 8], [30.5, 20.5, 1, 1]):
            instance = {"bbox": box, "bbox_mode": modes.XYWH_ABS}
            for size in ((10, 12), (48, 64), (1, 1)):
                crop = utils.gen_crop_transform_with_instance(size, (HEIGHT, WIDTH), instance)
                crops.append((crop.x0, crop.y0, crop.w, crop.h))
        drawn.append(crops)
    assert drawn[0] == drawn[1]
    with pytest.raises(ValueError, match="crop of .50, 12. .*does not fit into an image of .48, 64."):
        lite_utils.gen_crop_transform_with_instance(
            (50, 12), (HEIGHT, WIDTH), {"bbox": [5, 5, 9, 9], "bbox_mode": lite_structures.BoxMode.XYWH_ABS}
        )


def test_flip_indices_and_consistency():
    pairs = (("left_eye", "right_eye"), ("left_ear", "right_ear"))
    names = ("right_ear", "nose", "left_eye", "left_ear", "right_eye")
    results = []
    for utils, catalog in ((lite_utils, lite_data.MetadataCatalog), (d2_utils, d2_data.MetadataCatalog)):
        first, second, third = (f"keypoints_{uuid.uuid4()}" for _ in range(3))
        catalog.get(first).set(keypoint_names=names, keypoint_flip_map=pairs)
        catalog.get(second).set(keypoint_names=names, keypoint_flip_map=pairs[:1])
        results.append((utils.create_keypoint_hflip_indices(first), utils.create_keypoint_hflip_indices([second])))
        with pytest.raises(ValueError):
            utils.create_keypoint_hflip_indices([first, second])
        with pytest.raises(AttributeError, match="keypoint_names"):
            utils.create_keypoint_hflip_indices([third])
        with pytest.raises(AttributeError, match="keypoint_names"):
            utils.check_metadata_consistency("keypoint_names", [first, third])
        utils.check_metadata_consistency("keypoint_names", [first, second])
    assert results[0] == results[1] == ([3, 1, 4, 0, 2], [0, 1, 4, 3, 2])


# ---- the whole mapper on real data

CONFIGS = {
    "resize and flip": [],
    "bit masks": ["INPUT.MASK_FORMAT", "bitmask"],
    "crop": ["INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [0.5, 0.6]],
    "crop of bit masks": ["INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [0.5, 0.6], "INPUT.MASK_FORMAT", "bitmask"],
    "vertical flip": ["INPUT.RANDOM_FLIP", "vertical"],
}


def mappers(overrides, dataset, is_train):
    result = []
    for get_cfg, engine in ((lite_get_cfg, lite_data), (d2_config.get_cfg, d2_data)):
        cfg = get_cfg()
        cfg.merge_from_list(["INPUT.MIN_SIZE_TRAIN", (120,), "INPUT.MIN_SIZE_TEST", 100, *overrides])
        cfg.DATASETS.TRAIN = (dataset,)
        result.append(engine.DatasetMapper(cfg, is_train))
    return result


def compare_samples(ours, theirs, records):
    count = 0
    for seed, record in enumerate(records):
        samples = []
        for mapper in (ours, theirs):
            np.random.seed(seed)
            samples.append(mapper(record))
        assert set(samples[0]) == set(samples[1])
        assert torch.equal(samples[0]["image"], samples[1]["image"])
        if "instances" in samples[0]:
            assert_same_instances(samples[0]["instances"], samples[1]["instances"])
            count += len(samples[0]["instances"])
    return count


@pytest.mark.parametrize("config", CONFIGS)
def test_masks_of_coco(shared_data, config):
    root = shared_data / "coco_mini"
    records = load_coco_json(str(root / "annotations/instances_val2017.json"), str(root / "val2017"))
    crowded = [record for record in records if any(a["iscrowd"] for a in record["annotations"])]
    empty = [record for record in records if not record["annotations"]]
    overrides = ["MODEL.MASK_ON", True, *CONFIGS[config]]
    pair = mappers(overrides, "coco_2017_train", True)
    if "INPUT.CROP.ENABLED" in overrides:
        empty = []  # Detectron2's mapper stops with an error at an image without annotations
    assert compare_samples(*pair, itertools.chain(records[:6], crowded[:2], empty[:1])) > 20


@pytest.mark.parametrize("config", CONFIGS)
def test_keypoints_of_coco(shared_data, config):
    root = shared_data / "coco_mini"
    records = load_coco_json(str(root / "annotations/person_keypoints_val2017.json"), str(root / "val2017"))
    people = [record for record in records if record["annotations"]]
    overrides = ["MODEL.MASK_ON", "crop" in config, "MODEL.KEYPOINT_ON", True, *CONFIGS[config]]
    assert compare_samples(*mappers(overrides, "keypoints_coco_2017_train", True), people[:10]) > 10
    assert compare_samples(*mappers(overrides, "keypoints_coco_2017_train", False), people[:2]) == 0
