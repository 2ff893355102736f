"""`doctor data` on generated data with one of each fault: none missed, none invented, the repaired copy is clean."""

import hashlib
import json
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from retinanet_ext.d2 import DatasetCatalog, MetadataCatalog
from retinanet_ext.inspection.datasets.data_doctor import examine, load_unadapted
from retinanet_ext.inspection.datasets.data_repair import Repair
from retinanet_ext.inspection.datasets.findings import as_json

from .bad_dataset import (
    coco_items,
    write_bad_coco,
    write_bad_identities,
    write_bad_voc,
    write_bad_yolo,
    write_coco_twin,
)

BOXES, FACES = "configs/quick/retinanet.yaml", "configs/quick/facenet.yaml"


def config_words(items, *more):
    train, test = ([item["NAME"]] if item else [] for item in (items[0], items[1] if len(items) > 1 else None))
    words = ["DATASETS.CUSTOM", str(items), "DATASETS.TRAIN", str(train), "DATASETS.TEST", str(test)]
    return [*words, "INPUT.MIN_SIZE_TRAIN", "(128,)", "INPUT.MIN_SIZE_TEST", "128", *more]


def doctor(file, words, repair=None):
    cfg, refusal = load_unadapted(file, words)
    writer = Repair(repair, cfg, file) if repair else None
    examination = examine(cfg, refusal, workers=2, on_checked=writer and writer.write)
    if writer:
        writer.finish()
    return examination


def found_in(examination):
    """(kind, name of the file, annotation) with their numbers."""
    return Counter((f.kind, f.file_name and Path(f.file_name).name, f.annotation) for f in examination.findings)


def contents(folder):
    return {
        os.path.join(where, file): hashlib.sha256(Path(where, file).read_bytes()).hexdigest()
        for where, _, files in os.walk(folder) for file in files
    }  # fmt: skip


@pytest.mark.parametrize(
    ("write", "file"),
    [(write_bad_coco, BOXES), (write_bad_voc, BOXES), (write_bad_yolo, BOXES), (write_bad_identities, FACES)],
    ids=["coco", "voc", "yolo", "identities"],
)
def test_every_fault_is_found_and_the_repaired_copy_has_none(tmp_path, write, file):
    root = tmp_path / write.__name__  # a name of its own for the datasets
    items, expected = write(root)
    before = contents(root)
    examination = doctor(file, config_words(items), tmp_path / "copy")
    assert found_in(examination) == Counter(expected)
    assert contents(root) == before
    again = doctor(str(tmp_path / "copy" / "repaired.yaml"), ["INPUT.MIN_SIZE_TRAIN", "(128,)"])
    assert [str(finding) for finding in again.findings if finding.severity == "error"] == []
    assert all(about["images"] for about in again.datasets.values())


def test_masks_are_errors_if_they_are_trained(tmp_path):
    items, expected = write_bad_coco(tmp_path / "masks")
    words = config_words(items, "INPUT.MASK_FORMAT", "bitmask")
    examination = doctor("configs/quick/mask_retinanet.yaml", words, tmp_path / "copy")
    masks = ("malformed polygon", "RLE that does not decode", "empty mask")
    assert {f.kind: f.severity for f in examination.findings if f.kind in masks} == dict.fromkeys(masks, "error")
    assert Counter(expected) - found_in(examination) == Counter()
    again = doctor(str(tmp_path / "copy" / "repaired.yaml"), words[-2:])
    assert [str(finding) for finding in again.findings if finding.severity == "error"] == []


def test_files_outside_of_the_folder_are_copied_into_the_new_one_if_they_are_allowed(tmp_path):
    root = tmp_path / "outside"
    items = write_coco_twin(root)
    content = json.loads((root / "train.json").read_text())
    shutil.move(root / "train" / "good_0.jpg", root / "elsewhere.jpg")
    content["images"][0]["file_name"] = str(root / "elsewhere.jpg")
    (root / "train.json").write_text(json.dumps(content))
    before = contents(root)
    words = config_words(items, "DATASETS.ALLOW_FILES_OUTSIDE", "True")
    assert [str(finding) for finding in doctor(BOXES, words, tmp_path / "copy").findings] == []
    assert contents(root) == before
    again = doctor(str(tmp_path / "copy" / "repaired.yaml"), [])
    assert [f.kind for f in again.findings] == []
    assert (tmp_path / "copy" / "outside_train" / "images" / "outside" / "1_elsewhere.jpg").is_file()


