import json
from types import SimpleNamespace

import pytest
from PIL import Image

from retinanet_ext.config.keys import add_retinanet_ext_config
from retinanet_ext.d2 import COCOEvaluator, DatasetCatalog, MetadataCatalog, get_cfg
from retinanet_ext.data import coco_file
from retinanet_ext.data.coco_file import read_coco_file
from retinanet_ext.data.doctor.record_checks import check_dataset_dicts
from retinanet_ext.data.generated_shapes import write_shapes
from retinanet_ext.data.registration import register_custom_datasets
from retinanet_ext.data.shape_drawing import CLASS_NAMES

pytestmark = pytest.mark.usefixtures("catalogs")

VOC = {"NAME": "pets", "FORMAT": "voc", "ROOT": "pets", "SPLIT": "train"}
COCO = {"NAME": "birds", "FORMAT": "coco", "JSON": "birds.json", "IMAGES": "birds"}


def register(*items):
    register_custom_datasets(SimpleNamespace(DATASETS=SimpleNamespace(CUSTOM=list(items))))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    return tmp_path


def write_coco(folder, **changes):
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 40, "height": 30}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 20, "bbox": [1, 2, 3, 4], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 10, "bbox": [5, 6, 7, 8], "iscrowd": 1},
        ],
        "categories": [{"id": 20, "name": "crow"}, {"id": 10, "name": "wren"}],
        **changes,
    }
    (folder / "birds").mkdir(exist_ok=True, parents=True)
    (folder / "birds.json").write_text(json.dumps(content))


def test_from_yaml_alone(here):
    write_coco(here)
    (here / "config.yaml").write_text(
        "DATASETS:\n  CUSTOM:\n    - {NAME: birds, FORMAT: coco, JSON: birds.json, IMAGES: birds}\n"
    )
    cfg = get_cfg()
    add_retinanet_ext_config(cfg)
    cfg.merge_from_file(str(here / "config.yaml"))
    register_custom_datasets(cfg)
    (record,) = DatasetCatalog.get("birds")
    assert record["file_name"] == str(here / "birds" / "a.jpg") and record["image_id"] == 7
    # Ids in the order of the file's ids: wren (10) is 0, crow (20) is 1. The crowd is kept.
    assert [(a["category_id"], a["iscrowd"], a["id"]) for a in record["annotations"]] == [(1, 0, 1), (0, 1, 2)]
    metadata = MetadataCatalog.get("birds")
    assert metadata.thing_classes == ["wren", "crow"] and metadata.evaluator_type == "coco"
    assert metadata.thing_dataset_id_to_contiguous_id == {10: 0, 20: 1}
    assert metadata.json_file == str(here / "birds.json") and metadata.image_root == str(here / "birds")
    assert DatasetCatalog.get("birds") == [record]


def test_classes_set_the_order(here):
    write_coco(here)
    register({**COCO, "CLASSES": ["crow", "wren"]})
    assert MetadataCatalog.get("birds").thing_classes == ["crow", "wren"]
    assert [a["category_id"] for a in DatasetCatalog.get("birds")[0]["annotations"]] == [0, 1]
    assert MetadataCatalog.get("birds").thing_dataset_id_to_contiguous_id == {10: 1, 20: 0}


def test_class_names_that_are_numbers(here):
    write_coco(here, categories=[{"id": 20, "name": 7}, {"id": 10, "name": "wren"}])
    register(COCO)
    DatasetCatalog.get("birds")
    assert MetadataCatalog.get("birds").thing_classes == ["wren", "7"]


def test_a_folder_instead_of_a_file(here):
    write_coco(here)
    register({**COCO, "JSON": "birds"})
    with pytest.raises(ValueError, match=f"{here}/birds is not a COCO annotation file: .*directory"):
        DatasetCatalog.get("birds")


