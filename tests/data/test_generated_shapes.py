import json

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from retinanet_ext.data.coco_records import coco_records
from retinanet_ext.data.generated_shapes import make_sample, write_shapes
from retinanet_ext.data.shape_drawing import (
    CLASS_NAMES,
    KEYPOINT_NAMES,
    MAX_HIDDEN,
    MIN_CONTRAST,
    _paint,
    polygon_coverage,
)

SIZE = 128


@pytest.fixture(scope="module")
def samples():
    return [make_sample(7, "train", index, SIZE) for index in range(60)]


def shapes_of(samples):
    return [shape for _, shapes in samples for shape in shapes]


def test_an_image_depends_on_its_arguments_alone():
    image, shapes = make_sample(3, "train", 5, SIZE)
    make_sample(3, "train", 6, SIZE)
    again, shapes_again = make_sample(3, "train", 5, SIZE)
    assert np.array_equal(image, again)
    assert [s.polygon.tolist() for s in shapes] == [s.polygon.tolist() for s in shapes_again]
    for other in ((4, "train", 5), (3, "val", 5), (3, "train", 6)):
        assert not np.array_equal(image, make_sample(*other, SIZE)[0])


def test_boxes_are_tight_around_polygon_and_pixels(samples):
    # Side of a pixel of the 4x finer grid on which shapes are drawn.
    grid = 0.25
    for shape in shapes_of(samples):
        x0, y0, x1, y1 = shape.box_xyxy()
        xs, ys = shape.polygon.T
        assert (xs.min(), ys.min(), xs.max(), ys.max()) == (x0, y0, x1, y1)
        assert 0 <= x0 < x1 <= SIZE and 0 <= y0 < y1 <= SIZE
        rows, columns = np.nonzero(polygon_coverage(shape.polygon, SIZE))
        for first, last, low, high in ((columns.min(), columns.max(), x0, x1), (rows.min(), rows.max(), y0, y1)):
            assert np.floor(low - grid) <= first <= np.floor(low + grid)
            assert np.ceil(high - grid) <= last + 1 <= np.ceil(high + grid)


def test_coverage_of_a_square_with_half_pixels():
    # x from 1.5 to 3, y from 1 to 3: column 1 is half covered, column 2 fully.
    coverage = polygon_coverage(np.array([[1.5, 1.0], [3.0, 1.0], [3.0, 3.0], [1.5, 3.0]]), 4)
    # The filled outline is inclusive: it may cover one fine pixel (a quarter) more.
    expected = np.zeros((4, 4))
    expected[1:3, 1], expected[1:3, 2] = 0.5, 1.0
    assert np.abs(coverage - expected).max() <= 0.25 + 1e-6
    assert coverage[2, 2] == 1.0 and coverage[0, 0] == 0.0


def test_painted_pixels_are_those_of_the_polygon():
    image = np.full((64, 64, 3), 128, np.uint8)
    alpha = polygon_coverage(np.array([[10.0, 10.0], [50.0, 14.0], [30.0, 55.0]]), 64)
    _paint(np.random.RandomState(0), image, alpha, class_id=0)
    changed = (image != 128).any(axis=2)
    assert not changed[alpha == 0].any()
    assert changed[alpha == 1].all()
    difference = image[alpha == 1].mean(axis=0) - 128.0
    # The shading moves single rows by up to 25, and the outline darkens the rim, but the colour stays apart.
    assert np.linalg.norm(difference) > 0.5 * MIN_CONTRAST


def test_keypoints_are_centre_and_points_on_the_outline(samples):
    for shape in shapes_of(samples):
        contour = shape.polygon.astype(np.float32)
        distances = [cv2.pointPolygonTest(contour, (float(x), float(y)), True) for x, y, _ in shape.keypoints]
        assert distances[0] > 2.0
        assert np.abs(distances[1:]).max() < 0.05
        center, up, right, down, left = shape.keypoints[:, :2]
        # The tilt is at most 30 degrees, so each keypoint is closest to its own axis.
        for point, axis in ((up, (0, -1)), (right, (1, 0)), (down, (0, 1)), (left, (-1, 0))):
            offset = point - center
            assert offset @ np.array(axis) > np.cos(np.deg2rad(31)) * np.linalg.norm(offset)


