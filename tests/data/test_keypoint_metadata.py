"""Names, mirror pairs and lines of keypoints: from a COCO file, from the config, from names."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from retinanet_ext.d2 import DatasetCatalog, DatasetMapper, MetadataCatalog, detection_utils, get_cfg
from retinanet_ext.data.checked_mapper import mapper_for_test
from retinanet_ext.data.generated_shapes import write_shapes
from retinanet_ext.data.keypoint_metadata import mirror_pairs
from retinanet_ext.data.registration import load_metadata, register_custom_datasets

pytestmark = pytest.mark.usefixtures("catalogs")

ITEM = {"NAME": "roos", "FORMAT": "coco", "JSON": "roos.json", "IMAGES": "roos"}
NAMES = ["nose", "ear_1", "ear_2", "tail"]


@pytest.fixture
def roos(tmp_path, monkeypatch):
    """A function that writes a COCO file with these entries in its categories, registers and describes it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    (tmp_path / "roos").mkdir()

    def write(*categories, **item):
        entries = [{"id": k + 1, "name": f"class {k}", **category} for k, category in enumerate(categories)]
        content = {"images": [], "annotations": [], "categories": entries}
        (tmp_path / "roos.json").write_text(json.dumps(content))
        register_custom_datasets(SimpleNamespace(DATASETS=SimpleNamespace(CUSTOM=[{**ITEM, **item}])))
        load_metadata("roos")
        return MetadataCatalog.get("roos")

    return write


def test_from_the_file_alone(roos):
    names = ["nose", "left_ear", "right_ear", "tail"]
    metadata = roos({"keypoints": names, "skeleton": [[1, 4], [2, 1]]}, {})
    assert metadata.keypoint_names == tuple(names)
    assert metadata.keypoint_flip_map == (("left_ear", "right_ear"),)
    assert [line[:2] for line in metadata.keypoint_connection_rules] == [("nose", "tail"), ("left_ear", "nose")]
    colors = [color for *_, color in metadata.keypoint_connection_rules]
    assert colors[0] != colors[1] and all(0 <= value <= 255 for color in colors for value in color)
    # The engine reads them: left and right change places.
    assert detection_utils.create_keypoint_hflip_indices(["roos"]) == [0, 2, 1, 3]


def test_from_the_config_where_the_file_has_none(roos):
    metadata = roos(
        {}, KEYPOINT_NAMES=NAMES, KEYPOINT_FLIP_MAP=[["ear_1", "ear_2"]], KEYPOINT_SKELETON=[["nose", "tail"]]
    )
    assert metadata.keypoint_names == tuple(NAMES)
    assert [line[:2] for line in metadata.keypoint_connection_rules] == [("nose", "tail")]
    assert detection_utils.create_keypoint_hflip_indices(["roos"]) == [0, 2, 1, 3]


def test_the_config_adds_to_the_file(roos):
    metadata = roos({"keypoints": NAMES}, KEYPOINT_FLIP_MAP=[["ear_1", "ear_2"]])
    assert metadata.keypoint_flip_map == (("ear_1", "ear_2"),)
    assert metadata.keypoint_connection_rules == []


def test_data_without_keypoints_have_no_such_metadata(roos):
    assert "keypoint_names" not in roos({}, {"keypoints": []}).as_dict()


def test_categories_that_differ(roos, caplog):
    assert "keypoint_names" not in roos({"keypoints": ["a", "b"]}, {"keypoints": ["b", "a"]}).as_dict()
    assert "'roos': the categories differ in their keypoints (a, b; b, a)" in caplog.text


def test_only_the_classes_that_are_used_count(roos):
    metadata = roos({"keypoints": ["a", "b"]}, {"keypoints": ["b", "a"]}, CLASSES=["class 1"])
    assert metadata.keypoint_names == ("b", "a")