def test_categories_outside_of_classes_are_left_to_the_check(here):
    write_coco(here)
    register({**COCO, "CLASSES": ["wren", "jay"]})
    records = DatasetCatalog.get("birds")
    assert [a["category_id"] for a in records[0]["annotations"]] == [-1, 0]
    # The file has other classes than the dataset, so the evaluator must not read it.
    assert MetadataCatalog.get("birds").get("json_file", None) is None
    with pytest.raises(ValueError, match=r"annotation 0 \(id 1\): found category_id -1 \(crow\)"):
        check_dataset_dicts(records, "birds", ["wren", "jay"], check_images="none")


def test_category_that_the_file_does_not_define(here):
    write_coco(here, categories=[{"id": 10, "name": "wren"}])
    register(COCO)
    records = DatasetCatalog.get("birds")
    with pytest.raises(ValueError, match=r"category_id -1 \(category id 20\), legal: 0 to 0 \(wren\)"):
        check_dataset_dicts(records, "birds", ["wren"], check_images="none")


def test_voc_on_real_data(shared_data, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shared_data))
    register({"NAME": "cells", "FORMAT": "voc", "ROOT": "bccd", "SPLIT": "test"})
    assert len(DatasetCatalog.get("cells")) == 72
    metadata = MetadataCatalog.get("cells")
    assert metadata.thing_classes == ["Platelets", "RBC", "WBC"] and metadata.evaluator_type == "coco"
    assert metadata.get("json_file", None) is None


def test_coco_on_real_data_keeps_all_that_the_file_has(shared_data, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shared_data))
    json_file = "coco_mini/annotations/instances_val2017.json"
    register({**COCO, "JSON": json_file, "IMAGES": "coco_mini/val2017"})
    records = DatasetCatalog.get("birds")
    content = json.loads((shared_data / json_file).read_text())
    assert len(records) == 79
    assert sum(len(r["annotations"]) for r in records) == len(content["annotations"])
    assert sum(a["iscrowd"] for r in records for a in r["annotations"]) == sum(
        a["iscrowd"] for a in content["annotations"]
    )
    assert check_dataset_dicts(records, "birds", MetadataCatalog.get("birds").thing_classes)[1].problems == []


def test_generated_shapes_pass_the_check(tmp_path):
    write_shapes(tmp_path / "shapes", 4, 2, image_size=64)
    items = [
        {"NAME": f"shapes_{split}", "FORMAT": "coco", "IMAGES": str(tmp_path / "shapes" / split),
         "JSON": str(tmp_path / "shapes" / "annotations" / f"shapes_{split}.json")}
        for split in ("train", "val")
    ]  # fmt: skip
    register(*items)
    for item in items:
        records = DatasetCatalog.get(item["NAME"])
        assert check_dataset_dicts(records, item["NAME"], CLASS_NAMES, check_images="decode")[1].problems == []
        assert MetadataCatalog.get(item["NAME"]).thing_classes == list(CLASS_NAMES)


def test_the_evaluator_takes_voc_data(shared_data, tmp_path):
    """The evaluator converts the records, including text image ids, to ground truth."""
    import torch

    from retinanet_ext.d2 import Boxes, Instances

    register({"NAME": "cells", "FORMAT": "voc", "ROOT": str(shared_data / "bccd"), "SPLIT": "test"})
    evaluator = COCOEvaluator("cells", tasks=("bbox",), distributed=False, output_dir=str(tmp_path))
    evaluator.reset()
    for record in DatasetCatalog.get("cells"):
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes = Boxes(torch.tensor([a["bbox"] for a in record["annotations"]]).reshape(-1, 4))
        instances.scores = torch.ones(len(instances.pred_boxes))
        instances.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]], dtype=torch.int64)
        evaluator.process([record], [{"instances": instances}])
    # The ground truth as predictions: everything is found.
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100.0, abs=0.1)


