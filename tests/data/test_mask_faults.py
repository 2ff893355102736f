"""Faults of masks in COCO files: each is named, and refused, dropped or repaired before training."""

import json
import random
import subprocess
import sys

import numpy as np
import pycocotools.mask as mask_util
import pytest

from retinanet_ext.d2 import MetadataCatalog
from retinanet_ext.data.checked_records import dataset_for_evaluation
from retinanet_ext.data.doctor import mask_faults
from retinanet_ext.data.doctor.run_lengths import bounding_box, checked_runs
from tests.data.coco_faults import BOX, HEIGHT, POLYGON, WIDTH, annotation, config, load, register, rle, write

pytestmark = pytest.mark.usefixtures("catalogs")
NAN = float("nan")

# Segmentation of annotation 77 -> words of the message. None of them leaves anything of the object.
DROPPED = {
    "two points": ([[5, 5, 20, 15]], "malformed polygon.*1 of 1 polygons.*4 coordinates.*at least 6"),
    "odd": ([[5, 5, 20, 5, 20, 15, 5]], "malformed polygon.*7 coordinates.*even number"),
    "not finite": ([[5, 5, 20, 5, 20, NAN]], "malformed polygon.*coordinate nan.*finite"),
    "not numbers": ([[5, 5, 20, 5, 20, "15"]], "malformed polygon.*coordinate '15'.*finite numbers"),
    "null": ([[5, 5, 20, 5, 20, None]], "malformed polygon.*coordinate None"),
    "not lists": ([5, 5, 20, 5, 20, 15], "malformed polygon.*6 of 6 polygons.*with 5"),
    "word": ("masked", "malformed polygon.*type str"),
    "line": ([[5, 5, 10, 10, 15, 15]], "empty mask.*cover no area"),
    "outside the image": ([[50, 5, 60, 5, 60, 15]], "empty mask.*cover no area of the image"),
    "elsewhere": ([[25, 20, 38, 20, 38, 29, 25, 29]], "mask outside its box.*\\[25, 20, 38, 29\\].*\\[5, 5, 20, 15\\]"),
    "relative": ([[0.1, 0.2, 0.5, 0.2, 0.5, 0.5]], "mask outside its box"),
    "none": (None, "object without a mask.*MODEL.MASK_ON"),
    "empty list": ([], "object without a mask"),
    "another size": (rle(size=(WIDTH, HEIGHT)), r"RLE of another size.*\[40, 30\].*\[30, 40\], the size of the image"),
    "size": ({"size": [30], "counts": [1200]}, r"does not decode.*size \[30\]"),
    "no counts": ({"size": [30, 40]}, "does not decode.*without counts"),
    "sum": ({"size": [30, 40], "counts": [100, 200]}, r"does not decode.*300 pixels in all.*which has 1200"),
    "negative": ({"size": [30, 40], "counts": [1300, -100]}, "does not decode.*negative run of -100"),
    "fraction": ({"size": [30, 40], "counts": [600, 599.5, 0.5]}, "does not decode.*counts with 599.5"),
    "counts of words": ({"size": [30, 40], "counts": ["1200"]}, "does not decode.*counts with '1200'"),
    "cut": ({"size": [30, 40], "counts": rle()["counts"][:-1]}, "does not decode"),
    "characters": ({"size": [30, 40], "counts": "not RLE!"}, "does not decode.*byte b't' at position 2"),
    "empty string": ({"size": [30, 40], "counts": ""}, "does not decode.*end inside a number"),
    "empty RLE": (rle(0, 0, 0, 0), "empty mask.*without a pixel"),
    "empty counts": (rle(0, 0, 0, 0, compressed=False), "empty mask.*without a pixel"),
    "RLE elsewhere": (rle(25, 20, 38, 29), "mask outside its box"),
}  # fmt: skip


def faulty(segmentation):
    bad = annotation(77) if segmentation is None else annotation(77, segmentation=segmentation)
    return [annotation(1, segmentation=POLYGON), bad]


@pytest.mark.parametrize("way", ["config", "register_coco_instances"])
@pytest.mark.parametrize("fault", DROPPED)
def test_each_fault_is_refused_by_name_or_dropped(tmp_path, fault, way):
    segmentation, words = DROPPED[fault]
    path = write(tmp_path, faulty(segmentation))
    register(tmp_path, way)
    with pytest.raises(ValueError, match=f"(?s){words}") as caught:
        load(config(tmp_path, masks=True, mask_format="bitmask"))
    for part in ("has 1 problems", path, "1.png (image id 1)", "annotation 1 (id 77)", "ON_BAD_ANNOTATION drop"):
        assert part in str(caught.value)
    for policy in ("drop", "clip"):
        kept = load(config(tmp_path, policy, masks=True, mask_format="bitmask"))
        assert [a["id"] for a in kept] == [1] and kept[0]["segmentation"] == POLYGON