def test_keypoints_are_examined_if_they_are_trained(tmp_path):
    root = tmp_path / "points"
    items = write_coco_twin(root)
    faults = {
        3: ("keypoints of the wrong length", {"keypoints": [20, 20, 2]}),
        5: ("visibility of a keypoint is not 0, 1 or 2", {"keypoints": [20, 20, 3, 21, 20, 2]}),
        7: ("labelled keypoint outside the image", {"keypoints": [20, 20, 1, 21, 200, 2]}),
        9: ("num_keypoints disagrees with the keypoints", {"keypoints": [20, 20, 0, 21, 20, 2]}),
    }
    for split in ("train", "val"):
        content = json.loads((root / f"{split}.json").read_text())
        for entry in content["annotations"]:
            entry.update(keypoints=[20, 20, 2, 21, 20, 2], num_keypoints=2)
            entry.update(faults.get(entry["id"], (None, {}))[1] if split == "train" else {})
        for category in content["categories"]:
            category["keypoints"] = ["nose", "tail"]
        (root / f"{split}.json").write_text(json.dumps(content))
    words = ["MODEL.KEYPOINT_ON", "True", "TEST.KEYPOINT_OKS_SIGMAS", "[0.1, 0.1]"]
    examination = doctor("configs/quick/mask_retinanet.yaml", config_words(items, *words), tmp_path / "copy")
    # Annotations 3, 5, 7 and 9 are the first ones of images 2 to 5.
    assert found_in(examination) == Counter(
        (kind, f"good_{key // 2}.jpg", f"0 (id {key})") for key, (kind, _) in faults.items()
    )
    again = doctor(str(tmp_path / "copy" / "repaired.yaml"), words)
    assert [str(finding) for finding in again.findings] == []


def test_nothing_is_invented_on_the_clean_twin(tmp_path):
    examination = doctor(BOXES, config_words(write_coco_twin(tmp_path / "clean")))
    assert [str(finding) for finding in examination.findings] == []
    assert not examination.has_errors
    statistics = examination.statistics["clean_train"]
    assert (statistics["images"], statistics["objects"]) == (10, 20)
    assert statistics["classes"]["cat"] == {"objects": 10, "small": 10, "medium": 0, "large": 0}


@pytest.mark.parametrize("content", ["{", "[]", '{"images": 5}', "[" * 100_000, ""], ids=range(5))
def test_a_file_that_cannot_be_parsed_is_a_finding(tmp_path, content):
    root = tmp_path / tmp_path.name  # a name of its own for the datasets
    write_coco_twin(root)
    (root / "train.json").write_text(content)
    examination = doctor(BOXES, config_words(coco_items(root)))
    kinds = {finding.kind for finding in examination.findings if finding.dataset == f"{root.name}_train"}
    assert examination.has_errors and kinds & {
        "annotation file that cannot be read", "malformed entry of the annotation file"
    }  # fmt: skip
    assert examination.statistics[f"{root.name}_val"]["images"] == 4


def test_missing_data_and_data_that_do_not_fit_are_findings(tmp_path):
    items = write_coco_twin(tmp_path / "fit")
    gone = doctor(BOXES, config_words([{**items[0], "NAME": "gone", "JSON": str(tmp_path / "no.json")}]))
    assert [f.kind for f in gone.findings] == ["dataset that cannot be read"] and "no.json" in gone.findings[0].found
    unfit = doctor(BOXES, config_words(items, "MODEL.RETINANET.NUM_CLASSES", "7"))
    assert [f.kind for f in unfit.findings] == ["config that does not fit the data"]
    assert "NUM_CLASSES is 7" in unfit.findings[0].found


JUNK = [None, True, -1, 0, 1e308, float("nan"), float("inf"), 2**70, "x", "", "\0", "9" * 400]
JUNK += [[], [[]], {}, {"a": 1}, [1, 2]]


def mutated(value, rng):
    """The value with one random part replaced, removed or repeated."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, copy = rng.choice(keys), value.copy()
        draw = rng.random()
        if draw < 0.1:
            del copy[key]
        elif draw < 0.2 and isinstance(value, list):
            copy.append(value[key])
        else:
            copy[key] = mutated(value[key], rng)
        return copy
    return rng.choice(JUNK)


def errors_of_records(config_file):
    """Errors in a repaired copy, but for those of the config; each copy is registered anew."""
    for name in [name for name in DatasetCatalog.list() if name.endswith("_repaired")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    try:
        cfg, _ = load_unadapted(str(config_file), [])
    except ValueError as error:
        assert "names no dataset" in str(error)
        return []
    findings = examine(cfg, workers=1).findings
    return [str(f) for f in findings if f.severity == "error" and f.kind != "data without what the config trains"]


@pytest.mark.parametrize("masks", [False, True])
def test_mutated_coco_files_are_examined_and_repaired(tmp_path, times, masks):
    """Long form: RETINANET_EXT_FAULT_TIMES=2000."""
    rng = random.Random(masks)
    root = tmp_path / f"mutated_{masks}"
    items = write_coco_twin(root)
    clean = json.loads((root / "train.json").read_text())
    file = "configs/quick/mask_retinanet.yaml" if masks else BOXES
    words = config_words(items)
    cfg, _ = load_unadapted(file, words)
    for number in range(times(12)):
        content = clean
        for _ in range(rng.randint(1, 4)):
            content = mutated(content, rng)
        (root / "train.json").write_text(json.dumps(content))
        repair = Repair(tmp_path / f"copy_{number}", cfg, file)
        examination = examine(cfg, workers=1, on_checked=repair.write)
        repair.finish()
        errors_left = errors_of_records(tmp_path / f"copy_{number}" / "repaired.yaml")
        assert errors_left == [], (number, content)
        assert set(examination.statistics) == {item["NAME"] for item in items}
        json.dumps(as_json(examination.findings))
        shutil.rmtree(tmp_path / f"copy_{number}")