def test_again_is_a_no_op_and_something_else_is_a_difference(here):
    register(VOC, COCO)
    register(dict(VOC), dict(COCO))
    with pytest.raises(ValueError, match="'pets' is registered already") as caught:
        register({**VOC, "SPLIT": "val", "CLASSES": ["cat"]})
    assert "SPLIT: 'train' -> 'val'" in str(caught.value) and "CLASSES: None -> ['cat']" in str(caught.value)
    assert "ROOT" not in str(caught.value)
    with pytest.raises(ValueError, match=f"ROOT: {here}/pets -> {here}/dogs"):
        register({**VOC, "ROOT": "dogs"})


def test_a_name_that_belongs_to_other_code():
    DatasetCatalog.register("pets", lambda: [])
    with pytest.raises(ValueError, match="'pets' belongs to a dataset that was registered elsewhere"):
        register(VOC)


def test_relative_paths_prefer_the_environment_then_the_working_directory(here, monkeypatch):
    write_coco(here / "work")
    write_coco(here / "env")
    (here / "env" / "birds.json").unlink()
    monkeypatch.chdir(here / "work")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(here / "env"))
    register(COCO)
    DatasetCatalog.get("birds")
    metadata = MetadataCatalog.get("birds")
    assert metadata.json_file == str(here / "work" / "birds.json")
    assert metadata.image_root == str(here / "env" / "birds")


def test_missing_files_name_both_places(here, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(here / "env"))
    register(VOC)
    with pytest.raises(FileNotFoundError, match=f"'pets': ROOT not found. Tried: {here}/env/pets, {here}/pets"):
        DatasetCatalog.get("pets")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({**VOC, "FORMAT": "tfrecord"}, "FORMAT is 'tfrecord'; legal: coco, voc, yolo"),
        ({**VOC, "FORMAT": "VOC"}, "FORMAT is 'VOC'.*Did you mean voc"),
        ({"NAME": "x"}, "FORMAT is None"),
        ({**VOC, "SPLT": "val"}, "unknown key 'SPLT'.*Did you mean SPLIT"),
        ({**VOC, "root": "pets"}, "unknown key 'root'.*Did you mean ROOT"),
        ({**VOC, "JSON": "a.json"}, "unknown key 'JSON'; legal for FORMAT voc: NAME, FORMAT, ROOT, SPLIT,"),
        ({"NAME": "pets", "FORMAT": "voc"}, "missing ROOT; FORMAT voc needs"),
        ({**COCO, "SPLIT": "train"}, "unknown key 'SPLIT'; legal for FORMAT coco: "),
        ({**VOC, "IMAGES": 3}, "IMAGES must be a non-empty string, found 3"),
        ({**VOC, "PART": [0.8, 0.2]}, r"PART must be \[start, end\] with 0 <= start < end <= 1, found \[0.8, 0.2\]"),
        ({**VOC, "PART": [0, 1.5]}, "PART must be"),
        ({**VOC, "PART": 0.8}, "PART must be"),
        ({**VOC, "SPLIT": 2007}, "SPLIT must be a non-empty string, found 2007"),
        ({**VOC, "CLASSES": []}, "CLASSES must be a list of names"),
        ({**VOC, "CLASSES": [True, "no"]}, "quote numbers, yes and no"),
        ({**VOC, "CLASSES": ["cat", "dog", "cat"]}, "CLASSES names cat more than once"),
    ],
)
def test_bad_items(item, message):
    with pytest.raises(ValueError, match=rf"DATASETS\.CUSTOM\[1\].*{message}"):
        register(COCO, item)


