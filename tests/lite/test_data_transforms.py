"""Augmentation, image reading and mapper of the embedded engine, against values computed by hand."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet_ext.lite.cfg_node import get_cfg
from retinanet_ext.lite.data import DatasetMapper, detection_utils
from retinanet_ext.lite.data import transforms as T
from retinanet_ext.lite.structures import BoxMode


@pytest.fixture
def image_file(tmp_path):
    path = tmp_path / "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, size=(24, 36, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def _annotation(**changes):
    return {"bbox": [6, 4, 12, 8], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2, "iscrowd": 0, **changes}


def test_flip_of_image_and_box_by_hand():
    image = np.zeros((4, 10), np.uint8)
    image[1:3, 2:5] = 255  # box x 2..5, y 1..3
    aug_input = T.AugInput(image, boxes=np.array([[2.0, 1, 5, 3]]))
    T.RandomFlip(1.0)(aug_input)
    assert aug_input.boxes.tolist() == [[5, 1, 8, 3]]
    assert (aug_input.image[1:3, 5:8] == 255).all() and aug_input.image.sum() == 6 * 255


@pytest.mark.parametrize(
    ("crop_type", "size"),
    [("relative", (0.3, 0.3)), ("relative_range", (0.1, 0.1)), ("absolute", (0.5, 1)), ("absolute_range", (0.5, 0.6))],
)
def test_a_crop_has_at_least_one_pixel(crop_type, size):
    crop = T.RandomCrop(crop_type, size)
    for height, width in [(1, 1), (1, 7), (2, 1)] * 10:
        window = crop.get_transform(np.zeros((height, width, 3), np.uint8)).apply_image(np.zeros((height, width, 3)))
        assert 1 <= window.shape[0] <= height and 1 <= window.shape[1] <= width
    # Half a pixel is rounded up as before: 0.5 * 3 + 0.5 is 2.
    assert T.RandomCrop("relative", (0.5, 0.5)).get_crop_size((3, 100)) == (2, 50)


def test_crop_keeps_image_and_box_together():
    image = np.zeros((40, 60), np.uint8)
    image[20:25, 30:40] = 255
    np.random.seed(0)
    for _ in range(20):
        aug_input = T.AugInput(image, boxes=np.array([[30.0, 20, 40, 25]]))
        T.RandomCrop("absolute", (35, 50))(aug_input)
        assert aug_input.image.shape == (35, 50)
        x0, y0, x1, y1 = aug_input.boxes[0].astype(int)
        assert (aug_input.image[y0:y1, x0:x1] == 255).all() and aug_input.image.sum() == 50 * 255


def test_inverse_brings_points_back():
    np.random.seed(0)
    aug_input = T.AugInput(np.zeros((48, 64, 3), np.uint8))
    transforms = T.AugmentationList(
        [T.RandomCrop("relative", (0.5, 0.5)), T.ResizeShortestEdge(100), T.RandomFlip(1.0)]
    )(aug_input)
    assert aug_input.image.shape == (100, 133, 3)  # 24x32 scaled by 100/24: 133.33 wide
    points = np.array([[1.0, 2], [30, 40]])
    np.testing.assert_allclose(transforms.inverse().apply_coords(transforms.apply_coords(points.copy())), points)


def test_resize_of_labels_invents_no_label():
    labels = np.array([[0, 200], [100, 50]], np.uint8)
    resized = T.ResizeTransform(2, 2, 5, 7).apply_segmentation(labels)
    assert resized.shape == (5, 7) and set(np.unique(resized)) == {0, 50, 100, 200}


def test_augmentation_sees_what_it_asks_for():
    class Shift(T.Augmentation):
        def get_transform(self, image, boxes):
            return T.CropTransform(int(boxes[:, 0].min()), 0, 5, image.shape[0])

    aug_input = T.AugInput(np.zeros((4, 10), np.uint8), boxes=np.array([[3.0, 0, 4, 4]]))
    Shift()(aug_input)
    assert aug_input.boxes.tolist() == [[0, 0, 1, 4]]
    with pytest.raises(AttributeError, match="Shift.get_transform asks for 'image', which this ndarray"):
        Shift()(np.zeros((4, 10)))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: T.ResizeShortestEdge((1, 2, 3)), "got \\(1, 2, 3\\).*'choice'"),
        (lambda: T.ResizeShortestEdge((1, 2), sample_style="any"), "'any'; legal values: range, choice"),
        (lambda: T.RandomFlip(horizontal=True, vertical=True), "two RandomFlip in a row"),
        (lambda: T.RandomFlip(horizontal=False), "one of them must be True"),
        (lambda: T.RandomCrop("relativ", (1, 1)), "'relativ'; legal values: relative, "),
        (lambda: T.RandomCrop("relative", (0.5, 2)), "in 0..1, got \\(0.5, 2\\)"),
        (lambda: T.RandomCrop("absolute_range", (9, 5)), "\\(smallest, largest\\), got \\(9, 5\\)"),
        (lambda: T.RandomCrop("absolute", (9,)), "two positive numbers, got \\(9,\\)"),
        (lambda: T.ResizeTransform(4, 4, 8, 8).apply_image(np.zeros((5, 4), np.uint8)), "4x4.*got \\(5, 4\\)"),
        (lambda: T.ResizeTransform(4, 4, 8, 8).apply_image(np.zeros((4, 4), int)), "got int64.*astype"),
        (lambda: T.ResizeTransform(4, 4, 8, 8, Image.LANCZOS).apply_image(np.zeros((4, 4))), "filter 1.*bilinear"),
        (lambda: T.RandomApply(T.RandomFlip(), 1.5), "prob is 1.5; legal values: 0 to 1"),
        (lambda: T.RandomRotation([1, 2, 3]), "got \\(1, 2, 3\\).*'choice'"),
        (lambda: T.RandomRotation(1, sample_style="any"), "'any'; legal values: range, choice"),
        (lambda: T.RotationTransform(4, 4, 9).apply_image(np.zeros((5, 4))), "4x4.*got \\(5, 4\\)"),
        (lambda: T.RandomSaturation(0, 1).get_transform(np.zeros((4, 4))), "RGB.*\\(4, 4\\)"),
        (lambda: T.Resize((1, 2, 3)), "height, width"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_names_that_do_not_exist_name_the_remedy():
    with pytest.raises(AttributeError, match="no transforms.RandomExtent; .*Resize.*ColorTransform.*Detectron2"):
        T.RandomExtent  # noqa: B018
    with pytest.raises(TypeError, match="got str"):
        T.RandomApply("flip")
    with pytest.raises(TypeError, match="function"):
        T.ColorTransform(3)


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_resize_of_bytes_treats_every_channel_alike(channels):
    image = np.random.default_rng(0).integers(0, 256, size=(20, 30, channels), dtype=np.uint8)
    resized = T.ResizeTransform(20, 30, 12, 40).apply_image(image)
    assert resized.shape == (12, 40, channels)
    for channel in range(channels):
        alone = Image.fromarray(image[:, :, channel]).resize((40, 12), Image.BILINEAR)
        assert np.array_equal(resized[:, :, channel], np.asarray(alone))


def test_rotation_by_a_right_angle_by_hand():
    image = np.random.default_rng(0).integers(0, 256, size=(20, 30, 1), dtype=np.uint8)
    aug_input = T.AugInput(image, boxes=np.array([[4.0, 2, 10, 5]]), sem_seg=image[:, :, 0])
    transform = T.RandomRotation([90], sample_style="choice")(aug_input)
    assert np.array_equal(aug_input.image, np.rot90(image))
    assert np.array_equal(aug_input.sem_seg, aug_input.image[..., 0])
    np.testing.assert_allclose(aug_input.boxes, [[2, 20, 5, 26]], atol=1e-9)  # x stays y; y is 30 - x
    assert np.array_equal(transform.inverse().apply_image(aug_input.image), image)


@pytest.mark.parametrize("expand", [True, False])
def test_points_are_rotated_back(expand):
    points = np.random.default_rng(0).uniform(0, 30, size=(50, 2))
    rotation = T.RotationTransform(20, 30, 33.3, expand=expand, center=(4, 7))
    np.testing.assert_allclose(rotation.inverse().apply_coords(rotation.apply_coords(points)), points, atol=1e-9)
    assert rotation.apply_coords(np.zeros((0, 2))).shape == (0, 2)
    centre = rotation.apply_coords(np.array([[4.0, 7]]))
    assert (np.abs(centre - [[4, 7]]).max() < 1e-9) == (not expand)


def test_the_centre_is_chosen_from_a_list():
    np.random.seed(0)
    rotation = T.RandomRotation([90], expand=False, center=[[0.5, 0.5], [0.1, 0.2]], sample_style="choice")
    transforms = [rotation.get_transform(np.zeros((20, 30))) for _ in range(20)]
    fixed = {(15.0, 10.0): 0, (3.0, 4.0): 0}
    for transform in transforms:
        for point in fixed:
            fixed[point] += bool(np.allclose(transform.apply_coords(np.array([point])), [point]))
    assert min(fixed.values()) > 0 and sum(fixed.values()) == 20


def test_a_colour_transform_moves_nothing():
    transform = T.ColorTransform(lambda image: 255 - image)
    image, boxes = np.full((4, 5, 3), 250, np.uint8), np.array([[1.0, 2, 3, 4]])
    aug_input = T.AugInput(image, boxes=boxes, sem_seg=image[:, :, 0])
    aug_input.apply_augmentations([transform])
    assert (aug_input.image == 5).all() and np.array_equal(aug_input.boxes, boxes) and (aug_input.sem_seg == 250).all()
    assert isinstance(transform.inverse(), T.NoOpTransform)


def test_augmentation_list_refuses_other_things():
    with pytest.raises(TypeError, match="got type"):
        T.AugmentationList([T.RandomFlip])


@pytest.mark.parametrize("format, shape", [("BGR", (3, 4, 3)), ("RGB", (3, 4, 3)), ("L", (3, 4, 1))])
def test_grey_images_get_the_channels_of_the_format(tmp_path, format, shape):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(pixels).save(tmp_path / "grey.png")
    image = detection_utils.read_image(str(tmp_path / "grey.png"), format)
    assert image.shape == shape and (image == pixels[:, :, None]).all()


def test_channel_order(tmp_path):
    Image.new("RGB", (2, 2), (1, 2, 3)).save(tmp_path / "color.png")
    assert detection_utils.read_image(str(tmp_path / "color.png"), "RGB")[0, 0].tolist() == [1, 2, 3]
    assert detection_utils.read_image(str(tmp_path / "color.png"), "BGR")[0, 0].tolist() == [3, 2, 1]


@pytest.mark.parametrize("suffix", ["png", "tif"])  # Pillow applies the orientation of a TIFF itself
def test_orientation_is_undone_once(tmp_path, suffix):
    upright = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    turned_by = {1: upright, 3: np.rot90(upright, 2), 6: np.rot90(upright), 8: np.rot90(upright, -1)}
    for orientation, stored in turned_by.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"{orientation}.{suffix}", exif=exif)
        image = detection_utils.read_image(str(tmp_path / f"{orientation}.{suffix}"), "L")
        assert image[:, :, 0].tolist() == upright.tolist()


def test_damaged_exif_data_are_ignored(image_file, monkeypatch, caplog):
    def fail(self):
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert detection_utils.read_image(image_file, "RGB").shape == (24, 36, 3)
    assert "image.png: EXIF data cannot be read, orientation ignored: not a TIFF file" in caplog.text


def test_truncated_image_is_named(tmp_path, image_file):
    data = Path(image_file).read_bytes()
    for name, content in (("cut.png", data[: len(data) // 2]), ("text.png", b"not an image"), ("empty.png", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OSError, match=f"{name} cannot be read as an image"):
            detection_utils.read_image(str(tmp_path / name), "BGR")


def test_deep_images_are_refused(tmp_path):
    Image.fromarray(np.full((3, 4), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="deep.png has more than 8 bits per channel"):
        detection_utils.read_image(str(tmp_path / "deep.png"), "BGR")


def test_unknown_image_format(image_file):
    with pytest.raises(ValueError, match="'HSV' is not known; legal values: BGR, RGB, L"):
        detection_utils.read_image(image_file, "HSV")


def test_size_mismatch_names_file_and_sizes(image_file):
    image = detection_utils.read_image(image_file, "BGR")
    with pytest.raises(detection_utils.SizeMismatchError, match=r"image\.png: the image is 36x24 .* says 36x25"):
        detection_utils.check_image_size({"file_name": image_file, "width": 36, "height": 25}, image)
    with pytest.raises(detection_utils.SizeMismatchError, match="swapped.*EXIF"):
        detection_utils.check_image_size({"file_name": image_file, "width": 24, "height": 36}, image)


def test_transformed_annotation():
    annotation = _annotation(segmentation=[[6, 4, 18, 4, 18, 12]], keypoints=[6, 4, 2])
    before = {key: list(value) if isinstance(value, list) else value for key, value in annotation.items()}
    new = detection_utils.transform_instance_annotations(annotation, [T.CropTransform(10, 0, 5, 24)], (24, 5))
    assert annotation == before
    # xywh 6, 4, 12, 8 is x 6..18, y 4..12; the crop moves it to x -4..8 and keeps 0..5.
    assert new["bbox"].tolist() == [0, 4, 5, 12] and new["bbox_mode"] == BoxMode.XYXY_ABS
    # The triangle's corners 6, 4 and 18, 4 and 18, 12 move to x -4 and 8: of it, the trapezium between x 0 and 5 is
    # left, whose lower side falls by 2 pixels in 3.
    (polygon,) = new["segmentation"]
    corners = {tuple(point) for point in polygon.reshape(-1, 2).round(9).tolist()}
    assert corners == {(0, 4), (5, 4), (5, 10), (0, round(4 + 8 / 3, 9))}
    assert new["keypoints"].tolist() == [[0, 0, 0]]  # outside the crop


def test_mirrored_mask_and_keypoints():
    annotation = _annotation(segmentation=[[6, 4, 18, 4, 18, 12]], keypoints=[6, 4, 2, 18, 4, 1, 0, 0, 0])
    arguments = (annotation, [T.HFlipTransform(36)], (24, 36))
    moved = detection_utils.transform_instance_annotations(*arguments, keypoint_hflip_indices=[1, 0, 2])
    instances = detection_utils.annotations_to_instances([moved], (24, 36), mask_format="polygon")
    assert instances.gt_boxes.tensor.tolist() == [[18, 4, 30, 12]]
    assert instances.gt_masks.polygons[0][0].tolist() == [30, 4, 18, 4, 18, 12]
    # Left and right have changed places; a point that is not labelled stays 0, 0, 0.
    assert instances.gt_keypoints.tensor.tolist() == [[[18, 4, 1], [30, 4, 2], [0, 0, 0]]]
    for indices in (None, [0, 1]):
        with pytest.raises(ValueError, match="mirrored.*3 keypoints.*keypoint_hflip_indices.*None|for 2 points"):
            detection_utils.transform_instance_annotations(*arguments, keypoint_hflip_indices=indices)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ("6,4", "'6,4' .str. is of no known form; legal: a list of polygons"),
        ({"size": [24, 36]}, "is of no known form"),
        (np.ones((20, 36), bool), r"mask.*\(20, 36\).*\(24, 36\)"),
    ],
)
def test_segmentations_that_cannot_be_read(segmentation, message):
    annotation = _annotation(segmentation=segmentation)
    with pytest.raises(ValueError, match=message):
        detection_utils.transform_instance_annotations(annotation, [T.NoOpTransform()], (24, 36))


def test_annotations_that_do_not_fit_together():
    def instances(*segmentations, mask_format="polygon"):
        annotations = [_annotation(**({} if s is None else {"segmentation": s})) for s in segmentations]
        return detection_utils.annotations_to_instances(annotations, (24, 36), mask_format)

    triangle, bits = [[6, 4, 18, 4, 18, 12]], np.zeros((24, 36), np.uint8)
    with pytest.raises(ValueError, match="1 of the 2 annotations of an image have no 'segmentation'.*annotation 1"):
        instances(triangle, None)
    with pytest.raises(ValueError, match="mask of object 1 .*not made of polygons.*INPUT.MASK_FORMAT bitmask"):
        instances(triangle, bits)
    with pytest.raises(ValueError, match="'polygons'; legal: polygon, bitmask"):
        instances(triangle, mask_format="polygons")
    with pytest.raises(ValueError, match=r"\(24, 36\) .*several sizes: \[\(20, 36\), \(24, 36\)\]"):
        instances(triangle, bits[:20], mask_format="bitmask")
    assert instances(triangle, bits, mask_format="bitmask").gt_masks.nonempty().tolist() == [True, False]
    points = [_annotation(keypoints=[1, 2, 2]), _annotation(keypoints=[1, 2, 2] * 2)]
    with pytest.raises(ValueError, match=r"different numbers of keypoints: \[1, 2\]"):
        detection_utils.annotations_to_instances(points, (24, 36))


def test_integer_boxes_keep_their_fraction():
    new = detection_utils.transform_instance_annotations(_annotation(), T.ResizeTransform(24, 36, 25, 37), (25, 37))
    np.testing.assert_allclose(new["bbox"], [6 * 37 / 36, 4 * 25 / 24, 18 * 37 / 36, 12 * 25 / 24])


def test_annotations_to_instances():
    instances = detection_utils.annotations_to_instances([_annotation(), _annotation(bbox=[1, 2, 0, 5])], (24, 36))
    assert instances.gt_boxes.tensor.tolist() == [[6, 4, 18, 12], [1, 2, 1, 7]]
    assert instances.gt_classes.tolist() == [2, 2] and instances.gt_classes.dtype == torch.int64
    assert len(detection_utils.filter_empty_instances(instances)) == 1
    empty = detection_utils.annotations_to_instances([], (24, 36))
    assert empty.gt_boxes.tensor.shape == (0, 4) and empty.gt_classes.shape == (0,)
    assert len(detection_utils.filter_empty_instances(empty)) == 0


def _mapper(is_train=True, **kwargs):
    arguments = {"augmentations": [T.RandomFlip(1.0)], "image_format": "BGR", **kwargs}
    return DatasetMapper(is_train, **arguments)


def _record(image_file, **changes):
    annotations = [_annotation(), _annotation(iscrowd=1), _annotation(bbox=[1, 1, 0, 3])]
    return {"file_name": image_file, "width": 36, "height": 24, "image_id": 1, "annotations": annotations, **changes}


def test_mapper_in_training(image_file):
    record = _record(image_file)
    sample = _mapper()(record)
    assert len(record["annotations"]) == 3 and "image" not in record  # the record is not changed
    assert set(sample) == {"file_name", "width", "height", "image_id", "image", "instances"}
    pixels = np.asarray(Image.open(image_file))
    assert np.array_equal(sample["image"].numpy(), pixels[:, ::-1, ::-1].transpose(2, 0, 1))
    assert sample["instances"].image_size == (24, 36)
    assert sample["instances"].gt_boxes.tensor.tolist() == [[18, 4, 30, 12]]  # mirrored: 36 - 18, 36 - 6


@pytest.mark.parametrize("annotations, expected", [([], 0), ([_annotation(iscrowd=1)], 0)])
def test_mapper_with_nothing_to_find(image_file, annotations, expected):
    assert len(_mapper()(_record(image_file, annotations=annotations))["instances"]) == expected


def test_mapper_for_testing_returns_no_ground_truth(image_file):
    sample = _mapper(is_train=False)(_record(image_file))
    assert "instances" not in sample and "annotations" not in sample


def test_mapper_from_config(image_file, caplog):
    cfg = get_cfg()
    cfg.merge_from_list(["INPUT.CROP.ENABLED", True, "INPUT.MIN_SIZE_TRAIN", (50,), "INPUT.FORMAT", "L"])
    with caplog.at_level(logging.INFO):
        mapper = DatasetMapper(cfg, is_train=True)
    kinds = [type(augmentation).__name__ for augmentation in mapper.augmentations.augs]
    assert kinds == ["RandomCrop", "ResizeShortestEdge", "RandomFlip"]
    assert "RandomCrop(crop_type='relative_range', crop_size=(0.9, 0.9))" in caplog.text
    np.random.seed(0)
    image = mapper(_record(image_file))["image"]
    assert image.shape[0] == 1 and min(image.shape[1:]) == 50 and image.dtype == torch.uint8
    kinds = [type(augmentation).__name__ for augmentation in DatasetMapper(cfg, is_train=False).augmentations.augs]
    assert kinds == ["ResizeShortestEdge"]


def test_unknown_flip_in_config():
    cfg = get_cfg()
    cfg.INPUT.RANDOM_FLIP = "both"
    with pytest.raises(ValueError, match="INPUT.RANDOM_FLIP is 'both'; legal values: horizontal, vertical, none"):
        detection_utils.build_augmentation(cfg, True)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_image_to_tensor(channels, dtype):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels)).astype(dtype)
    views = {
        "whole": image,
        "mirrored": image[:, ::-1],
        "upside down": image[::-1],
        "turned": image[::-1, ::-1],
        "part": image[1:4, 2:6],
        "mirrored part": image[1:4, 2:6][:, ::-1],
        "transposed": image.transpose(1, 0, 2),
        "other channels": image[:, :, ::-1],
    }
    for name, view in views.items():
        tensor = detection_utils.image_to_tensor(view)
        assert tensor.is_contiguous() and tensor.numpy().dtype == dtype
        assert tensor.tolist() == view.transpose(2, 0, 1).tolist(), name
        tensor[:] = 0
    assert image.any()  # a copy


def test_resize_to_the_same_size_changes_nothing():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert T.ResizeTransform(5, 7, 5, 7).apply_image(image).tolist() == image.tolist()
    pixels = np.asarray(Image.fromarray(image).resize((7, 5), Image.BILINEAR))
    assert pixels.tolist() == image.tolist()  # Pillow does the same


def test_boxes_of_a_mapper_are_those_of_its_steps(tmp_path):
    """The mapper transforms all boxes at once; the functions for single annotations give the same boxes."""
    Image.new("RGB", (40, 30)).save(tmp_path / "image.png")
    rng = np.random.default_rng(0)
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode(k % 2), "category_id": k, "iscrowd": int(k == 3)}
        for k, box in enumerate((rng.random((9, 4)) * 20 + [0, 0, 15, 10]).tolist())
    ]
    augmentations = [
        T.CropTransform(5, 4, 25, 20, orig_w=40, orig_h=30),
        T.ResizeShortestEdge(33),
        T.HFlipTransform(41),
    ]
    mapper = DatasetMapper(True, augmentations=augmentations, image_format="BGR")
    record = {"file_name": str(tmp_path / "image.png"), "annotations": annotations}
    found = mapper(record)["instances"]
    size = found.image_size
    transforms = mapper.augmentations(T.AugInput(np.zeros((30, 40, 3), np.uint8)))
    single = [
        detection_utils.transform_instance_annotations(a, transforms, size) for a in annotations if not a["iscrowd"]
    ]
    expected = detection_utils.filter_empty_instances(detection_utils.annotations_to_instances(single, size))
    assert len(found) > 3
    assert found.gt_boxes.tensor.dtype == torch.float32
    assert torch.equal(found.gt_boxes.tensor, expected.gt_boxes.tensor)
    assert torch.equal(found.gt_classes, expected.gt_classes)
    assert len(mapper({**record, "annotations": annotations[3:4]})["instances"]) == 0


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (1000, 1250, (800, 1000)),
        (3, 4000, (1, 1333)),
        (1, 100_000, (0, 1333)),  # 0.013 pixels
    ],
)
def test_output_shape_by_hand(height, width, expected):
    assert T.ResizeShortestEdge.get_output_shape(height, width, 800, 1333) == expected
