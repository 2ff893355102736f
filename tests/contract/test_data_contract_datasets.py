"""Dataset records and catalogs of the embedded engine, side by side with Detectron2's."""

import json

import pytest

from retinanet_ext.lite import data as lite_data
from retinanet_ext.lite.data.builtin_datasets import COCO_KEYPOINT_SPLITS, COCO_SPLITS

REASON = "Detectron2 is not installed: nothing to compare with"
d2_data = pytest.importorskip("detectron2.data", reason=REASON)
d2_datasets = pytest.importorskip("detectron2.data.datasets", reason=REASON)

ENGINES = pytest.mark.parametrize("engine", [lite_data, d2_data], ids=["lite", "detectron2"])


@pytest.fixture
def fresh_name(request):
    name = f"contract {request.node.name}"
    yield name
    for engine in (lite_data, d2_data):
        engine.DatasetCatalog.pop(name, None)
        engine.MetadataCatalog.pop(name, None)


def _load_both(json_file, image_root, name, **kwargs):
    ours = lite_data.load_coco_json(str(json_file), str(image_root), name, **kwargs)
    theirs = d2_datasets.load_coco_json(str(json_file), str(image_root), name, **kwargs)
    return ours, theirs


@pytest.mark.parametrize("kind", ["instances", "person_keypoints"])
@pytest.mark.parametrize("split", ["train2017", "val2017"])
@pytest.mark.parametrize("named", [True, False], ids=["named", "anonymous"])
def test_coco_records(shared_data, fresh_name, kind, split, named):
    root = shared_data / "coco_mini"
    name = fresh_name if named else None
    ours, theirs = _load_both(root / "annotations" / f"{kind}_{split}.json", root / split, name)
    assert ours == theirs
    assert sum(len(record["annotations"]) for record in ours) > 50
    if named:
        expected = d2_data.MetadataCatalog.get(name).as_dict()
        assert lite_data.MetadataCatalog.get(name).as_dict() == expected


def test_coco_records_with_odd_annotations(tmp_path, fresh_name):
    # Unsorted images, categories with gaps, uncompressed RLE, a polygon of two points, extra keys, no `iscrowd`.
    content = {
        "images": [
            {"id": 7, "file_name": "b.jpg", "height": 10, "width": 20},
            {"id": 3, "file_name": "a.jpg", "height": 30, "width": 40},
        ],
        "categories": [{"id": 9, "name": "nine"}, {"id": 4, "name": "four"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 4], "keypoints": [1, 2, 2, 3, 4, 0], "x": 3},
            {"id": 2, "image_id": 7, "category_id": 4, "bbox": [1, 2, 3, 4], "iscrowd": 1,
             "segmentation": {"counts": [5, 10, 185], "size": [10, 20]}},
            {"id": 3, "image_id": 3, "category_id": 4, "bbox": [0, 0, 5, 5], "iscrowd": 0,
             "segmentation": [[1, 2, 4, 2, 4, 6], [1, 2, 3, 4]]},
            {"id": 4, "image_id": 3, "category_id": 4, "bbox": [0, 0, 5, 5], "segmentation": [[1, 2, 3, 4]]},
            {"id": 5, "image_id": 3, "category_id": 4, "bbox": [0, 0, 5, 5], "segmentation": []},
        ],
    }  # fmt: skip
    json_file = tmp_path / "odd.json"
    json_file.write_text(json.dumps(content))
    ours, theirs = _load_both(json_file, tmp_path, fresh_name, extra_annotation_keys=["x"])
    assert ours == theirs
    assert [len(record["annotations"]) for record in ours] == [2, 2]


def test_builtin_coco_detection_names():
    theirs = {name for name in d2_data.DatasetCatalog.list() if name.startswith("coco_") and "panoptic" not in name}
    assert set(COCO_SPLITS) == theirs


@pytest.mark.parametrize("name", sorted(COCO_SPLITS))
def test_builtin_names(name):
    ours, theirs = lite_data.MetadataCatalog.get(name).as_dict(), d2_data.MetadataCatalog.get(name).as_dict()
    for key in ("name", "json_file", "image_root", "evaluator_type", "thing_classes",
                "thing_dataset_id_to_contiguous_id"):  # fmt: skip
        assert ours[key] == theirs[key]
    assert len(ours["thing_colors"]) == len(theirs["thing_colors"])
    assert name in lite_data.DatasetCatalog


