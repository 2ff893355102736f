"""Augmentation, image reading and the mapper of the embedded engine, side by side with Detectron2's."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet_ext.lite import data as lite_data
from retinanet_ext.lite.cfg_node import get_cfg as lite_get_cfg
from retinanet_ext.lite.data import detection_utils as lite_utils
from retinanet_ext.lite.data import transforms as LT

REASON = "Detectron2 is not installed: nothing to compare with"
d2_data = pytest.importorskip("detectron2.data", reason=REASON)
d2_config = pytest.importorskip("detectron2.config", reason=REASON)
d2_datasets = pytest.importorskip("detectron2.data.datasets", reason=REASON)
d2_utils = pytest.importorskip("detectron2.data.detection_utils", reason=REASON)
D2T = pytest.importorskip("detectron2.data.transforms", reason=REASON)


def _random_image(rng, shape):
    return rng.integers(0, 256, size=shape, dtype=np.uint8)


def test_output_shapes_of_resize():
    rng = np.random.default_rng(0)
    for h, w, short, longest in rng.integers(1, 1500, size=(20_000, 4)).tolist():
        expected = D2T.ResizeShortestEdge.get_output_shape(h, w, short, longest)
        assert LT.ResizeShortestEdge.get_output_shape(h, w, short, longest) == expected, (h, w, short, longest)


def test_output_shapes_of_every_small_size_at_the_papers_scale():
    """At 44 of these sizes the last bit of the scale decides how a half is rounded."""
    for h, w in itertools.product(range(1, 702), range(1, 702)):
        expected = D2T.ResizeShortestEdge.get_output_shape(h, w, 800, 1333)
        assert LT.ResizeShortestEdge.get_output_shape(h, w, 800, 1333) == expected, (h, w)
    for h, w in ((1398, 699), (699, 1398)):
        expected = D2T.ResizeShortestEdge.get_output_shape(h, w, 800, 1333)
        assert LT.ResizeShortestEdge.get_output_shape(h, w, 800, 1333) == expected, (h, w)


AUGMENTATIONS = [
    ("ResizeShortestEdge", (37,), {}),
    ("ResizeShortestEdge", ((20, 90), 100), {}),
    ("ResizeShortestEdge", ((20, 30, 64, 200), 90, "choice"), {}),
    ("ResizeShortestEdge", ([0], 90, "choice"), {}),
    ("ResizeShortestEdge", (37,), {"interp": Image.NEAREST}),
    ("RandomFlip", (), {}),
    ("RandomFlip", (0.3,), {"horizontal": False, "vertical": True}),
    ("RandomCrop", ("relative", (0.5, 0.73)), {}),
    ("RandomCrop", ("relative_range", (0.3, 0.9)), {}),
    ("RandomCrop", ("relative_range", (0.1, 0.7)), {}),
    ("RandomCrop", ("absolute", (30, 200)), {}),
    ("RandomCrop", ("absolute_range", (10, 55)), {}),
]


@pytest.mark.parametrize("name, args, kwargs", AUGMENTATIONS, ids=[f"{i}-{a[0]}" for i, a in enumerate(AUGMENTATIONS)])
def test_augmentation_is_the_same_for_a_seed(name, args, kwargs):
    rng = np.random.default_rng(1)
    for seed, shape in enumerate([(48, 64, 3), (65, 41, 3), (50, 50, 1), (31, 90)] * 8):
        image = _random_image(rng, shape)
        boxes = rng.uniform(0, 30, size=(5, 4))
        results = []
        for T in (LT, D2T):
            np.random.seed(seed)
            aug_input = T.AugInput(image.copy(), boxes=boxes.copy())
            transforms = T.AugmentationList([getattr(T, name)(*args, **kwargs)])(aug_input)
            points = transforms.apply_coords(boxes.reshape(-1, 2).copy())
            results.append((aug_input.image, aug_input.boxes, points, np.random.rand(), transforms))
        ours, theirs = results
        assert ours[0].shape == theirs[0].shape
        assert np.array_equal(ours[0], theirs[0])  # bit for bit
        np.testing.assert_allclose(ours[1], theirs[1], rtol=0, atol=1e-12)
        np.testing.assert_allclose(ours[2], theirs[2], rtol=0, atol=1e-12)
        assert ours[3] == theirs[3]  # both drew the same number of random numbers
        mine, other = ours[4].transforms[0], theirs[4].transforms[0]
        assert type(mine).__name__ == type(other).__name__
        if not isinstance(mine, LT.NoOpTransform):
            back = ours[4].inverse().apply_coords(ours[2].copy())
            np.testing.assert_allclose(back, boxes.reshape(-1, 2), atol=1e-9)


def _write_image(path, mode, orientation=None):
    rng = np.random.default_rng(2)
    image = Image.fromarray(_random_image(rng, (24, 36, 3))).convert(mode)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(path, exif=exif)
    return str(path)


@pytest.mark.parametrize("format", ["BGR", "RGB", "L"])
@pytest.mark.parametrize("mode, suffix", [("L", "png"), ("P", "png"), ("RGBA", "png"), ("1", "png"), ("CMYK", "jpg")])
def test_read_image_modes(tmp_path, mode, suffix, format):
    path = _write_image(tmp_path / f"image.{suffix}", mode)
    ours, theirs = lite_utils.read_image(path, format), d2_utils.read_image(path, format)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(10))  # 1 to 8 are legal
def test_read_image_exif_orientation(tmp_path, orientation, suffix):
    path = _write_image(tmp_path / f"image.{suffix}", "RGB", orientation)
    ours = lite_utils.read_image(path, "BGR")
    assert np.array_equal(ours, d2_utils.read_image(path, "BGR"))
    assert ours.shape == ((36, 24, 3) if orientation in (5, 6, 7, 8) else (24, 36, 3))


@pytest.mark.parametrize("format, channels", [("BGR", 3), ("RGB", 3), ("L", 1)])
def test_convert_image_to_rgb(format, channels):
    image = _random_image(np.random.default_rng(3), (5, 6, channels))
    for given in (image, torch.from_numpy(image)):
        assert np.array_equal(
            lite_utils.convert_image_to_rgb(given, format), d2_utils.convert_image_to_rgb(given, format)
        )


CONFIGS = {
    "default": [],
    "choice": ["INPUT.MIN_SIZE_TRAIN", (64, 96, 128), "INPUT.MAX_SIZE_TRAIN", 150],
    "range": ["INPUT.MIN_SIZE_TRAIN", (64, 128), "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"],
    "vertical": ["INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.RANDOM_FLIP", "vertical", "INPUT.FORMAT", "RGB"],
    "none": ["INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SIZE_TEST", 0],
    "crop": ["INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", [0.3, 0.4]],
    "absolute crop": ["INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.CROP.ENABLED", True,
                      "INPUT.CROP.TYPE", "absolute_range", "INPUT.CROP.SIZE", [100, 300]],
}  # fmt: skip


def _mappers(overrides, is_train):
    mappers = []
    for get_cfg, engine in ((lite_get_cfg, lite_data), (d2_config.get_cfg, d2_data)):
        cfg = get_cfg()
        cfg.merge_from_list(["INPUT.MIN_SIZE_TEST", 100, *overrides])
        mappers.append(engine.DatasetMapper(cfg, is_train))
    return mappers


def _assert_same_sample(ours, theirs):
    assert set(ours) == set(theirs)
    for key in set(ours) - {"image", "instances"}:
        assert ours[key] == theirs[key]
    assert ours["image"].dtype == theirs["image"].dtype == torch.uint8
    assert torch.equal(ours["image"], theirs["image"])
    if "instances" in ours:
        mine, other = ours["instances"], theirs["instances"]
        assert mine.image_size == other.image_size and set(mine.get_fields()) == set(other.get_fields())
        assert mine.gt_boxes.tensor.dtype == other.gt_boxes.tensor.dtype
        torch.testing.assert_close(mine.gt_boxes.tensor, other.gt_boxes.tensor, rtol=0, atol=1e-4)
        assert mine.gt_classes.dtype == other.gt_classes.dtype
        assert torch.equal(mine.gt_classes, other.gt_classes)


@pytest.mark.parametrize("is_train", [True, False], ids=["train", "test"])
@pytest.mark.parametrize("config", CONFIGS)
def test_mapper_on_coco(shared_data, config, is_train):
    root = shared_data / "coco_mini"
    records = d2_datasets.load_coco_json(str(root / "annotations/instances_val2017.json"), str(root / "val2017"))
    crowded = [record for record in records if any(a["iscrowd"] for a in record["annotations"])]
    empty = [record for record in records if not record["annotations"]]
    ours, theirs = _mappers(CONFIGS[config], is_train)
    for seed, record in enumerate(itertools.chain(records[:4], crowded[:2], empty[:1])):
        samples = []
        for mapper in (ours, theirs):
            np.random.seed(seed)
            samples.append(mapper(record))
        _assert_same_sample(*samples)


def test_size_mismatch_is_the_same_error_class(tmp_path):
    path = _write_image(tmp_path / "image.png", "RGB")
    for utils in (lite_utils, d2_utils):
        image = utils.read_image(path, "BGR")
        with pytest.raises(utils.SizeMismatchError, match=r"image\.png.*36.*24.*35"):
            utils.check_image_size({"file_name": path, "width": 35, "height": 24}, image)
        record = {"file_name": path}
        utils.check_image_size(record, image)
        assert (record["width"], record["height"]) == (36, 24)
    assert issubclass(lite_utils.SizeMismatchError, ValueError)
