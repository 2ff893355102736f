"""Keypoint names and lines of a dataset, from its metadata or its annotation file, to the config of a run."""

import json

import pytest

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import MetadataCatalog
from retinanet_ext.data.keypoint_metadata import dataset_skeleton
from retinanet_ext.inference.predictor import keypoint_lines, keypoint_names


def write(folder, skeleton):
    category = {"id": 1, "name": "fish", "keypoints": ["eye", "fin", "tail"], "skeleton": skeleton}
    content = {"images": [], "annotations": [], "categories": [{"id": 2, "name": "stone"}, category]}
    (folder / "fish.json").write_text(json.dumps(content))
    return str(folder / "fish.json")


def test_the_annotation_file_names_keypoints_and_lines(tmp_path):
    MetadataCatalog.get("fish_of_file").set(json_file=write(tmp_path, [[1, 3], [3, 2]]))
    names, lines = dataset_skeleton("fish_of_file")
    assert names == ["eye", "fin", "tail"] and [line[:2] for line in lines] == [["eye", "tail"], ["tail", "fin"]]
    assert lines[0][2] != lines[1][2] and all(0 <= value <= 255 for line in lines for value in line[2])


def test_the_metadata_come_first(tmp_path):
    rules = [("a", "b", (1, 2, 3))]
    metadata = MetadataCatalog.get("fish_of_metadata").set(json_file=write(tmp_path, [[1, 3]]))
    metadata.set(keypoint_names=("a", "b"), keypoint_connection_rules=rules)
    assert dataset_skeleton("fish_of_metadata") == (["a", "b"], [["a", "b", [1, 2, 3]]])
    assert dataset_skeleton("nothing_is_known_of_these_fish") == ([], [])


@pytest.mark.parametrize("pair", [[0, 1], [1, 4], [1], ["eye", "fin"]])
def test_a_line_to_no_keypoint_draws_no_lines(tmp_path, pair):
    name = f"fish_with_{pair}"
    MetadataCatalog.get(name).set(json_file=write(tmp_path, [pair]))
    assert dataset_skeleton(name) == (["eye", "fin", "tail"], [])  # a warning names the line, see keypoint_metadata


def test_a_run_knows_the_skeleton_of_its_training_data_also_without_them():
    rules = [("a", "b", (1, 2, 3))]
    MetadataCatalog.get("points_only_here").set(keypoint_names=["a", "b"], keypoint_connection_rules=rules)
    words = ["DATASETS.TRAIN", "('points_only_here',)"]
    cfg = load_config(None, words, datasets=False)
    assert keypoint_names(cfg) == keypoint_lines(cfg) == []
    cfg.MODEL.KEYPOINT_ON = True
    assert keypoint_names(cfg) == ["a", "b"] and keypoint_lines(cfg) == rules
    cfg.MODEL.KEYPOINT_NAMES, cfg.MODEL.KEYPOINT_LINES = ["c"], [["c", "c", [0, 0, 0]]]
    assert keypoint_names(cfg) == ["c"] and keypoint_lines(cfg) == [["c", "c", [0, 0, 0]]]
