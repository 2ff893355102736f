"""`retinanet-ext doctor data`: exit codes, what is written, what is refused."""

import functools
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from retinanet_ext.cli.main import main
from retinanet_ext.d2 import ENGINE
from retinanet_ext.inspection.datasets import image_facts
from tests.faults.bad_dataset import picture, save, write_bad_coco, write_coco_twin
from tests.faults.test_bad_dataset import BOXES, config_words


@pytest.fixture
def doctor(tmp_path):
    def run(items, *words, output=tmp_path / "out"):
        arguments = ["doctor", "data", "--config-file", BOXES, "--output", str(output), "--workers", "2", *words]
        return main([*arguments, *config_words(items)])

    return run


def test_clean_data_give_0(tmp_path, doctor, capsys):
    assert doctor(write_coco_twin(tmp_path / "cli_clean")) == 0
    text = capsys.readouterr().out
    assert "cli_clean_train (train, coco): 10 images, 20 objects" in text and "Nothing found." in text
    assert json.loads((tmp_path / "out" / "findings.json").read_text())["findings"] == []
    assert "Nothing was found." in (tmp_path / "out" / "doctor.html").read_text()


def test_bad_data_give_1_and_everything_is_named(tmp_path, doctor, capsys):
    items, expected = write_bad_coco(tmp_path / "cli_bad")
    assert doctor(items, "--repair", str(tmp_path / "copy")) == 1
    text = capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "findings.json").read_text())
    assert len(content["findings"]) == len(expected) == sum(row["count"] for row in content["counts"])
    kinds = {kind for kind, _, _ in expected}
    page = (tmp_path / "out" / "doctor.html").read_text()
    assert all(kind in text and f"{kind} (" in page for kind in kinds)
    assert content["findings"][0]["severity"] == "error" and content["findings"][-1]["severity"] == "note"
    assert content["statistics"]["cli_bad_val"]["objects"] == 8
    assert page.count("<img") > 12 and "repaired.yaml" in text
    changes = json.loads((tmp_path / "copy" / "changes.json").read_text())
    assert {"dataset", "file_name", "image_id", "annotation", "change", "because"} == set(changes[0])


def test_the_page_loads_nothing_and_escapes_names(tmp_path, doctor):
    root = tmp_path / "cli_names"
    items = write_coco_twin(root)
    content = json.loads((root / "train.json").read_text())
    name = "<b>&'\"$x_1$.jpg"
    shutil.move(root / "train" / "good_0.jpg", root / "train" / name)
    content["images"][0]["file_name"] = name
    content["annotations"][0]["bbox"] = [10, 10, 0, 5]
    for path in (root / "train.json", root / "val.json"):
        content = content if path.name == "train.json" else json.loads(path.read_text())
        content["categories"][0]["name"] = "<script>$cat$"
        path.write_text(json.dumps(content))
    assert doctor(items) == 1
    page = (tmp_path / "out" / "doctor.html").read_text()
    assert "<b>" not in page and "<script" not in page and "&lt;b&gt;&amp;" in page
    # Names of XML vocabularies in the drawings load nothing.
    assert set(re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', page)) == set()


@pytest.mark.parametrize("inside", ["train", "train/copy", "."])
def test_a_copy_within_the_data_is_refused(tmp_path, doctor, capsys, inside):
    root = tmp_path / f"cli_inside_{len(inside)}"
    assert doctor(write_coco_twin(root), "--repair", str(root / inside)) == 2
    error = capsys.readouterr().err
    assert "--repair" in error and ("lies within" in error or "not empty" in error)
    assert sorted(path.name for path in root.iterdir()) == ["train", "train.json", "val", "val.json"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config-file", "nowhere.yaml"], "nowhere.yaml"),
        (["--config-file", BOXES, "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"], "names no dataset"),
        (["--config-file", BOXES, "--workers", "0"], "--workers is 0"),
        (["--config-file", BOXES, "DATASETS.CUSTOM", "[{'NAME': 'x', 'FORMAT': 'csv'}]"], "FORMAT is 'csv'"),
    ],
)
def test_wrong_usage_gives_2(words, message, capsys):
    assert main(["doctor", "data", *words]) == 2
    assert message in capsys.readouterr().err


def test_an_interrupt_ends_cleanly(tmp_path, doctor, monkeypatch, caplog):
    def interrupted(path, root):
        raise KeyboardInterrupt

    monkeypatch.setattr(image_facts, "image_facts", interrupted)
    assert doctor(write_coco_twin(tmp_path / "cli_interrupted")) == 130
    assert "Interrupted" in caplog.text and not (tmp_path / "out" / "findings.json").exists()


