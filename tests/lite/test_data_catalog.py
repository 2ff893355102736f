"""Catalogs and the COCO reader of the embedded engine: their messages about bad input."""

import json

import pytest

from retinanet_ext.lite.data import DatasetCatalog, MetadataCatalog, load_coco_json, register_coco_instances
from retinanet_ext.lite.data.builtin_datasets import COCO_CLASSES, COCO_IDS

NAME = "catalog test"


@pytest.fixture(autouse=True)
def clean_catalogs():
    yield
    DatasetCatalog.pop(NAME, None)
    MetadataCatalog.pop(NAME, None)


def _content(**changes):
    content = {
        "images": [{"id": 7, "file_name": "b.jpg", "height": 10, "width": 20}],
        "categories": [{"id": 4, "name": "four"}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 4, "bbox": [1, 2, 3, 4], "iscrowd": 0}],
    }
    content.update(changes)
    return content


def _annotation(**changes):
    return {**_content()["annotations"][0], **changes}


def _load(tmp_path, content):
    json_file = tmp_path / "data.json"
    json_file.write_text(content if isinstance(content, str) else json.dumps(content))
    return load_coco_json(str(json_file), "root", NAME)


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "data.json is not a COCO annotation file: it is not valid JSON"),
        ([], "not a COCO annotation file: no images.*a list"),
        ({"info": 1}, "no images at its top level, found the keys info"),
        ({"images": []}, "no 'categories'"),
        (_content(images=[{"id": 7, "file_name": "b.jpg", "width": 20}]), r"images\[0\] \(id 7\) has no height"),
        (_content(images=_content()["images"] * 2), "1 ids of images occur more than once: 7"),
        (_content(annotations=[_annotation()] * 2), "1 ids of annotations occur more than once: 1"),
        (_content(annotations=[{"image_id": 7}]), r"annotations\[0\] has no id, category_id"),
        (_content(annotations=[_annotation(bbox=[])]), "annotation 1 of image 7 has an empty bbox"),
        (_content(annotations=[_annotation(ignore=1)]), "annotation 1 of image 7 has the flag 'ignore'"),
    ],
)
def test_malformed_coco_file(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        _load(tmp_path, content)


def test_category_that_does_not_exist(tmp_path):
    with pytest.raises(KeyError, match=r"data.json: annotation 1 of image 7 has category_id 77.*\[4\]"):
        _load(tmp_path, _content(annotations=[_annotation(category_id=77)]))


def test_what_is_left_out_is_logged(tmp_path, caplog):
    stray = _annotation(id=5, image_id=1000)
    two_points = _annotation(id=6, segmentation=[[1, 1, 2, 2]])
    triangle = [1, 1, 2, 2, 3, 1]
    trimmed = _annotation(id=8, segmentation=[[1, 1, 2, 2], triangle])
    whole = [_annotation(), _annotation(id=2, segmentation=[triangle]), _annotation(id=3, segmentation=None)]
    records = _load(tmp_path, _content(annotations=[*whole, stray, two_points, trimmed]))
    assert [a.get("segmentation") for a in records[0]["annotations"]] == [None, [triangle], None, [triangle]]
    assert "1 annotations lost malformed polygons beside valid ones: 8" in caplog.text
    assert "1 of 6 annotations belong to no image in the file: 5" in caplog.text
    assert "left out 1 annotations without a valid polygon" in caplog.text and ": 6" in caplog.text


def test_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere.json"):
        load_coco_json("nowhere.json", "root", NAME)


def test_other_classes_under_the_same_name(tmp_path):
    MetadataCatalog.get(NAME).thing_classes = ["five"]
    with pytest.raises(ValueError, match=r"'thing_classes' of dataset 'catalog test'.*\['five'\].*\['four'\]"):
        _load(tmp_path, _content())


def test_registration_is_lazy(tmp_path):
    json_file = tmp_path / "later.json"
    register_coco_instances(NAME, {"thing_colors": [[1, 2, 3]]}, str(json_file), "root")
    json_file.write_text(json.dumps(_content()))
    assert DatasetCatalog.get(NAME)[0]["annotations"][0]["category_id"] == 0
    metadata = MetadataCatalog.get(NAME)
    assert metadata.thing_classes == ["four"] and metadata.thing_colors == [[1, 2, 3]]
    assert metadata.json_file == str(json_file) and metadata.evaluator_type == "coco"


def test_registering_something_that_is_no_function():
    with pytest.raises(TypeError, match="got list"):
        DatasetCatalog.register(NAME, [])


def test_unknown_name_suggests_near_ones():
    with pytest.raises(KeyError, match="Did you mean 'coco_2017_train'"):
        DatasetCatalog.get("coco_2017_trian")


def test_builtin_table():
    assert len(COCO_CLASSES) == len(set(COCO_CLASSES)) == len(COCO_IDS) == 80
    assert COCO_IDS[0] == 1 and COCO_IDS[-1] == 90 and COCO_IDS[11] == 13  # 12, "street sign", is not annotated
    metadata = MetadataCatalog.get("coco_2017_val")
    assert metadata.thing_dataset_id_to_contiguous_id[90] == 79 and metadata.thing_classes[79] == "toothbrush"
    assert len(set(map(tuple, metadata.thing_colors))) == 80
