"""Augmentation, image reading and the mapper of the embedded engine, side by side with Detectron2's."""

import itertools

import cv2
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
    ("Resize", (37,), {}),
    ("Resize", ((20, 90), Image.BICUBIC), {}),
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


ROTATIONS = [
    (([-30, 30],), {}),
    ((40,), {}),
    (([0, 90, 180, 360],), {"sample_style": "choice", "expand": False}),
    (([-180, 180],), {"expand": False, "center": [[0.1, 0.4], [0.9, 0.5]]}),
    (([-180, 180],), {"center": [[0.1, 0.4], [0.9, 0.5]], "interp": cv2.INTER_NEAREST}),
]
COLOURS = ["RandomBrightness", "RandomContrast", "RandomSaturation"]


def _augment(T, name, args, kwargs, image, seed):
    np.random.seed(seed)
    boxes = np.array([[3.0, 4, 20, 25], [0, 0, 1, 1]])
    aug_input = T.AugInput(image.copy(), boxes=boxes, sem_seg=image[..., 0].astype(np.uint8))
    transform = getattr(T, name)(*args, **kwargs)(aug_input)
    return aug_input, transform, np.random.rand()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("args, kwargs", ROTATIONS)
def test_rotation_is_the_same_for_a_seed(args, kwargs, dtype):
    rng = np.random.default_rng(1)
    for seed, shape in enumerate([(48, 64, 3), (65, 41, 3)] * 4):
        image = _random_image(rng, shape).astype(dtype)
        ours, theirs = (_augment(T, "RandomRotation", args, kwargs, image, seed) for T in (LT, D2T))
        assert ours[0].image.dtype == theirs[0].image.dtype
        np.testing.assert_allclose(ours[0].image, theirs[0].image, rtol=0, atol=1e-3)
        assert np.array_equal(ours[0].sem_seg, theirs[0].sem_seg)
        np.testing.assert_allclose(ours[0].boxes, theirs[0].boxes, atol=1e-9)
        assert ours[2] == theirs[2]  # both drew the same number of random numbers


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("name", COLOURS)
def test_colours_are_the_same_for_a_seed(name, dtype):
    image = _random_image(np.random.default_rng(1), (48, 64, 3)).astype(dtype)
    for seed in range(5):
        ours, theirs = (_augment(T, name, (0.5, 1.5), {}, image, seed) for T in (LT, D2T))
        assert ours[0].image.dtype == theirs[0].image.dtype
        assert np.array_equal(ours[0].image, theirs[0].image)
        assert np.array_equal(ours[0].boxes, theirs[0].boxes) and ours[2] == theirs[2]


@pytest.mark.parametrize("inner", ["RandomFlip", "HFlipTransform", "AugmentationList"])
def test_random_apply_is_the_same_for_a_seed(inner):
    def make(T):
        if inner == "AugmentationList":
            return T.AugmentationList([T.RandomFlip(0.5), T.RandomFlip(0.5, horizontal=False, vertical=True)])
        return T.RandomFlip(0.5) if inner == "RandomFlip" else T.HFlipTransform(20)

    image = _random_image(np.random.default_rng(1), (10, 20, 3))
    for seed in range(20):
        ours, theirs = (_augment(T, "RandomApply", (make(T),), {"prob": 0.7}, image, seed) for T in (LT, D2T))
        assert np.array_equal(ours[0].image, theirs[0].image) and ours[2] == theirs[2]
        assert type(ours[1]).__name__ == type(theirs[1]).__name__


@pytest.mark.parametrize("interp", [Image.NEAREST, Image.BILINEAR, Image.BICUBIC])
@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (20, 30, 3), (20, 30, 4)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_resize_of_floats(shape, dtype, interp):
    image = np.random.default_rng(0).random(shape).astype(dtype)
    for size in ((10, 15), (40, 51), (7, 90)):
        ours, theirs = (T.ResizeTransform(20, 30, *size, interp).apply_image(image) for T in (LT, D2T))
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def _single(T):
    class Single(T.Augmentation):
        def get_transform(self, img):
            return T.HFlipTransform(img.shape[1])

    return Single()


def _only_boxes(T):
    class OnlyBoxes(T.Augmentation):
        def get_transform(self, boxes):
            return T.HFlipTransform(boxes.shape[1])

    return OnlyBoxes()


def _named(T):
    class Named(T.Augmentation):
        input_args = ("boxes", "image")

        def __init__(self, low, high):
            self._init(locals())

        def get_transform(self, first, second):
            return T.CropTransform(int(self._rand_range(self.low, self.high) * first[0, 0]), 0, 5, second.shape[0])

    return Named(0.5, 3)


@pytest.mark.parametrize("make", [_single, _only_boxes, _named])
def test_arguments_of_own_augmentations(make):
    image, boxes = _random_image(np.random.default_rng(1), (10, 20, 3)), np.array([[3.0, 4, 8, 9]])
    results = []
    for T in (LT, D2T):
        np.random.seed(0)
        aug_input = T.AugInput(image, boxes=boxes)
        make(T)(aug_input)
        results.append((aug_input.image, aug_input.boxes, np.random.rand()))
    assert all(np.array_equal(*pair) for pair in zip(*results, strict=True))


def test_apply_augmentations():
    image = _random_image(np.random.default_rng(1), (10, 20, 3))
    for apply in ("apply_augmentations", "apply_transform_gens"):
        ours, theirs = (getattr(T, apply)([T.RandomFlip(1.0), T.Resize((5, 7))], image) for T in (LT, D2T))
        assert np.array_equal(ours[0], theirs[0])
        assert [type(t).__name__ for t in ours[1].transforms] == [type(t).__name__ for t in theirs[1].transforms]


def test_uniform_numbers():
    drawn = []
    for T in (LT, D2T):
        np.random.seed(0)
        flip = T.RandomFlip()
        values = [flip._rand_range(), flip._rand_range(5), flip._rand_range(2, 3), *flip._rand_range(-1, 1, 3)]
        drawn.append([float(value) for value in values])
    assert drawn[0] == drawn[1]


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
