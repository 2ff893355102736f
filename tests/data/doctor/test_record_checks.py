import copy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinanet_ext.d2 import BoxMode
from retinanet_ext.data.doctor import image_probe, record_checks
from retinanet_ext.data.doctor.record_checks import check_dataset_dicts
from retinanet_ext.data.voc import load_voc, voc_class_names
from retinanet_ext.lite.data.detection_utils import read_image

NAMES = ["cat", "dog"]
GOOD = [5.0, 5.0, 20.0, 20.0]


def annotation(box=GOOD, category=0, mode=BoxMode.XYXY_ABS, **fields):
    return {"bbox": box, "bbox_mode": mode, "category_id": category, **fields}


@pytest.fixture
def record(tmp_path):
    """A function that makes a record with an image of 40x30 behind it."""

    def make(*annotations, image_id=1, size=(40, 30), name=None, exif=None):
        path = tmp_path / (name or f"{image_id}.jpg")
        image = Image.fromarray(np.zeros((30, 40, 3), np.uint8))
        image.save(path, exif=exif or Image.Exif())
        return {"file_name": str(path), "image_id": image_id, "width": size[0], "height": size[1],
                "annotations": list(annotations)}  # fmt: skip

    return make


def test_clean_records_pass_as_the_same_objects(record):
    crowd = annotation(iscrowd=1, segmentation={"size": [30, 40], "counts": "x"})
    dicts = [record(annotation(), crowd), record(image_id=2)]
    clean, report = check_dataset_dicts(dicts, "pets", NAMES, check_images="decode")
    assert all(a is b for a, b in zip(clean, dicts, strict=True))
    assert report.problems == [] and (report.num_images, report.num_annotations) == (2, 2)


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (annotation([5, 5, 5, 20]), "box without area"),
        (annotation([5, 5, 9, 0], mode=BoxMode.XYWH_ABS), "box without area"),
        (annotation([20, 5, 5, 20]), "inverted box"),
        (annotation([5, 5, 9, -2], mode=BoxMode.XYWH_ABS), "inverted box"),
        (annotation([5, 5, float("nan"), 20]), "box is not four finite numbers"),
        (annotation([5, 5, float("inf"), 20]), "box is not four finite numbers"),
        (annotation([5, 5, 20]), "box is not four finite numbers"),
        (annotation(None), "box is not four finite numbers"),
        (annotation([-1.5, 5, 20, 20]), "box outside the image"),
        (annotation([5, 5, 41.5, 20]), "box outside the image"),
        (annotation([5, 5, 20, 31.5]), "box outside the image"),
        (annotation(category=2), "unknown category"),
        (annotation(category=-1, category_name="cow"), r"unknown category.*\(cow\), legal: 0 to 1 \(cat, dog\)"),
    ],
)
def test_bad_annotations_are_refused_and_dropped(record, bad, kind):
    dicts = [record(annotation(), dict(bad, id=77)), record(annotation(), image_id=2)]
    before = copy.deepcopy(dicts)
    with pytest.raises(ValueError, match=kind) as caught:
        check_dataset_dicts(dicts, "pets", NAMES)
    for part in ("'pets'", "1.jpg", "image id 1", "annotation 1 (id 77)", "legal:", "DATASETS.ON_BAD_ANNOTATION drop"):
        assert part in str(caught.value)
    clean, report = check_dataset_dicts(dicts, "pets", NAMES, on_bad_annotation="drop")
    assert clean[0]["annotations"] == [annotation()] and clean[1] is dicts[1]
    assert report.dropped_annotations == 1 and len(report.problems) == 1
    assert repr(dicts) == repr(before)


def test_up_to_a_pixel_outside_is_fine(record):
    dicts = [record(annotation([-1, -1, 41, 31]))]
    assert check_dataset_dicts(dicts, "pets", NAMES)[0][0] is dicts[0]


def test_clip_cuts_what_sticks_out_and_drops_the_rest(record):
    outside, gone, flat = [-5, 5, 20, 45], [50, 5, 60, 20], [5, 5, 5, 20]
    dicts = [record(annotation(outside), annotation(gone), annotation(flat), annotation())]
    with pytest.raises(ValueError, match="DATASETS.ON_BAD_ANNOTATION clip cuts boxes"):
        check_dataset_dicts(dicts, "pets", NAMES)
    clean, report = check_dataset_dicts(dicts, "pets", NAMES, on_bad_annotation="clip")
    assert [a["bbox"] for a in clean[0]["annotations"]] == [[0, 5, 20, 30], GOOD]
    assert (report.clipped_annotations, report.dropped_annotations) == (1, 2)
    assert dicts[0]["annotations"][0]["bbox"] == outside


