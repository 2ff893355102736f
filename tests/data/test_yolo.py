import numpy as np
import pytest
import torch
from PIL import Image

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import Boxes, BoxMode, COCOEvaluator, DatasetCatalog, Instances, MetadataCatalog
from retinanet_ext.data.checked_records import load_checked_dicts
from retinanet_ext.data.yolo import load_yolo, yolo_class_names

pytestmark = pytest.mark.usefixtures("catalogs")

NAMES = ["cat", "dog"]


def write(root, labels, images="images", size=(40, 30)):
    """One image for each entry of `labels` (name -> lines, or None for no label file), of 40x30."""
    for name, lines in labels.items():
        image = root / images / f"{name}.jpg"
        label = root / images.replace("images", "labels") / f"{name}.txt"
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(image)
        if lines is not None:
            label.write_text(lines)


def boxes(record):
    return [(a["category_id"], a["bbox"]) for a in record["annotations"]]


def test_boxes_and_polygons_by_hand(tmp_path):
    write(tmp_path, {"a": "1 0.5 0.5 0.25 0.2\n\n0 0.1 0.2 0.5 0.1 0.3 0.9\n", "b": None, "sub/c": ""})
    a, b, c = load_yolo(tmp_path, NAMES)
    # 40 wide, 30 high: the centre is (20, 15), the half sides are (5, 3).
    (first, box), (second, around) = boxes(a)
    assert (first, second) == (1, 0)
    assert box == pytest.approx([15, 12, 25, 18]) and around == pytest.approx([4, 3, 20, 27])
    (polygon,) = a["annotations"][1]["segmentation"]
    assert polygon == pytest.approx([4, 6, 20, 3, 12, 27]) and "segmentation" not in a["annotations"][0]
    assert a["annotations"][1]["line"] == 3 and a["annotations"][0]["bbox_mode"] == BoxMode.XYXY_ABS
    assert (a["image_id"], a["width"], a["height"]) == ("a.jpg", 40, 30)
    assert b["annotations"] == [] and c["annotations"] == [] and c["image_id"] == "sub/c.jpg"
    assert c["file_name"] == str(tmp_path / "images" / "sub" / "c.jpg")


def test_the_size_is_that_after_the_exif_rotation(tmp_path):
    write(tmp_path, {"a": "0 0.5 0.5 1 1"})
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "a.jpg", exif=exif)
    (record,) = load_yolo(tmp_path, NAMES)
    assert (record["width"], record["height"]) == (30, 40) and boxes(record) == [(0, [0, 0, 30, 40])]


def test_folders_and_lists(tmp_path):
    write(tmp_path, {"a": "0 0.5 0.5 1 1", "b": "1 0.5 0.5 1 1"}, images="train/images")
    assert [boxes(r)[0][0] for r in load_yolo(tmp_path, NAMES, images="train/images")] == [0, 1]
    (tmp_path / "val.txt").write_text("./train/images/b.jpg\n")
    (record,) = load_yolo(tmp_path, NAMES, images="train/images", split="val.txt")
    assert record["image_id"] == "b.jpg"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.txt").write_text("0 0.5 0.5 1 1")
    found = load_yolo(tmp_path, NAMES, images="train/images", labels="other")
    assert [boxes(r) for r in found] == [[], [(0, [0, 0, 40, 30])]]
    with pytest.raises(FileNotFoundError, match="None of the 2 images .* would be .*gone/a.txt.*LABELS"):
        load_yolo(tmp_path, NAMES, images="train/images", labels="gone")
    with pytest.raises(FileNotFoundError, match="No images in .*/images; looked for .jpg"):
        load_yolo(tmp_path, NAMES)


def test_class_names(tmp_path):
    assert yolo_class_names(tmp_path) is None
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "classes.txt").write_text("cat\nbig dog\n\n")
    assert yolo_class_names(tmp_path) == ["cat", "big dog"]
    (tmp_path / "data.yaml").write_text("nc: 2\nnames:\n  1: dog\n  0: cat\n")
    assert yolo_class_names(tmp_path) == ["cat", "dog"]
    (tmp_path / "data.yaml").write_text("names: [cat, 7]\n")
    assert yolo_class_names(tmp_path) == ["cat", "7"]
    for bad in ("names: {0: cat, 2: dog}", "names: [cat, cat]", "names: [no]", "nc: 3"):
        (tmp_path / "data.yaml").write_text(bad)
        with pytest.raises(ValueError, match="data.yaml: names must list distinct class names"):
            yolo_class_names(tmp_path)


def config(root, *opts, **item):
    item = {"NAME": "pets", "FORMAT": "yolo", "ROOT": str(root), **item}
    words = ["DATASETS.CUSTOM", str([item]), "DATASETS.TRAIN", "('pets',)", "DATASETS.TEST", "()"]
    return load_config(None, [*words, *opts])