def test_an_item_that_is_no_mapping():
    with pytest.raises(TypeError, match=r"DATASETS\.CUSTOM\[0\] must be a mapping.*found 'pets'"):
        register("pets")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "birds.json is not a COCO annotation file: it is not valid JSON"),
        ("[]", "birds.json .*: no images, annotations, categories at its top level"),
        ('{"images": []}', "no annotations, categories at its top level"),
    ],
)
def test_files_that_are_not_coco(here, content, message):
    write_coco(here)
    (here / "birds.json").write_text(content)
    register(COCO)
    with pytest.raises(ValueError, match=message):
        DatasetCatalog.get("birds")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, r"2 annotations belong to image ids that the file does not list; .*: 1, 2\."),
        ({"images": {}}, "birds.json: images must be a list, found dict"),
        ({"categories": []}, "birds.json: categories is empty"),
        ({"images": [7]}, r"images\[0\] must be a mapping, found 7"),
        ({"images": [{"id": 7, "file_name": "a.jpg"}]}, r"birds.json: images\[0\] \(id 7\) has no width, height"),
        ({"images": [{"id": 7, "width": 4, "height": 4}]}, r"images\[0\] \(id 7\) has no file_name"),
        ({"annotations": [{"id": 3, "image_id": 7}]}, r"birds.json: annotations\[0\] \(id 3\) has no category_id"),
        ({"annotations": [{"category_id": 20}]}, r"annotations\[0\] has no id, image_id"),
        ({"categories": [{"id": 20}]}, r"birds.json: categories\[0\] \(id 20\) has no name"),
        ({"categories": [{"name": "crow"}]}, r"categories\[0\] has no id"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, "names of the categories must be unique"),
    ],
)
def test_coco_files_that_contradict_themselves(here, changes, message):
    write_coco(here, **changes)
    register(COCO)
    with pytest.raises(ValueError, match=message):
        DatasetCatalog.get("birds")


def test_annotations_with_faults_stay_for_the_policies_to_decide(here):
    """The engines' readers drop a box whose polygons are all malformed, and take any iscrowd but 0 for a crowd."""
    box = {"image_id": 7, "category_id": 20, "bbox": [1, 2, 30, 20]}
    malformed = [[1, 2, 3, 4]]
    write_coco(here, annotations=[
        {**box, "id": 1, "iscrowd": 0, "segmentation": malformed},
        {**box, "id": 2, "iscrowd": "0"},
        {**box, "id": 3, "iscrowd": None, "segmentation": [*malformed, [1, 2, 30, 2, 30, 20]]},
        {**box, "id": 4, "iscrowd": 2},
        {**box, "id": 5, "ignore": 1},
        {**box, "id": 6, "bbox": []},
        {**box, "id": 7, "iscrowd": "1", "segmentation": []},
    ])  # fmt: skip
    register(COCO)
    records = DatasetCatalog.get("birds")
    with pytest.raises(ValueError, match="has 7 problems in 1 images") as caught:
        check_dataset_dicts(records, "birds", ["wren", "crow"], check_images="none")
    for part in (
        "4 x iscrowd is not 0 or 1", "1 x malformed polygon", "1 x flag that is not supported",
        "annotation 0 (id 1): found 1 of 1 polygons, the first with 4 coordinates, legal: lists of an even number",
        "annotation 1 (id 2): found iscrowd '0', legal: 0 or 1", "found iscrowd None", "birds/a.jpg",
    ):  # fmt: skip
        assert part in str(caught.value)
    ((clean,), report) = check_dataset_dicts(
        records, "birds", ["wren", "crow"], check_images="none", on_bad_annotation="drop"
    )
    assert [(a["id"], a["iscrowd"], "segmentation" in a) for a in clean["annotations"]] == [
        (1, 0, False), (2, 0, False), (3, 0, True), (7, 1, False),
    ]  # fmt: skip
    assert clean["annotations"][2]["segmentation"] == [[1, 2, 30, 2, 30, 20]]
    assert (report.dropped_annotations, report.repaired_annotations, report.clipped_annotations) == (3, 4, 0)


def write_boxes(folder, annotations, images, stems):
    for name in (annotations, images):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for stem in stems:
        (folder / annotations / f"{stem}.xml").write_text(
            "<annotation><size><width>40</width><height>30</height></size><object><name>roo</name><bndbox>"
            "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
        )
        Image.new("RGB", (40, 30)).save(folder / images / f"{stem}.jpg")