def test_clip_of_an_xywh_box(record):
    dicts = [record(annotation([30, 10, 20, 10], mode=BoxMode.XYWH_ABS))]
    (clean,), _ = check_dataset_dicts(dicts, "pets", NAMES, on_bad_annotation="clip")
    assert clean["annotations"] == [annotation([30, 10, 40, 20])]


@pytest.mark.parametrize("mode", [None, BoxMode.XYXY_REL, BoxMode.XYWHA_ABS])
def test_box_modes_that_cannot_be_checked(record, mode):
    odd = {k: v for k, v in annotation(mode=mode, id=77).items() if v is not None}
    with pytest.raises(ValueError, match=r"1.jpg \(image id 1\), annotation 1 \(id 77\): bbox_mode is .*XYWH_ABS"):
        check_dataset_dicts([record(annotation(), odd)], "pets", NAMES, on_bad_annotation="drop")


@pytest.mark.parametrize(("category", "problems"), [(np.int64(1), 0), (np.int64(2), 1), (True, 1), (1.0, 1)])
def test_category_ids_are_integers_of_any_kind(record, category, problems):
    dicts = [record(annotation(), annotation(category=category))]
    assert len(check_dataset_dicts(dicts, "pets", NAMES, on_bad_annotation="drop")[1].problems) == problems


def test_without_class_names(record):
    with pytest.raises(ValueError, match=r"found category_id 5, legal: 0 to 2\n"):
        check_dataset_dicts([record(annotation(category=5))], "pets", None, num_classes=3)
    with pytest.raises(ValueError, match="'pets' has no class names .*num_classes is needed"):
        check_dataset_dicts([record()], "pets", None)


def test_all_problems_are_counted_and_ten_are_shown(record):
    dicts = [record(*[annotation([5, 5, 5, 9])] * 12, annotation(category=9))]
    with pytest.raises(ValueError, match="has 13 problems in 1 images") as caught:
        check_dataset_dicts(dicts, "pets", NAMES)
    assert "12 x box without area" in str(caught.value) and "1 x unknown category" in str(caught.value)
    assert str(caught.value).count("1.jpg") == 10


def test_dropped_ones_are_all_logged(record, caplog):
    dicts = [record(*[annotation([5, 5, 5, 9])] * 12, annotation())]
    check_dataset_dicts(dicts, "pets", NAMES, on_bad_annotation="drop")
    assert caplog.text.count("1.jpg") == 12
    assert "of 13 annotations dropped 12 and clipped 0" in caplog.text


def bad_image(record, kind):
    first = record(annotation())
    if kind == "missing image file":
        bad = {**first, "file_name": first["file_name"] + ".gone", "image_id": 2}
    elif kind == "unreadable image":
        bad = record(image_id=2)
        with open(bad["file_name"], "w") as file:
            file.write("no image")
    elif kind == "duplicate image id":
        bad = record(name="other.jpg")
    else:
        bad = record(image_id=2, size=(30, 40))
    return [first, bad]


@pytest.mark.parametrize(
    "kind", ["missing image file", "unreadable image", "duplicate image id", "image size differs from the record"]
)
def test_bad_images_are_refused_and_dropped(record, kind):
    dicts = bad_image(record, kind)
    with pytest.raises(ValueError, match=f"1 x {kind}") as caught:
        check_dataset_dicts(dicts, "pets", NAMES)
    assert dicts[1]["file_name"] in str(caught.value) and "DATASETS.ON_BAD_IMAGE drop" in str(caught.value)
    clean, report = check_dataset_dicts(dicts, "pets", NAMES, on_bad_image="drop")
    assert len(clean) == 1 and clean[0] is dicts[0]
    assert report.dropped_images == 1 and report.counts() == {kind: 1}


def test_the_same_record_twice_is_a_duplicate(record):
    first = record()
    with pytest.raises(ValueError, match="duplicate image id"):
        check_dataset_dicts([first, first], "pets", NAMES, check_images="none")


def test_annotations_of_a_dropped_image_are_not_refused(record):
    dicts = [record(annotation()), record(annotation(category=5), image_id=2, size=(1, 1))]
    clean, _ = check_dataset_dicts(dicts, "pets", NAMES, on_bad_image="drop")
    assert len(clean) == 1