def test_builtin_keypoint_names():
    theirs = {name for name in d2_data.DatasetCatalog.list() if name.startswith("keypoints_coco_")}
    assert set(COCO_KEYPOINT_SPLITS) == theirs


@pytest.mark.parametrize("name", sorted(COCO_KEYPOINT_SPLITS))
def test_builtin_keypoint_metadata(name):
    ours, theirs = lite_data.MetadataCatalog.get(name).as_dict(), d2_data.MetadataCatalog.get(name).as_dict()
    lines = [[(a, b) for a, b, _ in metadata["keypoint_connection_rules"]] for metadata in (ours, theirs)]
    for key in (*theirs.keys() - {"keypoint_connection_rules"}, "keypoint_names"):
        assert ours[key] == theirs[key]
    assert {frozenset(line) for line in lines[0]} == {frozenset(line) for line in lines[1]}


@pytest.mark.parametrize("filter_empty", [True, False])
def test_dataset_dicts(shared_data, fresh_name, filter_empty):
    root = shared_data / "coco_mini"
    json_file = root / "annotations" / "person_keypoints_val2017.json"
    for engine, load in ((lite_data, lite_data.load_coco_json), (d2_data, d2_datasets.load_coco_json)):
        engine.DatasetCatalog.register(fresh_name, lambda load=load: load(str(json_file), str(root / "val2017")))
    ours = lite_data.get_detection_dataset_dicts(fresh_name, filter_empty=filter_empty)
    theirs = d2_data.get_detection_dataset_dicts(fresh_name, filter_empty=filter_empty, check_consistency=False)
    assert ours == theirs
    # The filter removes something, because not every image shows a person.
    assert (len(ours) < len(json.loads(json_file.read_text())["images"])) == filter_empty


@pytest.mark.parametrize("filter_empty", [True, False])
@pytest.mark.parametrize("minimum", [1, 10, 30])
def test_images_with_few_keypoints(shared_data, fresh_name, minimum, filter_empty):
    root = shared_data / "coco_mini"
    json_file = root / "annotations" / "person_keypoints_val2017.json"
    for engine, load in ((lite_data, lite_data.load_coco_json), (d2_data, d2_datasets.load_coco_json)):
        engine.DatasetCatalog.register(fresh_name, lambda load=load: load(str(json_file), str(root / "val2017")))
    arguments = {"filter_empty": filter_empty, "min_keypoints": minimum}
    ours = lite_data.get_detection_dataset_dicts(fresh_name, **arguments)
    theirs = d2_data.get_detection_dataset_dicts(fresh_name, check_consistency=False, **arguments)
    assert ours == theirs
    # Independent of both: COCO states the number of labelled keypoints of each annotation.
    labelled = {}
    for annotation in json.loads(json_file.read_text())["annotations"]:
        labelled[annotation["image_id"]] = labelled.get(annotation["image_id"], 0) + annotation["num_keypoints"]
    assert {r["image_id"] for r in ours} <= {image for image, count in labelled.items() if count >= minimum}


@ENGINES
def test_dataset_catalog(engine, fresh_name):
    catalog = engine.DatasetCatalog
    catalog.register(fresh_name, lambda: [{"image_id": 1}])
    assert fresh_name in catalog and fresh_name in catalog.list()
    assert catalog.get(fresh_name) == [{"image_id": 1}]
    with pytest.raises((ValueError, AssertionError), match="registered"):
        catalog.register(fresh_name, list)
    catalog.remove(fresh_name)
    assert fresh_name not in catalog
    with pytest.raises(KeyError, match="coco_2017_train"):
        catalog.get(fresh_name)
    with pytest.raises(KeyError):
        catalog.remove(fresh_name)


@ENGINES
def test_metadata_catalog(engine, fresh_name):
    metadata = engine.MetadataCatalog.get(fresh_name)
    assert metadata is engine.MetadataCatalog.get(fresh_name)
    assert metadata.set(thing_classes=["cat"]) is metadata
    metadata.thing_classes = ["cat"]
    with pytest.raises((ValueError, AssertionError), match=r"(?s)\['cat'\].*\['dog'\]"):
        metadata.thing_classes = ["dog"]
    assert metadata.get("other", 5) == 5 and metadata.get("other") is None
    assert metadata.as_dict() == {"name": fresh_name, "thing_classes": ["cat"]}
    with pytest.raises(AttributeError, match="other"):
        _ = metadata.other
    assert fresh_name in engine.MetadataCatalog.list()
    engine.MetadataCatalog.remove(fresh_name)
    assert fresh_name not in engine.MetadataCatalog.list()