def test_occlusion_is_bounded_and_marks_keypoints(samples):
    covered_keypoints = 0
    for _, shapes in samples:
        masks = [polygon_coverage(shape.polygon, SIZE) > 0.5 for shape in shapes]
        for k, shape in enumerate(shapes):
            later = np.any([np.zeros((SIZE, SIZE), bool), *masks[k + 1 :]], axis=0)
            assert (masks[k] & later).sum() / masks[k].sum() == pytest.approx(shape.hidden)
            assert shape.hidden <= MAX_HIDDEN
            for x, y, visibility in shape.keypoints:
                assert visibility == (1 if later[int(y), int(x)] else 2)
                covered_keypoints += visibility == 1
    assert covered_keypoints > 0


def test_imbalance_of_classes_and_of_foreground():
    samples = [make_sample(0, "train", index, SIZE) for index in range(250)]
    counts = np.bincount([shape.class_id for shape in shapes_of(samples)], minlength=len(CLASS_NAMES))
    assert len(CLASS_NAMES) >= 5
    assert (np.diff(counts) < 0).all() and counts[0] > 5 * counts[-1] > 0
    empty = sum(not shapes for _, shapes in samples)
    assert 0.04 * len(samples) <= empty <= 0.16 * len(samples)
    sides = np.array([(b[2:] - b[:2]).max() for b in (s.box_xyxy() for s in shapes_of(samples))])
    assert (sides < 16).mean() > 0.1 and sides.min() > 9
    foreground = np.mean([sum(cv2.contourArea(s.polygon.astype(np.float32)) for s in shapes) for _, shapes in samples])
    assert foreground / SIZE**2 < 0.2


@pytest.fixture
def written(tmp_path):
    root = tmp_path / "shapes"
    assert write_shapes(root, 6, 3, seed=1, image_size=64) is True
    return root


def test_files_are_coco(written):
    coco = COCO(written / "annotations" / "shapes_train.json")
    assert len(coco.imgs) == 6 and len(list((written / "train").iterdir())) == 6
    assert [c["name"] for c in coco.dataset["categories"]] == list(CLASS_NAMES)
    assert all(c["keypoints"] == list(KEYPOINT_NAMES) and c["skeleton"] for c in coco.dataset["categories"])
    assert coco.anns
    for index, annotation in enumerate(coco.dataset["annotations"]):
        # The rasteriser of pycocotools agrees with the area.
        assert coco.annToMask(annotation).sum() == pytest.approx(annotation["area"], rel=0.15, abs=8)
        x, y, w, h = annotation["bbox"]
        polygon = np.array(annotation["segmentation"][0]).reshape(-1, 2)
        assert [x, y, x + w, y + h] == pytest.approx([*polygon.min(axis=0), *polygon.max(axis=0)], abs=1e-6)
        assert len(annotation["keypoints"]) == 3 * len(KEYPOINT_NAMES) and annotation["id"] == index + 1
    first = cv2.imread(str(written / "train" / coco.imgs[1]["file_name"]))
    assert first.shape == (64, 64, 3)
    # JPEG changes single pixels, but hardly the mean of 8x8 pixels.
    blocks = [i.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3)) for i in (first, make_sample(1, "train", 0, 64)[0])]
    assert np.abs(blocks[0] - blocks[1]).mean() < 2


def test_same_arguments_write_nothing(written):
    before = {p: p.stat().st_mtime_ns for p in written.rglob("*")}
    assert write_shapes(written, 6, 3, seed=1, image_size=64) is False
    assert {p: p.stat().st_mtime_ns for p in written.rglob("*")} == before


def test_other_arguments_are_refused_unless_overwritten(written):
    with pytest.raises(ValueError, match=r"seed=1 \(asked: 2\).*--overwrite"):
        write_shapes(written, 6, 3, seed=2, image_size=64)
    assert write_shapes(written, 5, 3, seed=2, image_size=64, overwrite=True) is True
    assert len(list((written / "train").iterdir())) == 5
    assert [p.name for p in written.parent.iterdir()] == ["shapes"]


def test_a_set_of_an_earlier_version_is_refused_unless_overwritten(written):
    manifest = json.loads((written / "shapes_manifest.json").read_text())
    (written / "shapes_manifest.json").write_text(json.dumps({**manifest, "generator_version": 2}))
    with pytest.raises(ValueError, match=r"generator_version=2 \(asked: \d+\); another version.*--overwrite"):
        write_shapes(written, 6, 3, seed=1, image_size=64)
    assert write_shapes(written, 6, 3, seed=1, image_size=64, overwrite=True) is True


def test_damaged_set_is_refused(written):
    (written / "val" / "000001.jpg").unlink()
    with pytest.raises(ValueError, match="changed or went missing"):
        write_shapes(written, 6, 3, seed=1, image_size=64)
    assert write_shapes(written, 6, 3, seed=1, image_size=64, overwrite=True) is True
    assert (written / "val" / "000001.jpg").exists()


