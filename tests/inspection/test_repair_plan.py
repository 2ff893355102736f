"""Repaired copies: coordinates by hand, files as they are written."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from retinanet_ext.inspection.datasets.image_facts import _TURNS
from retinanet_ext.inspection.datasets.repair_plan import turned_point
from tests.faults.bad_dataset import write_bad_coco, write_bad_voc, write_bad_yolo
from tests.faults.test_bad_dataset import BOXES, config_words, doctor


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_points_turn_as_pillow_turns_pixels(orientation):
    pixels = np.zeros((4, 6), np.uint8)
    pixels[1, 4] = 255
    turned = np.asarray(Image.fromarray(pixels).transpose(_TURNS[orientation]))
    (y,), (x,) = np.nonzero(turned)
    assert turned_point(4.5, 1.5, (6, 4), orientation) == (x + 0.5, y + 0.5)


@pytest.fixture
def copy(tmp_path):
    """Makes the bad data, repairs them, and gives the folder of the copy and the list of changes."""

    def make(write):
        items, _ = write(tmp_path / f"{write.__name__}_copied")
        doctor(BOXES, config_words(items), tmp_path / "copy")
        return tmp_path / "copy" / items[0]["NAME"], json.loads((tmp_path / "copy" / "changes.json").read_text())

    return make


def test_voc_boxes_turn_with_their_picture_and_are_cut(copy):
    folder, changes = copy(write_bad_voc)

    def boxes(stem):
        root = ElementTree.parse(folder / "Annotations" / f"{stem}.xml").getroot()
        size = tuple(int(root.find("size").find(key).text) for key in ("width", "height"))
        found = [[item.find("bndbox").find(k).text for k in ("xmin", "ymin", "xmax", "ymax")]
                 for item in root.iter("object")]  # fmt: skip
        return size, [[float(value) for value in box] for box in found]

    # 96x64 before a quarter turn to the right: x from 80 to 95 becomes y, and y from 10 to 30 becomes 64 - y.
    assert boxes("turned") == ((64, 96), [[35, 81, 54, 95]])
    assert boxes("good_2") == ((96, 64), [[11, 11, 96, 30], [51, 21, 80, 50]])
    assert boxes("good_1") == ((96, 64), [[11, 11, 40, 30]])
    assert not (folder / "Annotations" / "gone.xml").exists()
    done = {(change["file_name"] or "").rpartition("/")[2]: change["change"] for change in changes}
    assert done["gone.jpg"] == "image left out" and done["turned.jpg"] == "boxes turned"
    assert done["good_3.xml"] == "left out"


def test_coco_entries_that_are_kept_stay_as_they_were(copy):
    folder, changes = copy(write_bad_coco)
    original = json.loads((folder.parents[1] / "write_bad_coco_copied" / "train.json").read_text())
    repaired = json.loads((folder / "annotations.json").read_text())
    before = {a["id"]: a for a in original["annotations"] if isinstance(a, dict) and a["id"] in (1, 2, 3, 4, 5, 6)}
    after = {a["id"]: a for a in repaired["annotations"]}
    # Id 1 occurs twice in the original; the second one gets a new id.
    assert [after[key] for key in (2, 3, 4, 5, 6)] == [before[key] for key in (2, 3, 4, 5, 6)]
    assert after[1]["image_id"] == 1 and len(after) == len(repaired["annotations"])
    renumbered = [a for a in repaired["annotations"] if a["bbox"] == [40, 5, 20, 10]]
    assert len(renumbered) == 1 and renumbered[0]["id"] > 214
    assert after[202]["bbox"] == [80, 10, 16, 10] and after[206]["iscrowd"] == 0
    assert after[208]["segmentation"] == [] and 200 not in after and 212 not in after
    sizes = {image["file_name"]: (image["width"], image["height"]) for image in repaired["images"]}
    assert sizes["before_exif.jpg"] == (64, 96) and sizes["size.jpg"] == (96, 64) == sizes["no_size.jpg"]
    assert {c["name"] for c in repaired["categories"]} == {"cat", "dog"}
    assert {path.name for path in (folder / "images").iterdir()} == set(sizes)
    assert all(change["because"] for change in changes)


def test_yolo_lines_that_are_kept_stay_as_they_were(copy):
    folder, _ = copy(write_bad_yolo)
    lines = (folder / "labels" / "good_1.txt").read_text().splitlines()
    # The box from 0.7 to 1.1 of the width is cut at 1.
    assert lines == ["0 0.3 0.3 0.2 0.2", "1 0.7 0.6 0.2 0.3", "0 0.85 0.5 0.3 0.1"]