def test_voc_folders_of_any_name_without_splits(here):
    stems = [f"{index:05d}" for index in range(40)]
    write_boxes(here / "kangaroo", "annots", "images", stems)
    roo = {"FORMAT": "voc", "ROOT": "kangaroo", "ANNOTATIONS": "annots", "IMAGES": "images"}
    (here / "kangaroo" / "val.txt").write_text("images/00003.jpg\n00001.xml\n\n00002 1\n")
    register(
        {"NAME": "all", **roo},
        {"NAME": "listed", **roo, "SPLIT": "val.txt"},
        {"NAME": "train", **roo, "PART": [0.0, 0.8]},
        {"NAME": "val", **roo, "PART": [0.8, 1]},
        {"NAME": "missing", **roo, "SPLIT": "test.txt"},
    )
    ids = {name: [r["image_id"] for r in DatasetCatalog.get(name)] for name in ("all", "listed", "train", "val")}
    assert ids["all"] == stems and ids["listed"] == ["00003", "00001", "00002"]
    assert sorted(ids["train"] + ids["val"]) == stems and len(ids["val"]) > 0 and len(ids["train"]) > 20
    records = DatasetCatalog.get("all")
    assert records[0]["file_name"] == str(here / "kangaroo" / "images" / "00000.jpg")
    assert check_dataset_dicts(records, "all", MetadataCatalog.get("all").thing_classes)[1].problems == []
    with pytest.raises(FileNotFoundError, match="/test.txt, a list of names. Without a split, all annotation files"):
        DatasetCatalog.get("missing")


def test_a_part_stays_the_same_when_images_are_added(here):
    write_boxes(here / "few", "Annotations", "JPEGImages", map(str, range(30)))
    write_boxes(here / "many", "Annotations", "JPEGImages", map(str, range(60)))
    for root in ("few", "many"):
        register({"NAME": root, "FORMAT": "voc", "ROOT": root, "PART": [0.3, 0.7]})
    few, many = ([r["image_id"] for r in DatasetCatalog.get(name)] for name in ("few", "many"))
    assert few and set(few) == {i for i in many if int(i) < 30} and len(many) > len(few)


def test_parts_of_a_coco_file(here):
    images = [{"id": k, "file_name": f"{k}.jpg", "width": 40, "height": 30} for k in range(20)]
    write_coco(here, images=images, annotations=[])
    parts = [[0, 0.5], [0.5, 0.75], [0.75, 1.0]]
    register(*({**COCO, "NAME": f"part{k}", "PART": part} for k, part in enumerate(parts)))
    found = [[record["image_id"] for record in DatasetCatalog.get(f"part{k}")] for k in range(3)]
    assert sorted(sum(found, [])) == list(range(20))
    # An evaluator would take all images of a json_file.
    assert MetadataCatalog.get("part0").get("json_file", None) is None
    register({**COCO, "NAME": "none", "PART": [0, 1e-9]})
    with pytest.raises(ValueError, match=r"'none': none of its 20 images is in PART \[0.0, 1e-09\].*widen"):
        DatasetCatalog.get("none")


def test_a_version_of_a_coco_file_is_examined_once(here, monkeypatch):
    write_coco(here)
    register(COCO, {**COCO, "NAME": "same"})
    parsed = []
    monkeypatch.setattr(coco_file, "read_coco_file", lambda *args: parsed.append(1) or read_coco_file(*args))
    first = DatasetCatalog.get("birds")
    assert DatasetCatalog.get("birds") == first and DatasetCatalog.get("same") == first
    assert len(parsed) == 1
    write_coco(here, images=[])
    with pytest.raises(ValueError, match="image ids that the file does not list"):
        DatasetCatalog.get("birds")
