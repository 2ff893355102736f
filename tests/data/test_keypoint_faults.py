"""Faults of keypoints in COCO files, and the config keys that follow from the keypoints of the data."""

import json

import pytest

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import DatasetCatalog, MetadataCatalog
from retinanet_ext.data.checked_records import dataset_for_evaluation, load_checked_dicts, load_training_dicts
from retinanet_ext.data.doctor.keypoint_numbers import check_oks_sigmas, refuse_formats_without, resolve_num_keypoints
from tests.data.coco_faults import KEYPOINTS, annotation, config, load, register, rle, write

pytestmark = pytest.mark.usefixtures("catalogs")
NAN = float("nan")
NAMES = ["nose", "ear", "tail"]
RECORD = [6.5, 6.5, 2, 10.5, 10.5, 1, 0.5, 0.5, 0]  # KEYPOINTS from the edge of the image
UNLABELLED = [0] * 9

# Fields of annotation 77 -> words of the message, keypoints after the repair.
FAULTS = {
    "too few": ({"keypoints": KEYPOINTS[:6]}, "wrong length.*6 numbers.*legal: 9 numbers", UNLABELLED),
    "too many": ({"keypoints": [*KEYPOINTS, 1, 1, 1]}, "wrong length.*12 numbers", UNLABELLED),
    "no triples": ({"keypoints": KEYPOINTS[:8]}, "wrong length.*8 numbers", UNLABELLED),
    "word": ({"keypoints": "nose"}, "wrong length.*'nose'", UNLABELLED),
    "visibility 3": ({"keypoints": [6, 6, 3, *KEYPOINTS[3:]]}, "visibility.*3 of keypoint 0", [0, 0, 0, *RECORD[3:]]),
    "half visible": ({"keypoints": [6, 6, 0.5, *KEYPOINTS[3:]]}, "visibility 0.5", [0, 0, 0, *RECORD[3:]]),
    "negative": ({"keypoints": [6, 6, -1, *KEYPOINTS[3:]]}, "visibility -1", [0, 0, 0, *RECORD[3:]]),
    "not finite": ({"keypoints": [*KEYPOINTS[:3], NAN, 1, 2, 0, 0, 0]}, "x, y = nan, 1.5 of keypoint 1",
                   [*RECORD[:3], 0, 0, 0, *RECORD[6:]]),
    "outside": ({"keypoints": [*KEYPOINTS[:3], 45, 1, 2, 0, 0, 0]}, r"outside the image: .*x, y = 45.5, 1.5 .*keypoint "
                "1.*inside 40x30", [*RECORD[:3], 0, 0, 0, *RECORD[6:]]),
    "count": ({"keypoints": KEYPOINTS, "num_keypoints": 3}, "num_keypoints 3, legal: 2", RECORD),
    "count alone": ({"num_keypoints": 2}, "num_keypoints 2 without keypoints", UNLABELLED),
}  # fmt: skip


@pytest.mark.parametrize("way", ["config", "register_coco_instances"])
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_refused_by_name_or_repaired(tmp_path, fault, way):
    """The box stays: an object whose keypoints are not known is still an object."""
    fields, words, expected = FAULTS[fault]
    path = write(tmp_path, [annotation(1, keypoints=KEYPOINTS, num_keypoints=2), annotation(77, **fields)])
    register(tmp_path, way)
    with pytest.raises(ValueError, match=f"(?s){words}") as caught:
        load(config(tmp_path, keypoints=3))
    for part in ("has 1 problems", path, "1.png (image id 1)", "annotation 1 (id 77)", "ON_BAD_ANNOTATION drop",
                 "keeps the box of faulty keypoints"):  # fmt: skip
        assert part in str(caught.value)
    for policy in ("drop", "clip"):
        first, second = load(config(tmp_path, policy, keypoints=3))
        assert first["keypoints"] == RECORD and second["keypoints"] == expected
        if "num_keypoints" in second:
            assert second["num_keypoints"] == sum(v > 0 for v in expected[2::3])