def test_malformed_lines_fall_under_the_policy(tmp_path):
    bad = ["cat 0.5 0.5 0.2 0.2", "0 0.5 0.5 0.2", "0.5 0.5 0.5 0.2 0.2", "0 1 2 3 4 5", "2 0.5 0.5 0.1 0.1", "x",
           "0 0.5 0.5 nan 0.1", "0 20 15 4 4"]  # fmt: skip
    write(tmp_path, {"a": "\n".join(["0 0.5 0.5 0.2 0.2", *bad])})
    cfg = config(tmp_path, CLASSES=NAMES)
    with pytest.raises(ValueError, match="has 8 problems in 1 images") as caught:
        load_checked_dicts(cfg, ["pets"], filter_empty=False)
    label_file = tmp_path / "labels" / "a.txt"
    assert f"annotation 1 (line 2 of {label_file}): found 'cat 0.5 0.5 0.2 0.2'" in str(caught.value)
    assert "5 x malformed line" in str(caught.value) and "category_id 2, legal: 0 to 1 (cat, dog)" in str(caught.value)
    (record,) = load_checked_dicts(
        config(tmp_path, "DATASETS.ON_BAD_ANNOTATION", "drop", CLASSES=NAMES), ["pets"], filter_empty=False
    )
    assert boxes(record) == [(0, pytest.approx([16, 12, 24, 18]))]


def test_from_the_config_alone(tmp_path):
    write(tmp_path, {f"{k}": "0 0.5 0.5 0.2 0.2" for k in range(20)})
    (tmp_path / "data.yaml").write_text("names: [cat, dog]")
    item = {"FORMAT": "yolo", "ROOT": str(tmp_path)}
    custom = [{"NAME": "train", **item, "PART": [0, 0.7]}, {"NAME": "val", **item, "PART": [0.7, 1]}]
    cfg = load_config(
        None, ["DATASETS.CUSTOM", str(custom), "DATASETS.TRAIN", "('train',)", "DATASETS.TEST", "('val',)"]
    )
    assert (cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.CLASS_NAMES, cfg.MODEL.CLASS_IDS) == (2, NAMES, [0, 1])
    ids = [{r["image_id"] for r in load_checked_dicts(cfg, [name], filter_empty=False)} for name in ("train", "val")]
    assert ids[0] | ids[1] == {f"{k}.jpg" for k in range(20)} and not ids[0] & ids[1] and all(ids)
    assert MetadataCatalog.get("val").evaluator_type == "coco"


def test_the_evaluator_takes_yolo_data(tmp_path):
    write(tmp_path, {"a": "1 0.5 0.5 0.25 0.2\n0 0.1 0.2 0.5 0.1 0.3 0.9", "b": None})
    cfg = config(tmp_path, CLASSES=NAMES)
    evaluator = COCOEvaluator("pets", tasks=("bbox",), distributed=False, output_dir=str(tmp_path / "out"))
    evaluator.reset()
    for record in load_checked_dicts(cfg, ["pets"], filter_empty=False):
        instances = Instances((30, 40))
        instances.pred_boxes = Boxes(torch.tensor([a["bbox"] for a in record["annotations"]]).reshape(-1, 4))
        instances.scores = torch.ones(len(instances.pred_boxes))
        instances.pred_classes = torch.tensor([a["category_id"] for a in record["annotations"]], dtype=torch.int64)
        evaluator.process([record], [{"instances": instances}])
    found = evaluator.evaluate()["bbox"]
    assert [found[key] for key in ("AP", "AP-cat", "AP-dog")] == pytest.approx([100.0] * 3)


def test_class_names_that_disagree_or_are_missing(tmp_path):
    write(tmp_path, {"a": "0 0.5 0.5 0.2 0.2"})
    with pytest.raises(ValueError, match="'pets': no class names.*data.yaml.*classes.txt.*or set CLASSES"):
        config(tmp_path)
    DatasetCatalog.remove("pets")
    MetadataCatalog.remove("pets")
    (tmp_path / "data.yaml").write_text("names: [dog, cat]")
    with pytest.raises(ValueError, match=r"CLASSES is \['cat', 'dog'\], but .* are \['dog', 'cat'\]"):
        config(tmp_path, CLASSES=NAMES)


def test_an_unreadable_image_is_left_to_the_check(tmp_path):
    write(tmp_path, {"a": "0 0.5 0.5 0.2 0.2", "b": "0 0.5 0.5 0.2 0.2"})
    (tmp_path / "images" / "b.jpg").write_text("no image")
    with pytest.raises(ValueError, match="unreadable image: .*b.jpg"):
        load_checked_dicts(config(tmp_path, CLASSES=NAMES), ["pets"], filter_empty=False)
    cfg = config(tmp_path, "DATASETS.ON_BAD_IMAGE", "drop", CLASSES=NAMES)
    assert [r["image_id"] for r in load_checked_dicts(cfg, ["pets"], filter_empty=False)] == ["a.jpg"]


def test_masks_are_the_polygons_of_the_lines(tmp_path):
    """A line with a box is an object without a mask, which the check names by its line."""
    write(tmp_path, {"a": "0 0.1 0.2 0.5 0.1 0.3 0.9\n1 0.5 0.5 0.25 0.2\n"})
    cfg = config(tmp_path, CLASSES=NAMES)
    cfg.MODEL.MASK_ON = True
    with pytest.raises(ValueError, match=r"object without a mask: .*a.jpg .*annotation 1 \(line 2 of .*a.txt\)"):
        load_checked_dicts(cfg, ["pets"], filter_empty=False)
    cfg.DATASETS.ON_BAD_ANNOTATION = "drop"
    (record,) = load_checked_dicts(cfg, ["pets"], filter_empty=False)
    assert [a["line"] for a in record["annotations"]] == [1]