@pytest.mark.parametrize("skeleton", [[[0, 1]], [[1, 5]], [[1, 2, 3]], "1-2"])
def test_a_faulty_skeleton_stops_no_run(roos, caplog, skeleton):
    assert roos({"keypoints": NAMES, "skeleton": skeleton}).keypoint_connection_rules == []
    assert "numbers from 1 to 4" in caplog.text


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"KEYPOINT_NAMES": "nose"}, r"DATASETS.CUSTOM\[0\]: KEYPOINT_NAMES must be a list of different names"),
        ({"KEYPOINT_NAMES": ["nose", "nose"]}, "KEYPOINT_NAMES must be a list of different names"),
        ({"KEYPOINT_NAMES": ["nose", 3]}, "quote numbers"),
        ({"KEYPOINT_FLIP_MAP": [["nose"]]}, "KEYPOINT_FLIP_MAP must be a list of pairs"),
        ({"KEYPOINT_SKELETON": [["nose", "nose"]]}, "KEYPOINT_SKELETON must be a list of pairs of different"),
        ({"KEYPOINT_FLIP_MAP": [["nose", "tail"], ["tail", "ear_1"]]}, "KEYPOINT_FLIP_MAP has tail in more than one"),
        ({"KEYPOINT_FLIP_MAP": [["ear_1", "ear_3"]]}, "'roos': KEYPOINT_FLIP_MAP has ear_3; the keypoints are nose,"),
        ({"KEYPOINT_NAMES": ["a", "b"], "KEYPOINT_SKELETON": [["a", "c"]]}, r"CUSTOM\[0\]: KEYPOINT_SKELETON has c;"),
        ({"KEYPOINT_NAMES": ["tail", "nose"]}, "'roos': KEYPOINT_NAMES is .'tail', 'nose'., but the annotation"),
        ({"KEYPOINTS": ["nose"]}, "unknown key 'KEYPOINTS'"),
    ],
)  # fmt: skip
def test_items_that_are_refused(roos, item, message):
    with pytest.raises(ValueError, match=message):
        roos({"keypoints": NAMES}, **item)


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["left_eye", "right_eye", "nose"], [("left_eye", "right_eye")]),
        (["eye_right", "eye_left"], [("eye_left", "eye_right")]),
        (["LeftEye", "RightEye"], [("LeftEye", "RightEye")]),
        (["l_eye", "r_eye", "leer", "reel"], [("l_eye", "r_eye")]),
        (["eye.L", "eye.R"], [("eye.L", "eye.R")]),
        (["up", "right", "down", "left"], [("left", "right")]),
        (["bright", "light"], []),
        (["a", "b"], []),
    ],
)
def test_pairs_by_name(names, pairs, caplog):
    assert mirror_pairs(names, "here") == tuple(pairs)
    assert caplog.text == ""


def test_a_side_without_a_counterpart_is_named(caplog):
    assert mirror_pairs(["left_eye", "right_eye", "left_hand"], "here") == (("left_eye", "right_eye"),)
    assert "here: the keypoints left_hand have no counterpart" in caplog.text


def test_generated_shapes_train_keypoints_by_their_file_alone(tmp_path):
    write_shapes(tmp_path / "shapes", num_train=4, num_val=1, image_size=64, seed=3)
    item = {"NAME": "shapes", "FORMAT": "coco", "JSON": str(tmp_path / "shapes/annotations/shapes_train.json"),
            "IMAGES": str(tmp_path / "shapes/train")}  # fmt: skip
    register_custom_datasets(SimpleNamespace(DATASETS=SimpleNamespace(CUSTOM=[item])))
    records = DatasetCatalog.get("shapes")
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.MASK_ON", True, "MODEL.KEYPOINT_ON", True, "INPUT.MIN_SIZE_TRAIN", (64,)])
    cfg.DATASETS.TRAIN = ("shapes",)
    mapper = DatasetMapper(cfg, is_train=True)
    instances, mirrored = None, set()
    for seed in range(6):
        np.random.seed(seed)
        sample = mapper(next(record for record in records if record["annotations"]))
        instances = sample["instances"]
        center, up, right, down, left = instances.gt_keypoints.tensor[:, :, :2].unbind(1)
        # Tilted by at most 30 degrees, "right" is right of the centre and "up" above, in the mirrored image too.
        assert (right[:, 0] > left[:, 0]).all() and (up[:, 1] < down[:, 1]).all()
        mirrored.add(tuple(center[0].tolist()))
        # The mask is as wide and high as the box, whose corners the file rounds to hundredths of a pixel.
        assert (instances.gt_masks.get_bounding_boxes().tensor - instances.gt_boxes.tensor).abs().max() < 0.02
    assert len(instances) > 0 and len(mirrored) == 2


def test_a_mapper_for_test_needs_no_training_data():
    cfg = get_cfg()
    cfg.MODEL.KEYPOINT_ON = True
    cfg.DATASETS.TRAIN = ("not_on_this_machine",)
    assert not mapper_for_test(cfg).is_train