@pytest.mark.parametrize("fault", sorted(set(FAULTS) - {"word"}))
def test_runs_without_keypoints_do_not_examine_them(tmp_path, fault):
    write(tmp_path, [annotation(1, keypoints=KEYPOINTS), annotation(77, **FAULTS[fault][0])])
    register(tmp_path, "config")
    assert [a["id"] for a in load(config(tmp_path))] == [1, 77]


def test_objects_without_keypoints_are_not_labelled(tmp_path, caplog):
    """A class without keypoints beside one with; mappers need as many keypoints for each."""
    crowd = annotation(4, iscrowd=1, segmentation=rle())
    write(tmp_path, [annotation(1), annotation(2, keypoints=KEYPOINTS), annotation(3, keypoints=[]), crowd])
    register(tmp_path, "config")
    with caplog.at_level("INFO"):
        kept = load(config(tmp_path, keypoints=3))
    assert [a.get("keypoints") for a in kept] == [UNLABELLED, RECORD, UNLABELLED, None]
    assert "no problems. Of 3 objects, 1 have labelled keypoints (2 in all)" in caplog.text


def test_records_of_a_function_are_completed_for_the_evaluator(tmp_path):
    """Without a file, the evaluator converts the records, and pycocotools needs num_keypoints of each."""
    write(tmp_path, [annotation(1), annotation(2, keypoints=KEYPOINTS)])
    register(tmp_path, "config", name="data")
    records = DatasetCatalog.get("data")
    DatasetCatalog.register("made", lambda: records)
    MetadataCatalog.get("made").set(thing_classes=["cat"], evaluator_type="coco")
    name = dataset_for_evaluation(config(tmp_path, keypoints=3, train=(), test=("made",)), "made")
    assert [a["keypoints"] for a in DatasetCatalog.get(name)[0]["annotations"]] == [UNLABELLED, RECORD]
    assert dataset_for_evaluation(config(tmp_path, train=(), test=("made",)), "made") == "made"


@pytest.mark.parametrize("policy", ["error", "drop"])
def test_data_without_keypoints(tmp_path, policy):
    write(tmp_path, [annotation(1), annotation(2, keypoints=[])])
    register(tmp_path, "config")
    with pytest.raises(ValueError, match="KEYPOINT_ON is True, but none of the 2 objects .*'data' .*KEYPOINT_ON False"):
        load(config(tmp_path, policy, keypoints=3))


@pytest.mark.parametrize("policy", ["error", "drop"])
def test_another_number_of_keypoints_than_the_config(tmp_path, policy):
    """The data are right, so no policy applies."""
    write(tmp_path, [annotation(1, keypoints=KEYPOINTS), annotation(2, keypoints=KEYPOINTS)])
    register(tmp_path, "config")
    with pytest.raises(ValueError, match="NUM_KEYPOINTS is 17, but the objects .*'data' have 3 keypoints. Set it to 3"):
        load(config(tmp_path, policy, keypoints=17))


@pytest.mark.parametrize("filter_empty", [True, False])
def test_images_without_labelled_keypoints_are_not_trained_on(tmp_path, caplog, filter_empty):
    """Also if images without objects are trained on, as in Detectron2."""
    write(tmp_path, [annotation(1, keypoints=KEYPOINTS), annotation(2, image_id=2)])
    register(tmp_path, "config")
    cfg = config(tmp_path, keypoints=3)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filter_empty
    with caplog.at_level("INFO"):
        assert [r["image_id"] for r in load_training_dicts(cfg)] == [1]
    assert "1 of 2 images of data have fewer than 1 labelled keypoints" in caplog.text
    cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE = 0
    assert [r["image_id"] for r in load_training_dicts(cfg)] == [1, 2]
    assert [r["image_id"] for r in load_checked_dicts(cfg, ["data"], filter_empty=True)] == [1, 2]
    write(tmp_path, [annotation(1, keypoints=UNLABELLED)])
    with pytest.raises(ValueError, match="no image of data has 1 labelled keypoints"):
        load_training_dicts(config(tmp_path, "drop", keypoints=3))