def test_foreign_folder_is_never_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="was not written by this command"):
        write_shapes(tmp_path, 2, 2, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="is a file"):
        write_shapes(tmp_path / "thesis.txt", 2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_train": 0}, "num_train must be an integer >= 1, found 0"),
        ({"num_val": 0}, "num_val must be"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"image_size": 63}, "image_size must be an integer >= 64"),
        ({"image_size": 64.5}, "found 64.5"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_shapes(tmp_path / "set", **arguments)


def test_manifest_states_the_arguments(written):
    manifest = json.loads((written / "shapes_manifest.json").read_text())
    assert {k: manifest[k] for k in ("num_train", "num_val", "seed", "image_size")} == {
        "num_train": 6, "num_val": 3, "seed": 1, "image_size": 64,
    }  # fmt: skip


def test_number_of_objects_as_asked():
    counts = {objects: [] for objects in ((1, 1), (0, 1), (2, 4))}
    for objects, found in counts.items():
        found += [len(make_sample(0, "train", index, SIZE, objects)[1]) for index in range(40)]
    assert set(counts[1, 1]) == {1}
    assert set(counts[0, 1]) == {0, 1}
    assert 10 <= sum(counts[0, 1]) <= 30  # evenly drawn: 20 expected, 3.2 standard deviations each way
    assert set(counts[2, 4]) == {2, 3, 4}


def test_distractors_change_the_picture_but_not_the_annotations():
    plain, shapes = make_sample(5, "train", 1, SIZE, (1, 1))
    crowded, same_shapes = make_sample(5, "train", 1, SIZE, (1, 1), distractors=3)
    assert len(same_shapes) == len(shapes) == 1
    np.testing.assert_array_equal(same_shapes[0].polygon, shapes[0].polygon)
    changed = np.abs(plain.astype(int) - crowded).max(axis=2) > 60
    assert 100 < changed.sum() < 0.5 * SIZE * SIZE


def test_the_default_set_is_that_of_earlier_releases(tmp_path):
    """The manifest of a set without options stays as it was, so that a set written before needs no rewrite."""
    write_shapes(tmp_path / "set", 2, 1, seed=4, image_size=64)
    manifest = json.loads((tmp_path / "set" / "shapes_manifest.json").read_text())
    assert set(manifest) == {"num_train", "num_val", "seed", "image_size", "generator_version", "sha256"}


def test_a_set_with_other_objects_is_another_set(tmp_path):
    write_shapes(tmp_path / "set", 2, 1, seed=4, image_size=64, objects=(1, 1))
    assert write_shapes(tmp_path / "set", 2, 1, seed=4, image_size=64, objects=(1, 1)) is False
    with pytest.raises(ValueError, match=r"objects=\[1, 1\] \(asked: None\)"):
        write_shapes(tmp_path / "set", 2, 1, seed=4, image_size=64)
    with pytest.raises(ValueError, match=r"distractors=None \(asked: 2\)"):
        write_shapes(tmp_path / "set", 2, 1, seed=4, image_size=64, objects=(1, 1), distractors=2)


@pytest.mark.parametrize(
    "arguments", [{"objects": (2, 1)}, {"objects": (-1, 1)}, {"objects": (1.5, 2)}, {"distractors": -1}]
)
def test_impossible_numbers_of_objects_are_refused(tmp_path, arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be"):
        write_shapes(tmp_path / "set", 1, 1, image_size=64, **arguments)
    assert not (tmp_path / "set").exists()


def test_keypoints_are_read_where_they_were_drawn(tmp_path):
    """COCO counts pixels: the centre of pixel 0 is 0 in the file, and 0.5 in records."""
    write_shapes(tmp_path, num_train=3, num_val=1, image_size=64, seed=5)
    coco = json.loads((tmp_path / "annotations" / "shapes_train.json").read_text())
    contiguous = {k + 1: k for k in range(len(CLASS_NAMES))}
    records = coco_records(coco, str(tmp_path), contiguous, {})
    for index, record in enumerate(records):
        drawn = [shape.keypoints for shape in make_sample(5, "train", index, 64)[1]]
        read = [np.reshape(annotation["keypoints"], (-1, 3)) for annotation in record["annotations"]]
        assert len(read) == len(drawn)
        np.testing.assert_allclose(read, drawn, atol=1e-6)
    assert any(record["annotations"] for record in records)
