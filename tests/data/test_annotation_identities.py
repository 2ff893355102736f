"""Identities on annotations: from the file to `gt_identities`, beside the object that they belong to."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import ENGINE, BoxMode, DatasetCatalog, DatasetMapper, T
from retinanet_ext.data.annotation_identities import ObjectIdentityMapper, identity_numbers
from retinanet_ext.data.checked_records import load_training_dicts
from retinanet_ext.training.trainer import Trainer

SIZE = 64


def write_coco(folder, annotations, num_images=1) -> dict:
    """An item of DATASETS.CUSTOM. Each annotation: bbox XYWH, and further keys; ``image_id`` 1 unless given."""
    images = []
    for image in range(1, num_images + 1):
        Image.fromarray(np.full((SIZE, SIZE, 3), image, np.uint8)).save(folder / f"{image}.png")
        images.append({"id": image, "file_name": f"{image}.png", "height": SIZE, "width": SIZE})
    defaults = {"image_id": 1, "category_id": 3, "iscrowd": 0}
    rows = [{**defaults, "id": 10 + index, **annotation} for index, annotation in enumerate(annotations)]
    for row in rows:
        row["area"] = row["bbox"][2] * row["bbox"][3]
    categories = [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}]
    path = folder / "annotations.json"
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
    return {"NAME": f"identities_{folder.name}", "FORMAT": "coco", "JSON": str(path), "IMAGES": str(folder)}


def config_of(*items, opts=()):
    words = ["MODEL.EMBEDDING_ON", "True", "MODEL.META_ARCHITECTURE", "InstanceRetinaNet", "MODEL.DEVICE", "cpu"]
    words += ["MODEL.ROI_HEADS.IN_FEATURES", "['p3', 'p4', 'p5']", "DATASETS.TEST", "()", "MODEL.WEIGHTS", ""]
    words += ["DATASETS.CUSTOM", str(list(items)), "DATASETS.TRAIN", str(tuple(item["NAME"] for item in items))]
    words += ["DATASETS.ON_BAD_ANNOTATION", "error", "SOLVER.IMS_PER_BATCH", "1", "DATALOADER.NUM_WORKERS", "0"]
    words += ["INPUT.MIN_SIZE_TRAIN", f"({SIZE},)"]
    return load_config("configs/Base-RetinaNet.yaml", [*words, *opts])


# Corner and size of each box tell them apart. The second annotation is a crowd.
ANNOTATIONS = [
    {"bbox": [2, 4, 10, 12], "identity": "anna"},
    {"bbox": [0, 0, 60, 60], "identity": "crowd", "iscrowd": 1},
    {"bbox": [40, 30, 14, 9], "identity": 7, "category_id": 8},
    {"bbox": [20, 44, 8, 16]},
    {"bbox": [30, 6, 20, 11], "identity": None, "category_id": 8},
    {"bbox": [5, 40, 9, 7], "identity": "7"},
]  # fmt: skip


def test_a_coco_file_gives_identities_to_the_loader(tmp_path):
    cfg = config_of(write_coco(tmp_path, ANNOTATIONS), opts=["INPUT.RANDOM_FLIP", "none"])
    records = load_training_dicts(cfg)
    assert [a.get("identity") for a in records[0]["annotations"]] == ["anna", "crowd", 7, None, None, "7"]
    assert identity_numbers(records, ["x"]) == {"7": 0, "anna": 1}  # a crowd has no identity; 7 and "7" are one
    batch = next(iter(Trainer.build_train_loader(cfg)))
    instances = batch[0]["instances"]
    assert instances.gt_boxes.tensor[:, 0].tolist() == [2, 40, 20, 30, 5]
    assert instances.gt_identities.tolist() == [1, 0, -1, -1, 0]
    assert instances.gt_classes.tolist() == [0, 1, 0, 1, 0]
    assert instances.gt_identities.dtype == instances.gt_classes.dtype == torch.int64


def test_a_run_without_embeddings_knows_no_identities(tmp_path):
    cfg = config_of(write_coco(tmp_path, ANNOTATIONS), opts=["MODEL.EMBEDDING_ON", "False"])
    assert not next(iter(Trainer.build_train_loader(cfg)))[0]["instances"].has("gt_identities")


def test_data_that_others_registered_keep_their_identities(tmp_path):
    item = write_coco(tmp_path, ANNOTATIONS)
    name = f"registered_{tmp_path.name}"
    if ENGINE == "detectron2":
        from detectron2.data.datasets import register_coco_instances
    else:
        from retinanet_ext.lite.data.coco_json import register_coco_instances
    register_coco_instances(name, {}, item["JSON"], item["IMAGES"])
    cfg = config_of(item, opts=["DATASETS.TRAIN", f"('{name}',)", "INPUT.RANDOM_FLIP", "none"])
    instances = next(iter(Trainer.build_train_loader(cfg)))[0]["instances"]
    assert instances.gt_identities.tolist() == [1, 0, -1, -1, 0]
    DatasetCatalog.remove(name)


def random_record(tmp_path, rng, crowd):
    """A picture with objects whose class says which identity they have, and crowds of another class."""
    Image.fromarray(rng.randint(0, 255, (SIZE, SIZE, 3)).astype(np.uint8)).save(tmp_path / "a.png")
    annotations = []
    for index in range(12):
        side = 1 if index % 4 == 0 else rng.randint(6, 20)  # of some, a crop or a smaller image leaves nothing
        x, y = rng.randint(0, SIZE - side, 2).tolist()
        a = {"bbox": [x, y, side, side], "bbox_mode": BoxMode.XYWH_ABS, "category_id": index, "iscrowd": 0}
        a["segmentation"] = [[x, y, x + side, y, x + side, y + side, x, y + side]]
        a["iscrowd"] = int(crowd and index % 5 == 3)
        if index % 3:
            a["identity"] = f"person {index}"
        annotations.append(a)
    record = {"file_name": str(tmp_path / "a.png"), "height": SIZE, "width": SIZE, "image_id": 1}
    return {**record, "annotations": annotations}


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("crowd", [False, True])
def test_identities_stay_with_their_objects_whatever_the_mapper_leaves_out(tmp_path, masks, crowd):
    rng = np.random.RandomState(0)
    np.random.seed(0)
    augmentations = [T.RandomCrop("absolute", (32, 40)), T.RandomFlip(prob=0.5), T.ResizeShortestEdge([16, 48])]
    plain = DatasetMapper(
        is_train=True, augmentations=augmentations, image_format="BGR", use_instance_mask=masks, recompute_boxes=masks
    )
    numbers = {f"person {index}": 100 + index for index in range(12)}
    mapper, counts = ObjectIdentityMapper(plain, numbers), set()
    for _ in range(40):
        record = random_record(tmp_path, rng, crowd)
        before = json.dumps(record)
        instances = mapper(record)["instances"]
        classes = instances.gt_classes.tolist()  # each object's class is the number in its identity's name
        assert instances.gt_identities.tolist() == [100 + k if k % 3 else -1 for k in classes]
        assert not crowd or not {3, 8} & set(classes)
        assert json.dumps(record) == before
        counts.add(len(classes))
    assert len(counts) > 4 and max(counts) < 12  # objects were left out, of different numbers


def test_an_image_without_objects_has_no_identities(tmp_path):
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "height": SIZE, "width": SIZE}
    mapper = ObjectIdentityMapper(DatasetMapper(is_train=True, augmentations=[], image_format="BGR"), {})
    instances = mapper({**record, "annotations": []})["instances"]
    assert instances.gt_identities.shape == (0,) and instances.gt_identities.dtype == torch.int64
    assert "instances" not in mapper(record)


def test_identities_are_numbered_by_name_over_all_datasets():
    records = [{"annotations": [{"identity": name}]} for name in ("zoe", 10, 9, "anna", "10", None)]
    assert identity_numbers(records, ["x"]) == {"10": 0, "9": 1, "anna": 2, "zoe": 3}


@pytest.mark.parametrize(
    ("identities", "message"),
    [([], "of the 2 objects of a, b none of them has an identity"), (["x", "x"], "the only identity is 'x'")],
)
def test_data_without_two_identities_are_refused(identities, message):
    records = [{"annotations": [{"identity": i} for i in identities] or [{}, {}]}]
    with pytest.raises(ValueError, match=f"MODEL.EMBEDDING_ON is True, .*{message}.*VOC and YOLO files have none"):
        identity_numbers(records, ["a", "b"])


def test_identities_of_one_object_each_are_warned_of(caplog):
    identity_numbers([{"annotations": [{"identity": "a"}, {"identity": "b"}]}], ["x"])
    assert "Every identity of x has one object only" in caplog.text


@pytest.mark.parametrize("identity", [True, 1.5, "", ["anna"]])
def test_an_identity_of_another_type_is_refused_or_unknown(tmp_path, identity, caplog):
    annotations = [*ANNOTATIONS, {"bbox": [50, 50, 8, 8], "identity": identity}]
    item = write_coco(tmp_path, annotations)
    with pytest.raises(ValueError, match=r"annotation 6 \(id 16\): found identity .*, legal: an integer, a text"):
        load_training_dicts(config_of(item))
    records = load_training_dicts(config_of(item, opts=["DATASETS.ON_BAD_ANNOTATION", "drop"]))
    assert len(records[0]["annotations"]) == 7 and "identity" not in records[0]["annotations"][6]
    assert "identity is not an integer or a text" in caplog.text
    load_training_dicts(config_of(item, opts=["MODEL.EMBEDDING_ON", "False"]))  # then nobody asks