def test_each_policy_covers_its_own_kind(record):
    dicts = [record(annotation(category=5)), record(image_id=2, size=(1, 1))]
    with pytest.raises(ValueError, match="has 1 problems.*\n.*image size"):
        check_dataset_dicts(dicts, "pets", NAMES, on_bad_annotation="drop")
    with pytest.raises(ValueError, match="has 1 problems.*\n.*unknown category"):
        check_dataset_dicts(dicts, "pets", NAMES, on_bad_image="drop")


def test_exif_rotation_counts(record):
    exif = Image.Exif()
    exif[274] = 6  # a quarter turn: 40x30 on disk is 30x40 as seen
    assert check_dataset_dicts([record(size=(30, 40), exif=exif)], "pets", NAMES)[1].problems == []
    with pytest.raises(ValueError, match="found 30x40, legal.*40x30.*before its EXIF rotation"):
        check_dataset_dicts([record(size=(40, 30), exif=exif)], "pets", NAMES)


def test_only_decoding_finds_a_truncated_file(record):
    bad = record()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (30, 40, 3), np.uint8)).save(bad["file_name"])
    path = Path(bad["file_name"])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert check_dataset_dicts([bad], "pets", NAMES)[1].problems == []
    with pytest.raises(ValueError, match="unreadable image"):
        check_dataset_dicts([bad], "pets", NAMES, check_images="decode")


def test_size_comes_from_the_file_if_the_record_has_none(record):
    bad = record(annotation([5, 5, 20, 99]))
    del bad["width"], bad["height"]
    with pytest.raises(ValueError, match="box outside the image"):
        check_dataset_dicts([bad], "pets", NAMES)
    assert check_dataset_dicts([bad], "pets", NAMES, check_images="none")[1].problems == []


def test_empty_dataset(record):
    with pytest.raises(ValueError, match="Dataset 'pets' is empty"):
        check_dataset_dicts([], "pets", NAMES)
    with pytest.raises(ValueError, match="empty after all of its 1 images were dropped"):
        check_dataset_dicts([record(size=(1, 1))], "pets", NAMES, on_bad_image="drop")


def test_num_classes_overrides_the_names(record):
    dicts = [record(annotation(category=2))]
    assert check_dataset_dicts(dicts, "pets", NAMES, num_classes=3)[1].problems == []


@pytest.mark.parametrize("argument", ["on_bad_annotation", "on_bad_image", "check_images"])
def test_unknown_policy(record, argument):
    with pytest.raises(ValueError, match=f"{argument} is 'ignore'; legal: "):
        check_dataset_dicts([record()], "pets", NAMES, **{argument: "ignore"})


def test_bccd_has_exactly_two_boxes_without_area(shared_data):
    root = shared_data / "bccd"
    names = voc_class_names(root)
    records = load_voc(root, "trainval", names)
    _, report = check_dataset_dicts(records, "bccd", names, on_bad_annotation="drop")
    assert [(p.kind, p.image_id, p.annotation) for p in report.problems] == [
        ("box without area", "BloodImage_00338", "12"),
        ("box without area", "BloodImage_00343", "3"),
    ]
    assert report.dropped_annotations == 2
    assert check_dataset_dicts(load_voc(root, "test", names), "bccd", names)[1].problems == []


@pytest.mark.parametrize("flag", ["0", "1", None, 2, "yes"])
def test_iscrowd_that_no_engine_understands(record, flag):
    """Engines compare it with 0, so that such an object is silently not trained on."""
    dicts = [record(annotation(), annotation(iscrowd=flag))]
    with pytest.raises(ValueError, match=rf"1.jpg \(image id 1\), annotation 1: found iscrowd {flag!r}, legal: 0 or 1"):
        check_dataset_dicts(dicts, "pets", NAMES)
    (clean,), report = check_dataset_dicts(dicts, "pets", NAMES, on_bad_annotation="drop")
    known = {"0": 0, "1": 1, None: 0}
    expected = [annotation(iscrowd=known[flag])] if flag in known else []
    assert clean["annotations"] == [annotation(), *expected]
    assert (report.repaired_annotations, report.dropped_annotations) == (len(expected), 1 - len(expected))


@pytest.mark.parametrize("flag", [0, 1, True, False, np.int64(1), 1.0])
def test_iscrowd_as_any_number(record, flag):
    assert check_dataset_dicts([record(annotation(iscrowd=flag))], "pets", NAMES)[1].problems == []


BITS = np.ones((30, 40), dtype=bool)  # the mappers of both engines take polygons and RLE only