@pytest.mark.parametrize("fault", DROPPED)
def test_box_only_runs_are_no_stricter(tmp_path, fault):
    """Only what was checked before is refused, and the box always stays."""
    segmentation, words = DROPPED[fault]
    write(tmp_path, faulty(segmentation))
    register(tmp_path, "config")
    known = ("two points", "odd", "not lists", "word", "no counts")
    if fault in known:
        with pytest.raises(ValueError, match="malformed polygon"):
            load(config(tmp_path))
    kept = load(config(tmp_path, "drop" if fault in known else "error"))
    assert [(a["id"], a["bbox"]) for a in kept] == [(1, BOX), (77, BOX)]


@pytest.mark.parametrize("policy", ["drop", "clip"])
def test_the_good_polygons_of_an_object_stay(tmp_path, policy):
    write(tmp_path, faulty([[1, 2], *POLYGON, [5, 5, 20, 5, 20, NAN]]))
    register(tmp_path, "config")
    with pytest.raises(ValueError, match="keeps the other polygons of the object"):
        load(config(tmp_path, masks=True))
    assert [a["segmentation"] for a in load(config(tmp_path, policy, masks=True))] == [POLYGON, POLYGON]


@pytest.mark.parametrize("way", ["config", "register_coco_instances"])
def test_masks_of_every_kind_pass_and_are_counted(tmp_path, way, caplog):
    crowd = annotation(5, iscrowd=1, segmentation=rle(0, 0, 40, 30, compressed=False), bbox=[0, 0, 3, 3])
    annotations = [
        annotation(1, segmentation=POLYGON),
        annotation(2, segmentation=rle()),
        annotation(3, segmentation=rle(compressed=False)),
        annotation(4, segmentation=[*POLYGON, [6, 6, 8, 6, 8, 8]]),
        crowd,
    ]
    write(tmp_path, annotations)
    register(tmp_path, way)
    with caplog.at_level("INFO"):
        kept = load(config(tmp_path, masks=True, mask_format="bitmask"))
    assert "no problems. Of 4 objects, 4 have masks (2 polygons, 2 RLE)" in caplog.text
    truth = np.zeros((HEIGHT, WIDTH), np.uint8)
    truth[5:15, 5:20] = 1
    assert all((mask_util.decode(a["segmentation"]) == truth).all() for a in kept[1:3])


@pytest.mark.parametrize("policy", ["error", "drop"])
def test_polygon_format_cannot_take_encoded_masks(tmp_path, policy):
    """No policy drops objects that another setting trains on."""
    write(tmp_path, [annotation(1, segmentation=POLYGON), annotation(2, segmentation=rle())])
    register(tmp_path, "config")
    with pytest.raises(ValueError, match=r"'data': 1 of 2 .*RLE.*annotation id 2.*set INPUT.MASK_FORMAT bitmask"):
        load(config(tmp_path, policy, masks=True))
    # An evaluation takes both, and so do crowds, which are not trained on.
    assert len(load(config(tmp_path, policy, masks=True, train=(), test=("data",)))) == 2
    write(tmp_path, [annotation(1, segmentation=POLYGON), annotation(2, segmentation=rle(), iscrowd=1)])
    assert len(load(config(tmp_path, policy, masks=True, train=("data",), test=()))) == 2


@pytest.mark.parametrize("policy", ["error", "drop"])
def test_data_without_masks(tmp_path, policy):
    write(tmp_path, [annotation(1), annotation(2, segmentation=[]), annotation(3, iscrowd=1, segmentation=rle())])
    register(tmp_path, "config")
    with pytest.raises(ValueError, match="MASK_ON is True, but none of the 2 objects of dataset 'data' .*MASK_ON Fals"):
        load(config(tmp_path, policy, masks=True))


def test_crowds_are_decoded_too(tmp_path):
    """An evaluator decodes them, although nobody trains on them."""
    bad = annotation(7, iscrowd=1, segmentation={"size": [30, 40], "counts": [5]})
    write(tmp_path, [annotation(1, segmentation=POLYGON), bad])
    register(tmp_path, "config")
    with pytest.raises(ValueError, match=r"RLE that does not decode: .*\(id 7\)"):
        load(config(tmp_path, masks=True))


