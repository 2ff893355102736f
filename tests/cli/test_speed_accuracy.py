import csv
import json
import shutil

import pytest
import torch
from PIL import Image

from retinanet_ext.cli.main import main
from retinanet_ext.d2 import build_model
from tests.builders import shapes_config


@pytest.fixture(scope="module")
def folders(shapes, tmp_path_factory):
    """Folders of two runs with initial weights; the second tests at twice the size."""
    found = []
    for name, size in (("small", "64"), ("large", "128")):
        folder = tmp_path_factory.mktemp("runs") / name
        cfg = shapes_config(shapes, folder, "INPUT.MIN_SIZE_TEST", size)
        folder.mkdir()
        (folder / "config.yaml").write_text(cfg.dump())
        (folder / "results.json").write_text(json.dumps({"bbox": {"AP": 12.5, "AP50": 25.0}}))
        torch.manual_seed(0)
        torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
        found.append(folder)
    return found


def run_arguments(folder, *name):
    return ["--run", str(folder / "config.yaml"), str(folder / "model_final.pth"), *name]


def test_table_and_picture(folders, tmp_path, capsys):
    small, large = folders
    before = (small / "results.json").read_text()
    arguments = [*run_arguments(small), *run_arguments(large, "128 pixels"), "--images", "3", "--output", str(tmp_path)]
    assert main(["speed-accuracy", *arguments, "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"]) == 0
    assert (small / "results.json").read_text() == before  # the folders of the runs are not changed
    content = json.loads((tmp_path / "speed_accuracy.json").read_text())
    assert content["dataset"].endswith("_val") and content["device"] and content["AP"] == "measured now"
    assert [run["name"] for run in content["runs"]] == ["small", "128 pixels"]
    for run in content["runs"]:
        assert 0 < run["ms_lower_quartile"] <= run["ms_median"] <= run["ms_upper_quartile"] and run["images"] == 3
        measured = json.loads((tmp_path / run["name"] / "results.json").read_text())["bbox"]
        assert 0 <= run["AP"] == measured["AP"] != 12.5 and run["AP50"] == measured["AP50"]
    with (tmp_path / "speed_accuracy.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["small", "128 pixels"]
    with Image.open(tmp_path / "speed_accuracy.png") as picture:
        assert picture.width > picture.height > 500
    printed = capsys.readouterr().out
    for text in (printed, (tmp_path / "speed_accuracy.md").read_text()):
        assert "| 128 pixels |" in text and content["device"] in text and content["torch"] in text


def test_runs_file_and_known_ap(folders, tmp_path):
    for folder in folders:
        shutil.copytree(folder, tmp_path / folder.name)
    entries = [{"CONFIG": f"{f.name}/config.yaml", "WEIGHTS": f"{f.name}/model_final.pth"} for f in folders]
    entries[1]["NAME"] = "twice"
    (tmp_path / "runs.yaml").write_text(json.dumps({"RUNS": entries}))  # JSON is YAML
    command = ["speed-accuracy", "--runs-file", str(tmp_path / "runs.yaml"), "--images", "1", "--ap-from-results"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out" / "speed_accuracy.json").read_text())
    assert [(run["name"], run["AP"]) for run in content["runs"]] == [("small", 12.5), ("twice", 12.5)]
    assert content["AP"] == "from results.json"


def test_wrong_usage(folders, tmp_path, capsys):
    small, large = folders

    def refuses(message, *arguments):
        assert main(["speed-accuracy", "--output", str(tmp_path / "out"), *arguments]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    refuses("--run takes CONFIG WEIGHTS [NAME]")
    refuses("--run takes CONFIG WEIGHTS [NAME]", "--run", str(small / "config.yaml"))
    refuses("--run takes CONFIG WEIGHTS [NAME]", *run_arguments(small, "a", "MODEL.DEVICE", "cpu"))
    refuses("the name 'small'", *run_arguments(small), *run_arguments(large, "small"))
    refuses("the name 'a/b'", *run_arguments(small, "a/b"))
    refuses("images is 0", *run_arguments(small), "--images", "0")
    refuses("does not exist", "--run", "nowhere.yaml", "nowhere.pth")
    refuses("without these overrides", *run_arguments(small), "--ap-from-results", "INPUT.MIN_SIZE_TEST", "80")
    (tmp_path / "runs.yaml").write_text("RUNS: [{CONFIG: a.yaml, WEIGHT: b.pth}]")
    refuses("RUNS[0] needs CONFIG and WEIGHTS", "--runs-file", str(tmp_path / "runs.yaml"))


def test_runs_on_different_data_are_not_compared(folders, tmp_path, capsys):
    small, large = folders
    config = (large / "config.yaml").read_text()
    other = tmp_path / "other.yaml"
    other.write_text(config.replace("  TEST:\n  - tiny_shapes_val", "  TEST:\n  - tiny_shapes_train"))
    assert other.read_text() != config
    second = ["--run", str(other), str(large / "model_final.pth")]
    assert main(["speed-accuracy", *run_arguments(small), *second, "--output", str(tmp_path / "out")]) == 2
    assert "differ in their test dataset" in capsys.readouterr().err
