"""Damaged ground truth and predictions: a comparison ends with numbers, or with an error that names the file."""

import copy
import json
import random

import pytest

from retinanet_ext.cli.main import main
from tests.evaluation.result_folders import coco_content, write_evaluation

NAMES = ["ant", "bee"]
BOX = [4, 4, 20, 20]
ODD = [None, True, -1, 0, 10**400, 1e308, float("nan"), float("inf"), "", "x", "\ud800", [], {}, [[]], [1, [2]]]
RLE = {"size": [64, 64], "counts": [100, 50, 3946]}


@pytest.fixture
def files(tmp_path):
    content = coco_content(NAMES, [(n, "ant", BOX) for n in (1, 2)] + [(1, "bee", BOX)], num_images=2)
    content["annotations"][0]["segmentation"] = [[4, 4, 24, 4, 24, 24]]
    content["annotations"][1]["segmentation"] = dict(RLE, counts=list(RLE["counts"]))
    content["annotations"][1]["keypoints"] = [5, 5, 2, 8, 8, 1]
    found = [
        {"image_id": n, "category_id": 1, "bbox": BOX, "score": 0.5 + n / 10, "segmentation": dict(RLE)} for n in (1, 2)
    ]
    return tmp_path, content, found


def mutate(generator, content):
    """Replace, remove or copy one value somewhere in a JSON value, in place."""
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = generator.choice(list(keys))
        child = place[key]
        if not isinstance(child, (dict, list)) or not child or generator.random() < 0.2:
            break
        place = child
    action = generator.choice(["replace", "replace", "remove", "copy"])
    if action == "remove":
        del place[key]
    elif action == "copy" and isinstance(place, list):
        place.append(copy.deepcopy(child))
    else:
        place[key] = copy.deepcopy(generator.choice(ODD))


def test_mutated_files_give_numbers_or_a_clean_error(files, times, capsys):
    folder, content, found = files
    generator = random.Random(0)
    names = ["truth.json", "found.json", "other.json"]
    first, second, ground_truth = (str(folder / name) for name in ("found.json", "other.json", "truth.json"))
    codes = []
    for number in range(times(60)):
        truth, predictions = copy.deepcopy(content), copy.deepcopy(found)
        mutate(generator, generator.choice([truth, predictions]))
        (folder / "truth.json").write_text(json.dumps(truth))
        (folder / "found.json").write_text(json.dumps(predictions))
        (folder / "other.json").write_text(json.dumps(found))
        task = generator.choice(["bbox", "segm"])
        codes.append(main(["compare", first, second, "--ground-truth", ground_truth, "--samples", "3", "--task", task]))
        message = capsys.readouterr().err
        assert codes[-1] in (0, 2), number
        assert codes[-1] == 0 or any(name in message for name in names), message
    assert {0, 2} == set(codes)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"version": 1}', "null", "[]", "\x00\xff"])
@pytest.mark.parametrize("name", ["ground_truth.json", "operating_thresholds.json", "coco_instances_results.json"])
def test_damaged_files_of_an_evaluation_are_named(tmp_path, capsys, name, text):
    folder = tmp_path / "run" / "inference" / "insects"
    write_evaluation(folder, NAMES, [(1, "ant", BOX), (1, "bee", BOX)], [(1, "ant", BOX, 0.5)])
    (folder / name).write_bytes(text.encode("latin-1"))
    code = main(["thresholds", str(tmp_path / "run")])
    if name == "operating_thresholds.json" or (name == "coco_instances_results.json" and text == "[]"):
        assert code == 0  # written anew; no predictions
    else:
        assert code == 2 and name in capsys.readouterr().err