def test_the_boxes_without_area_of_real_cells_show(tmp_path, doctor, shared_data):
    items = [
        {"NAME": f"cli_cells_{split}", "FORMAT": "voc", "ROOT": str(shared_data / "bccd"), "SPLIT": split}
        for split in ("trainval", "test")
    ]
    assert doctor(items) == 1
    findings = json.loads((tmp_path / "out" / "findings.json").read_text())["findings"]
    errors = [(f["kind"], f["image_id"], f["annotation"], f["box"]) for f in findings if f["severity"] == "error"]
    assert errors == [
        ("box without area", "BloodImage_00338", "12", [503, 336, 503, 336]),
        ("box without area", "BloodImage_00343", "3", [180, 328, 180, 328]),
    ]
    # Two pictures of the same cells at another focus.
    twins = [(f["image_id"], f["found"]) for f in findings if "duplicate" in f["kind"]]
    assert len(twins) == 1 and twins[0][0] == "BloodImage_00038" and "BloodImage_00037" in twins[0][1]


def test_records_registered_in_code_are_examined_too(tmp_path, doctor, capsys):
    from retinanet_ext.d2 import BoxMode, DatasetCatalog, MetadataCatalog

    save(picture(0), tmp_path / "a.jpg")
    Image.new("L", (8, 8)).save(tmp_path / "b.png")
    box = {"bbox": [5, 5, 20, 20], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    records = [
        {"file_name": str(tmp_path / "a.jpg"), "image_id": 0, "height": 64, "width": 96, "annotations": [
            box, {**box, "bbox_mode": 7}, {**box, "category_id": "dog", "bbox": None}, "no mapping",
        ]},
        {"file_name": tmp_path / "b.png", "image_id": [1], "annotations": []},
        {"image_id": 2},
    ]  # fmt: skip
    DatasetCatalog.register("cli_code", lambda: records)
    MetadataCatalog.get("cli_code").set(thing_classes=["cat"])
    words = ["doctor", "data", "--config-file", BOXES, "--output", str(tmp_path / "out"), "--repair"]
    words += [str(tmp_path / "copy"), "DATASETS.TRAIN", "('cli_code',)", "DATASETS.TEST", "()"]
    assert main(words) == 1
    findings = json.loads((tmp_path / "out" / "findings.json").read_text())["findings"]
    assert [(f["kind"], f["annotation"]) for f in findings if f["severity"] == "error"] == [
        ("annotation that cannot be read", "1"), ("annotation that cannot be read", "3"),
        ("record without a file name", None), ("unknown category", "2"),
    ]  # fmt: skip
    assert "registered in code" in (tmp_path / "copy" / "changes.json").read_text()


def test_coco_files_that_others_registered_are_repaired_as_coco_files(tmp_path):
    module = "detectron2.data.datasets" if ENGINE == "detectron2" else "retinanet_ext.lite.data"
    register_coco_instances = importlib.import_module(module).register_coco_instances
    items, _ = write_bad_coco(tmp_path / "cli_registered")
    for item in items:
        register_coco_instances(item["NAME"], {}, item["JSON"], item["IMAGES"])
    names = ["DATASETS.TRAIN", f"('{items[0]['NAME']}',)", "DATASETS.TEST", f"('{items[1]['NAME']}',)"]
    words = ["doctor", "data", "--config-file", BOXES, "--output", str(tmp_path / "out"), "--repair"]
    assert main([*words, str(tmp_path / "copy"), *names]) == 1
    content = json.loads((tmp_path / "out" / "findings.json").read_text())
    assert content["datasets"][items[0]["NAME"]]["annotation file"] == items[0]["JSON"]
    assert "duplicate annotation id" in {row["kind"] for row in content["counts"]}
    words[3] = str(tmp_path / "copy" / "repaired.yaml")
    assert main(words[:-1]) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_while_images_are_read_ends_the_process(tmp_path):
    root = tmp_path / "cli_signal"
    items = write_coco_twin(root)
    Image.new("RGB", (9000, 9000)).save(tmp_path / "slow.png")  # a second or two to decode
    for number in range(8):
        os.unlink(root / "train" / f"good_{number}.jpg")
        os.link(tmp_path / "slow.png", root / "train" / f"good_{number}.jpg")
    command = [sys.executable, "-m", "retinanet_ext.cli.main", "doctor", "data", "--config-file", BOXES]
    command += ["--output", str(tmp_path / "out"), *config_words(items)]
    # Where the tests run in the background, SIGINT may be ignored, and children inherit that.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out").is_dir() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    try:
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Interrupted" in error and "Traceback" not in error