def test_the_ground_truth_follows_the_policy(tmp_path):
    """pycocotools needs keypoints and num_keypoints of every annotation, in pixel indices."""
    outside = annotation(2, keypoints=[*KEYPOINTS[:3], 45, 1, 2, 0, 0, 0], num_keypoints=2)
    write(tmp_path, [annotation(1, keypoints=KEYPOINTS), outside, annotation(3)])
    register(tmp_path, "config")
    name = dataset_for_evaluation(config(tmp_path, "drop", keypoints=3, train=(), test=("data",)), "data")
    with open(MetadataCatalog.get(name).json_file) as file:
        found = [(a["keypoints"], a["num_keypoints"]) for a in json.load(file)["annotations"]]
    assert found == [(KEYPOINTS, 2), ([6, 6, 2, 0, 0, 0, 0, 0, 0], 1), (UNLABELLED, 0)]


@pytest.mark.parametrize("names", [NAMES, None])
@pytest.mark.parametrize("way", ["config", "register_coco_instances"])
def test_the_number_is_taken_from_the_data(tmp_path, way, names):
    write(tmp_path, [annotation(1), annotation(2, keypoints=KEYPOINTS)], keypoints=names)
    register(tmp_path, way)
    cfg = config(tmp_path, keypoints=17)
    assert resolve_num_keypoints(cfg, num_keypoints_is_set=False) == 3
    with pytest.raises(ValueError, match="NUM_KEYPOINTS is 17, but dataset 'data' has 3 keypoints.*set it to 3"):
        resolve_num_keypoints(cfg, num_keypoints_is_set=True)


@pytest.mark.parametrize("known", [None, ["left_ear", "nose", "right_ear"], ["a", "b", "c"]])
def test_the_file_completes_what_others_registered(tmp_path, known):
    write(tmp_path, [annotation(1, keypoints=KEYPOINTS)], keypoints=["left_ear", "nose", "right_ear"])
    register(tmp_path, "register_coco_instances")
    metadata = MetadataCatalog.get("data")
    if known:
        metadata.keypoint_names = known
    load(config(tmp_path, keypoints=3))
    if known == ["a", "b", "c"]:  # not the file's names, so nothing of the file fits them
        assert metadata.get("keypoint_flip_map", None) is None
    else:
        assert tuple(metadata.keypoint_flip_map) == (("left_ear", "right_ear"),)
        assert tuple(metadata.keypoint_names) == ("left_ear", "nose", "right_ear")


def test_the_number_from_metadata_or_the_config(tmp_path):
    DatasetCatalog.register("data", lambda: [])
    assert resolve_num_keypoints(config(tmp_path, keypoints=5), num_keypoints_is_set=True) == 5
    MetadataCatalog.get("data").set(keypoint_names=NAMES)
    assert resolve_num_keypoints(config(tmp_path, keypoints=5), num_keypoints_is_set=False) == 3


def test_datasets_that_disagree(tmp_path):
    write(tmp_path, [annotation(1, keypoints=KEYPOINTS)], keypoints=NAMES)
    register(tmp_path, "config")
    write(tmp_path, [annotation(1, keypoints=KEYPOINTS)], name="other", keypoints=NAMES[::-1])
    register(tmp_path, "config", name="other")
    cfg = config(tmp_path, keypoints=3, test=("other",))
    with pytest.raises(ValueError, match=r"(?s)'data' and 'other' disagree.*nose, ear, tail.*tail, ear, nose"):
        resolve_num_keypoints(cfg, num_keypoints_is_set=False)
    write(tmp_path, [annotation(1)], name="other")
    with pytest.raises(ValueError, match="'other' has no keypoints in .*other.json"):
        resolve_num_keypoints(cfg, num_keypoints_is_set=False)


def test_categories_that_disagree(tmp_path):
    path = write(tmp_path, [annotation(1, keypoints=KEYPOINTS)], keypoints=NAMES)
    with open(path) as file:
        content = json.load(file)
    content["categories"] += [{"id": 4, "name": "dog", "keypoints": ["paw"]}, {"id": 5, "name": "rock"}]
    with open(path, "w") as file:
        json.dump(content, file)
    register(tmp_path, "config")
    with pytest.raises(ValueError, match="cat: nose, ear, tail; dog: paw"):
        resolve_num_keypoints(config(tmp_path, keypoints=3), num_keypoints_is_set=False)


