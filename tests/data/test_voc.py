import numpy as np
import pytest
from PIL import Image

from retinanet_ext.d2 import BoxMode
from retinanet_ext.data.voc import load_voc, voc_class_names

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""


def write_voc(root, objects, split="train", stem="img1"):
    """One image of 40x30 with `objects` [(name, box, difficult)], listed in `split`."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    body = "".join(OBJECT.format(name=n, box=b, difficult=d) for n, b, d in objects)
    xml = f"<annotation><size><width>40</width><height>30</height></size>{body}</annotation>"
    (root / "Annotations" / f"{stem}.xml").write_text(xml)
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(root / "JPEGImages" / f"{stem}.jpg")
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{stem} 1\n\n")


def test_one_based_inclusive_corners_become_xyxy(tmp_path):
    write_voc(tmp_path, [("cat", (1, 1, 40, 30), 0), ("dog", (5, 6, 5, 20), 1), ("cow", (2, 2, 3, 3), 0)])
    assert voc_class_names(tmp_path) == ["cat", "cow", "dog"]
    (record,) = load_voc(tmp_path, "train", ["cat", "dog"])
    assert record["file_name"] == str(tmp_path / "JPEGImages" / "img1.jpg")
    assert (record["image_id"], record["height"], record["width"]) == ("img1", 30, 40)
    full, thin, other = record["annotations"]
    # xmin 1 to xmax 40 are all 40 columns.
    assert full["bbox"] == [0, 0, 40, 30] and full["bbox_mode"] == BoxMode.XYXY_ABS
    assert full["category_id"] == 0 and full["difficult"] == 0
    # Coinciding corners give a box without area, left for the check to find; difficult objects are kept.
    assert thin["bbox"] == [4, 5, 4, 20] and thin["category_id"] == 1 and thin["difficult"] == 1
    assert other["category_id"] == -1 and other["category_name"] == "cow"


def test_bccd(shared_data):
    root = shared_data / "bccd"
    names = voc_class_names(root)
    assert names == ["Platelets", "RBC", "WBC"]
    records = {split: load_voc(root, split, names) for split in ("trainval", "test", "train", "val")}
    assert {split: len(r) for split, r in records.items()} == {"trainval": 292, "test": 72, "train": 205, "val": 87}
    ids = [a["category_id"] for s in ("trainval", "test") for r in records[s] for a in r["annotations"]]
    assert np.bincount(ids).tolist() == [361, 4155, 372]
    # First object of the first image in the file: WBC, corners 260, 177, 491, 376.
    assert records["trainval"][0]["annotations"][0] == {
        "category_id": 2, "category_name": "WBC", "bbox": [259, 176, 491, 376],
        "bbox_mode": BoxMode.XYXY_ABS, "difficult": 0,
    }  # fmt: skip


def test_unknown_split_lists_the_known_ones(tmp_path):
    write_voc(tmp_path, [], split="train")
    write_voc(tmp_path, [], split="val")
    with pytest.raises(FileNotFoundError, match=r"tset\.txt does not exist; splits found there: train, val"):
        load_voc(tmp_path, "tset", [])


def test_missing_annotation_file(tmp_path):
    write_voc(tmp_path, [])
    (tmp_path / "Annotations" / "img1.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"img1\.xml does not exist"):
        load_voc(tmp_path, "train", [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation><size>", "not well-formed XML"),
        ("<annotation/>", "<size> is missing"),
        ("<annotation><size><width>4</width></size></annotation>", "<size> has no <height>"),
        ("<annotation><size><width>a</width><height>3</height></size></annotation>", "'a'; a number is needed"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotation>&b;</annotation>", "entity definitions are not accepted"),
        ("<annotation><size><width>4</width><height>3</height></size><object/></annotation>", "has no <name>"),
        (
            "<annotation><size><width>4</width><height>3</height></size><object><name>x</name></object></annotation>",
            "object 'x' has no <bndbox>",
        ),
    ],
)
def test_broken_annotation_files(tmp_path, content, message):
    write_voc(tmp_path, [])
    (tmp_path / "Annotations" / "img1.xml").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_voc(tmp_path, "train", ["x"])
    assert "img1.xml" in str(caught.value)


def test_a_difficult_flag_that_is_no_integer(tmp_path):
    write_voc(tmp_path, [("cat", (1, 1, 9, 9), "Unspecified")])
    with pytest.raises(ValueError, match=r"img1\.xml: <difficult> of <object> is 'Unspecified'; legal: 0, 1"):
        load_voc(tmp_path, "train", ["cat"])
    write_voc(tmp_path, [("cat", (1, 1, 9, 9), "")])
    assert load_voc(tmp_path, "train", ["cat"])[0]["annotations"][0]["difficult"] == 0


def test_no_objects_at_all(tmp_path):
    with pytest.raises(ValueError, match="is this the root of VOC-format data"):
        voc_class_names(tmp_path)