@pytest.mark.parametrize("policy", ["drop", "clip"])
@pytest.mark.parametrize(
    "bad", [[[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], [1, 2, 9, 2, 9, 9], {"size": [3, 4]}, "x", BITS]
)
def test_a_malformed_polygon_does_not_cost_its_box(record, bad, policy):
    dicts = [record(annotation(segmentation=bad))]
    with pytest.raises(ValueError, match=r"(?s)malformed polygon: .*1.jpg \(image id 1\), annotation 0.*keeps the box"):
        check_dataset_dicts(dicts, "pets", NAMES)
    (clean,), _ = check_dataset_dicts(dicts, "pets", NAMES, on_bad_annotation=policy)
    assert clean["annotations"] == [annotation()]


def test_several_faults_of_one_annotation(record):
    bad = annotation([-5, 5, 20, 20], iscrowd="0", segmentation=[[1, 2]])
    (clean,), report = check_dataset_dicts([record(bad)], "pets", NAMES, on_bad_annotation="clip")
    assert clean["annotations"] == [annotation([0, 5, 20, 20], iscrowd=0)] and report.clipped_annotations == 1
    (clean,), _ = check_dataset_dicts([record(bad)], "pets", NAMES, on_bad_annotation="drop")
    assert clean["annotations"] == []


@pytest.mark.parametrize("check", ["header", "decode"])
@pytest.mark.parametrize(("dtype", "name"), [(np.uint16, "deep.png"), (np.uint16, "deep.tif"), (np.float32, "f.tif")])
def test_images_of_more_than_8_bits(record, tmp_path, check, dtype, name):
    """A conversion to 8 bits would clip them: nearly all pixels would be white."""
    deep = {**record(image_id=2), "file_name": str(tmp_path / name)}
    Image.fromarray(np.full((30, 40), 5000, dtype)).save(deep["file_name"])
    with pytest.raises(ValueError, match=f"image with more than 8 bits a channel: .*{name}.*found Pillow mode [IF]"):
        check_dataset_dicts([record(), deep], "pets", NAMES, check_images=check)
    clean, _ = check_dataset_dicts([record(), deep], "pets", NAMES, check_images=check, on_bad_image="drop")
    assert [r["image_id"] for r in clean] == [1]


@pytest.mark.parametrize("check", ["header", "decode"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_the_size_after_rotation_is_that_of_the_reader(record, check, suffix):
    exif = Image.Exif()
    exif[274] = 6
    rotated = record(size=(30, 40), exif=exif, name=f"turned.{suffix}")
    assert read_image(rotated["file_name"], "BGR").shape == (40, 30, 3)
    assert check_dataset_dicts([rotated], "pets", NAMES, check_images=check)[1].problems == []


def test_auto_decodes_small_sets_only(record, monkeypatch):
    good, bad = record(), record(image_id=2, name="bad.png")
    path = Path(bad["file_name"])
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40), np.uint8)).save(path.with_suffix(".jpg"))
    bad["file_name"] = str(path.with_suffix(".jpg"))
    data = path.with_suffix(".jpg").read_bytes()
    path.with_suffix(".jpg").write_bytes(data[: len(data) // 2])
    monkeypatch.setattr(record_checks, "MAX_DECODED", 1)
    assert check_dataset_dicts([good, bad], "pets", NAMES, check_images="auto")[1].problems == []
    monkeypatch.setattr(record_checks, "MAX_DECODED", 2)
    with pytest.raises(ValueError, match="unreadable image: .*bad.jpg"):
        check_dataset_dicts([good, bad], "pets", NAMES, check_images="auto")


@pytest.mark.parametrize(
    ("check", "how"), [("decode", "files read whole"), ("header", "only the headers"), ("none", "files not read")]
)
def test_the_log_says_how_far_the_images_were_read(record, check, how, caplog):
    with caplog.at_level("INFO"):
        check_dataset_dicts([record(annotation())], "pets", NAMES, check_images=check)
    assert f"Dataset 'pets': 1 images ({how}" in caplog.text and "no problems" in caplog.text


def test_a_long_check_shows_its_progress(record, monkeypatch, caplog):
    monkeypatch.setattr(image_probe, "PROGRESS_SECONDS", 0.0)
    with caplog.at_level("INFO"):
        check_dataset_dicts([record(), record(image_id=2)], "pets", NAMES, check_images="decode")
    assert "Dataset 'pets': 1 of 2 image files decoded" in caplog.text