@pytest.mark.parametrize("policy", ["error", "drop", "clip"])
def test_a_loose_box_is_counted_and_kept(tmp_path, policy, caplog):
    """Hand-drawn and amodal boxes are larger than their masks."""
    small = annotation(2, segmentation=[[5, 5, 12, 5, 12, 15, 5, 15]])
    within = annotation(3, segmentation=[[6.9, 6.9, 18.1, 6.9, 18.1, 13.1, 6.9, 13.1]])
    write(tmp_path, [annotation(1, segmentation=POLYGON), small, within])
    register(tmp_path, "config")
    kept = load(config(tmp_path, policy, masks=True))
    assert [a["bbox"] for a in kept] == [BOX] * 3
    assert "1 annotations are kept as they are" in caplog.text
    assert "mask and box differ: " in caplog.text and "(id 2)" in caplog.text and "(id 3)" not in caplog.text


def test_the_ground_truth_follows_the_policy(tmp_path):
    """Boxes are clipped in the file for the evaluator, and a mask in bytes does not stop it."""
    outside = annotation(2, segmentation=rle(30, 5, 40, 15, compressed=False), bbox=[30, 5, 20, 10])
    write(tmp_path, [annotation(1, segmentation=[[1, 2], *POLYGON]), outside, annotation(3)])
    register(tmp_path, "config")
    name = dataset_for_evaluation(config(tmp_path, "clip", masks=True, train=(), test=("data",)), "data")
    with open(MetadataCatalog.get(name).json_file) as file:
        found = {a["id"]: a for a in json.load(file)["annotations"]}
    assert set(found) == {1, 2} and found[1]["segmentation"] == POLYGON
    assert found[2]["bbox"] == [30, 5, 10, 10] and found[2]["segmentation"] == outside["segmentation"]


def test_runs_and_their_box_against_pycocotools():
    rng = np.random.default_rng(0)
    for density in np.linspace(0, 1, 60):
        height, width = rng.integers(1, 70, 2)
        mask = (rng.random((height, width)) < density).astype(np.uint8)
        encoded = mask_util.encode(np.asfortranarray(mask))
        runs = checked_runs(encoded)
        decoded = np.repeat(np.arange(len(runs)) % 2, runs).reshape(width, height).T
        assert np.array_equal(decoded, mask)
        ys, xs = np.nonzero(mask)
        expected = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else None
        assert bounding_box(runs, height) == expected


_FUZZ = """
import json, sys
import numpy as np
import pycocotools.mask as mask_util
from retinanet_ext.data.doctor.run_lengths import checked_runs

for text in json.load(sys.stdin):
    mask = {"size": [30, 40], "counts": text}
    try:
        runs = checked_runs(mask)
    except ValueError as error:
        assert str(error)
        print("refused")
    else:
        decoded = mask_util.decode(mask)
        assert (np.repeat(np.arange(len(runs)) % 2, runs).reshape(40, 30).T == decoded).all(), text
        print("valid")
"""


def test_no_corruption_of_an_encoded_mask_reaches_pycocotools():
    """pycocotools does not check the string. What passes decodes to just the runs that the check has seen."""
    rng = random.Random(0)
    mask = (np.random.default_rng(0).random((30, 40)) < 0.3).astype(np.uint8)
    text = mask_util.encode(np.asfortranarray(mask))["counts"].decode()
    corrupted = [text]
    for _ in range(200):
        characters = list(text)
        for _ in range(rng.randint(1, 3)):
            index = rng.randrange(len(characters))
            change = rng.choice(["replace", "delete", "insert", "swap", "cut"])
            if change == "replace":
                characters[index] = chr(rng.randrange(32, 256))
            elif change == "delete":
                del characters[index]
            elif change == "insert":
                characters.insert(index, chr(rng.randrange(48, 112)))
            elif change == "swap":
                characters[index - 1], characters[index] = characters[index], characters[index - 1]
            else:
                characters = characters[: index + 1]
        corrupted.append("".join(characters))
    done = subprocess.run(
        [sys.executable, "-c", _FUZZ], input=json.dumps(corrupted), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    verdicts = done.stdout.split()
    assert len(verdicts) == 201 and verdicts[0] == "valid" and verdicts.count("refused") > 150


def test_a_polygon_of_an_array_and_huge_numbers():
    assert mask_faults.is_good_polygon(np.array([1.0, 1, 5, 1, 5, 5]))
    assert not mask_faults.is_good_polygon([10**400, 1, 5, 1, 5, 5])
    assert not mask_faults.is_good_polygon([float("inf"), float("-inf"), 5, 1, 5, 5])
    assert not mask_faults.is_good_polygon([True, 1, 5, 1, 5, 5])