def test_sigmas_of_another_length(tmp_path):
    cfg = config(tmp_path, keypoints=3)
    for sigmas in ([], [0.1, 0.2, 0.3]):
        cfg.TEST.KEYPOINT_OKS_SIGMAS = sigmas
        check_oks_sigmas(cfg)
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.1, 0.2]
    with pytest.raises(ValueError, match="KEYPOINT_OKS_SIGMAS has 2 values, but .*NUM_KEYPOINTS is 3"):
        check_oks_sigmas(cfg)


@pytest.mark.parametrize(
    ("kind", "key", "refused"),
    [("voc", "MASK_ON", True), ("voc", "KEYPOINT_ON", True), ("yolo", "MASK_ON", False), ("yolo", "KEYPOINT_ON", True)],
)
def test_formats_that_hold_boxes_only(tmp_path, kind, key, refused):
    MetadataCatalog.get("data").set(custom_source={"FORMAT": kind})
    DatasetCatalog.register("data", lambda: [])
    cfg = config(tmp_path)
    refuse_formats_without(cfg)
    cfg.MODEL[key] = True
    if refused:
        with pytest.raises(ValueError, match=f"MODEL.{key} is True, but dataset 'data' has FORMAT {kind}.*FORMAT coco"):
            refuse_formats_without(cfg)
    else:
        refuse_formats_without(cfg)


def words(folder, *more):
    item = {"NAME": "data", "FORMAT": "coco", "JSON": str(folder / "data.json"), "IMAGES": str(folder)}
    return ["DATASETS.CUSTOM", str([item]), "DATASETS.TRAIN", "('data',)", "DATASETS.TEST", "()", *more]


def test_a_config_takes_its_keys_from_the_data(tmp_path):
    write(tmp_path, [annotation(1, keypoints=KEYPOINTS)], keypoints=NAMES)
    on = ["MODEL.KEYPOINT_ON", "True"]
    cfg = load_config(None, words(tmp_path, *on))
    assert cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS == 3
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == 1
    with pytest.raises(ValueError, match="NUM_KEYPOINTS is 17, but dataset 'data' has 3 keypoints"):
        load_config(None, words(tmp_path, *on, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "17"))
    with pytest.raises(ValueError, match="KEYPOINT_OKS_SIGMAS has 2 values"):
        load_config(None, words(tmp_path, *on, "TEST.KEYPOINT_OKS_SIGMAS", "[0.1, 0.2]"))


@pytest.mark.parametrize("way", ["config", "register_coco_instances"])
def test_a_config_parses_an_annotation_file_once(tmp_path, way, monkeypatch):
    """The file of a large dataset takes half a minute."""
    write(tmp_path, [annotation(1, keypoints=KEYPOINTS)], keypoints=NAMES)
    words_of_config = words(tmp_path, "MODEL.KEYPOINT_ON", "True")
    if way != "config":
        register(tmp_path, way)
        words_of_config = words_of_config[2:]
    parsed = []
    load_json = json.load
    monkeypatch.setattr(json, "load", lambda file: parsed.append(file.name) or load_json(file))
    cfg = load_config(None, words_of_config)
    assert cfg.MODEL.KEYPOINT_NAMES == NAMES and cfg.MODEL.CLASS_NAMES == ["cat"]
    assert parsed == [str(tmp_path / "data.json")]


def test_the_number_of_classes_of_the_model_in_use(tmp_path):
    write(tmp_path, [annotation(1)])
    one, two = ["MODEL.META_ARCHITECTURE", "FocalRetinaNet"], ["MODEL.META_ARCHITECTURE", "MaskRCNN"]
    roi, dense = ["MODEL.ROI_HEADS.NUM_CLASSES", "80"], ["MODEL.RETINANET.NUM_CLASSES", "80"]
    for ignored in ([*one, *roi], [*two, *dense]):
        cfg = load_config(None, words(tmp_path, *ignored))
        assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == 1
    with pytest.raises(ValueError, match="MODEL.RETINANET.NUM_CLASSES is 80, but dataset 'data' has 1 classes: cat"):
        load_config(None, words(tmp_path, *one, *dense))
    with pytest.raises(ValueError, match="MODEL.ROI_HEADS.NUM_CLASSES is 80, but dataset 'data' has 1 classes: cat"):
        load_config(None, words(tmp_path, *two, *roi))
