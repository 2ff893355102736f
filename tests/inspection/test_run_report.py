"""The page of a run says what is known about the run, for whole, killed, foreign and empty folders."""

import json
import logging
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from retinanet_ext.cli.main import main
from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import DatasetCatalog, MetadataCatalog
from retinanet_ext.evaluation.ground_truth_file import write_reference
from retinanet_ext.evaluation.result_files import read_result_files
from retinanet_ext.inspection.runs import run_report
from retinanet_ext.inspection.runs.after_run import report_after_run
from retinanet_ext.inspection.runs.config_difference import config_difference
from retinanet_ext.inspection.runs.detection_sections import largest_confusions
from retinanet_ext.inspection.runs.run_folder import read_run_folder
from retinanet_ext.inspection.runs.run_report import write_run_report
from tests.data.conftest import catalogs  # noqa: F401
from tests.inspection.report_runs import STRANGE_CLASS, Page, training_row, write_detection_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    run = write_detection_run(tmp_path_factory.mktemp("report"))
    yield run
    for catalog in (DatasetCatalog, MetadataCatalog):
        if "cells_val" in catalog.list():
            catalog.remove("cells_val")


@pytest.fixture(scope="module")
def page(folder):
    return Page(write_run_report(folder))


def test_metrics_thresholds_and_calibration_are_those_of_the_arithmetic(page):
    # Eight of ten objects with precision 1: of the 101 recall points 0, 0.01, ..., 1 those up to 0.8 count.
    assert [cell.split()[0] for cell in page.row("boxes")[1:]] == ["80.2", "80.2", "80.2", "–", "80.2", "–"]
    # Above 0.3: precision 1, recall 0.8, F1 2 * 0.8 / 1.8; 8 right, 0 wrong, 2 missed. Halfway to the next score, 0.9.
    assert page.row(STRANGE_CLASS)[1:8] == ["0.600", "100.0", "80.0", "0.889", "8", "0", "2"]
    # |0.9 - 1| for eight detections and |0.3 - 0| for two: (8 * 0.1 + 2 * 0.3) / 10.
    assert "ECE 14.0 % over 10 detections" in page.text


def test_errors_cost_what_correcting_them_gains(page):
    # Finding the two missed objects makes AP50 100; removing the two detections of the background changes nothing,
    # because they come after all that is right.
    assert page.row("missed")[1:] == ["2", "19.8", "100.0"]
    assert page.row("background")[1:3] == ["2", "0.0"]
    assert page.row("location")[1:3] == ["0", "0.0"]
    assert "Missed objects cost the most: 19.8 points of AP50, of the 19.8 that are missing to 100" in page.text
    # 1,600 pixels are medium.
    assert page.row("medium, 32² to 96²")[1:3] == ["10", "80.2"] and page.row("medium, 32² to 96²")[4] == "20.0"


def test_the_course_of_a_killed_run_is_told(page):
    # The evaluation's row is no training step; the torn line is named and left out.
    assert "80 of 200 iterations are logged" in page.text and "Training has not ended" in page.text
    assert "resumed at iteration 59" in page.text
    assert "metrics.json: 1 damaged line(s)" in page.text
    # 4 images in 0.5 s, of which 0.25 s are spent waiting.
    assert "8.0 images/s" in page.text and "Training waits for data 50% of its time" in page.text


def test_config_data_and_environment(page):
    assert page.row("SOLVER.MAX_ITER")[1:] == ["40000", "200"]  # the engines' default
    assert page.row("cells_val")[1:8] == ["training", "5", "0", "10", "0", "10", "0"]
    assert "no readable run.json" in page.text


def test_a_missing_image_is_named_and_costs_nothing_else(page):
    # One of two objects is found: F1 is 2 / 3. The image before it, with as many errors, has its pictures.
    assert "No picture of 5.png (F1 0.67: 1 right, 0 wrong, 1 missed): " in page.text
    assert page.text.count("F1 0.67: 1 right, 0 wrong, 1 missed") == 2
    assert sum(target.startswith("data:image/jpeg") for target in page.loaded) == 2


def test_names_are_escaped_and_nothing_is_loaded_from_outside(folder, page):
    html = (folder / "report.html").read_text()
    assert "<b>cell" not in html and "&lt;b&gt;cell" in html and "<i>" not in page.headings[0].replace("run<i>", "")
    assert page.headings[0] == "Report of the run run<i>"
    assert all(target.startswith(("data:image/jpeg;base64,", "#")) for target in page.loaded)
    assert "@import" not in html and "url(http" not in html and "<script" not in html
    assert len(html) < 2_000_000


def test_intervals_and_reasons_of_results_json_are_shown(folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    (run / "results.json").write_text(
        json.dumps(
            {
                "bbox": {"AP": 80.2, "AP50": 80.2, "APl": None},
                "bbox_EMA": {"AP": 81.5, "AP50": 82.0},
                "intervals": {"bbox": {"AP": [70.1, 90.3]}},
                "reasons": {"bbox": {"APl": "no object is large"}},
                "data": {"images": 5, "images_left_out": 3, "annotations_left_out": 2},
            }
        )
    )
    page = Page(write_run_report(run, tmp_path / "elsewhere.html"))
    assert page.row("boxes")[1] == "80.2 [70.1, 90.3]" and page.row("boxes, EMA")[1] == "81.5"
    assert "APl of boxes is undefined: no object is large" in page.text
    assert "left 3 image(s) and 2 annotation(s) out of the evaluation" in page.text


def test_a_folder_with_results_only(tmp_path):
    results = {"bbox": {"AP": 80.2}, "bbox_EMA": {"AP": 81.5}, "mine": {"score": 1.5}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    page = Page(write_run_report(tmp_path))
    assert "With averaged weights (EMA) AP of boxes is 1.3 points higher." in page.text
    assert page.row("score")[1] == "1.50" and "this run evaluated only" in page.text


def test_checked_data_are_the_dataset_of_the_config(folder, tmp_path):
    run = tmp_path / "run"
    predictions = run / "inference" / "cells_val" / "coco_instances_results.json"
    predictions.parent.mkdir(parents=True)
    shutil.copy(folder / "inference" / "coco_instances_results.json", predictions)
    shutil.copy(folder / "config.yaml", run)
    truth = read_result_files(folder.parent / "cells.json", predictions).truth
    truth.name = "cells_val+checked"  # as an evaluation names data of which the policies have left something out
    write_reference(predictions.parent, truth, tasks=["bbox"], max_dets_per_image=100, oks_sigmas=(), image_ids=None)
    results = {"bbox": {"AP": 12.3}, "data": {"images": 5, "images_left_out": 0, "annotations_left_out": 1}}
    (run / "results.json").write_text(json.dumps(results))
    page = Page(write_run_report(run))
    assert sum(row[:1] == ["boxes"] for row in page.rows) == 1 and page.row("boxes")[1].startswith("12.3 [")
    assert "cells_val+checked" not in page.text


def test_without_time_the_page_says_what_it_lacks(folder, tmp_path):
    page = Page(write_run_report(folder, tmp_path / "page.html", seconds=0))
    assert "Left out, to bound the time" in page.text and "bbox: curves and intervals" in page.text
    assert page.row("boxes")[1] == "80.2"  # of metrics.json


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"bbox": 3}', '{"bbox": {"AP": "x"}, "data": []}'])
def test_damaged_files_are_named(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    (tmp_path / "run.json").write_text(content)
    (tmp_path / "config.yaml").write_text("DATASETS: [")
    (tmp_path / "metrics.json").write_bytes(b"\xff\xfe{\n[]\n{}\n" + json.dumps(training_row(19)).encode())
    (tmp_path / "incidents" / "iter_0000019").mkdir(parents=True)
    (tmp_path / "bad_images.json").write_text(content)
    page = Page(write_run_report(tmp_path))
    assert "config.yaml cannot be read" in page.text and "20 iterations are logged" in page.text
    assert "metrics.json: 3 damaged line(s)" in page.text
    assert "iter_0000019: incident.json is missing" in page.text
    if content in ("", "{", "[1]"):
        assert "results.json cannot be read" in page.text and "run.json cannot be read" in page.text


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        write_run_report(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no run: found none of config.yaml, metrics.json, results.json"):
        write_run_report(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_the_verb_prints_the_path(tmp_path, capsys):
    (tmp_path / "metrics.json").write_text(json.dumps(training_row(19)))
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    assert (tmp_path / "page.html").is_file()


def test_a_report_that_fails_does_not_fail_the_run(tmp_path, monkeypatch, caplog):
    cfg = SimpleNamespace(OUTPUT_DIR=str(tmp_path), TEST=SimpleNamespace(REPORT=True))
    monkeypatch.setattr(logging.getLogger("retinanet_ext"), "propagate", True)
    report_after_run(cfg)
    (message,) = set(caplog.messages)  # a logger above may pass it on too
    assert message.startswith("No report of this run: ValueError") and "\n" not in message
    cfg.TEST.REPORT = False
    monkeypatch.setattr(run_report, "write_run_report", lambda *_, **__: pytest.fail("asked for no report"))
    report_after_run(cfg)


def test_results_of_several_datasets_keep_their_names(tmp_path):
    (tmp_path / "config.yaml").write_text("DATASETS: {TEST: [a, a_b]}\n")
    results = {
        "a": {"bbox": {"AP": 1.0}, "intervals": {"bbox": {"AP": [0.5, 1.5]}}},
        "a_b": {"bbox": {"AP": 2.0}},
        "a_TTA": {"bbox": {"AP": 3.0}},
        "a_b_TTA": {"bbox": {"AP": 4.0}},
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    found = read_run_folder(tmp_path).results
    assert found["a"]["bbox"]["AP"] == 1.0 and found["a"]["bbox_TTA"]["AP"] == 3.0
    assert found["a_b"]["bbox"]["AP"] == 2.0 and found["a_b"]["bbox_TTA"]["AP"] == 4.0


def test_the_config_is_compared_with_the_file_of_the_command(tmp_path):
    (tmp_path / "base.yaml").write_text("SOLVER: {MAX_ITER: 100, BASE_LR: 0.5}\n")
    cfg = load_config(str(tmp_path / "base.yaml"), ["SOLVER.MAX_ITER", "200"], datasets=False)
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(cfg.dump())
    record = {"command": ["python", "train_net.py", "--config-file", "base.yaml"], "working_directory": str(tmp_path)}
    (run / "run.json").write_text(json.dumps({**record, "seed": 5, "git": {"commit": "0123456789abcdef", "diff": "a"}}))
    difference = config_difference(read_run_folder(run))
    assert difference.base == "base.yaml"
    assert [(c.key, c.base, c.run) for c in difference.from_base if not c.filled_in] == [("SOLVER.MAX_ITER", 100, 200)]
    assert [c.key for c in difference.from_base if c.filled_in] == ["MODEL.RETINANET.NUM_CLASSES"]
    assert {"SOLVER.BASE_LR", "SOLVER.MAX_ITER"} <= {c.key for c in difference.from_defaults}
    page = Page(write_run_report(run))
    assert "1 key(s) differ from base.yaml" in page.text and "git 0123456789ab, with uncommitted changes" in page.text
    (tmp_path / "base.yaml").unlink()
    assert "cannot be read any more" in Page(write_run_report(run)).text


def test_incidents_and_unreadable_images_are_listed(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({**training_row(19), "total_loss": None}))
    incident = tmp_path / "incidents" / "iter_0000012"
    incident.mkdir(parents=True)
    causes = [{"weight": 0.9, "cause": "learning rate", "evidence": "the norm grew"}]
    (incident / "incident.json").write_text(json.dumps({"iteration": 12, "causes": causes, "ranks": []}))
    image = {"file_name": "/data/x.jpg", "image_id": 4, "reason": "it is truncated", "iterations": [3], "times": 3}
    content = {"budget": 2, "different_images": 1, "times": 3, "images": [image]}
    (tmp_path / "bad_images.json").write_text(json.dumps(content))
    page = Page(write_run_report(tmp_path))
    assert "iter_0000012: iteration 12, likely cause learning rate (the norm grew)" in page.text
    assert "file_name /data/x.jpg, image_id 4, reason it is truncated" in page.text
    assert "total_loss was not finite at iteration 19." in page.text
    assert "1 image(s) could not be read during training." in page.text


def test_training_data_are_counted_as_the_config_takes_them(folder, tmp_path, catalogs):  # noqa: F811
    images = []
    for name, part in (("cells_a", "[0, 0.6]"), ("cells_b", "[0.6, 1]")):
        text = (folder / "config.yaml").read_text().replace("cells_val", name)
        (tmp_path / "config.yaml").write_text(text.replace("FORMAT: coco", f"FORMAT: coco, PART: {part}"))
        row = Page(write_run_report(tmp_path)).row(name)
        images.append(int(row[2]))
        objects = str(2 * images[-1])
        assert row[3:8] == ["0", objects, "0", objects, "0"]
    assert min(images) > 0 and sum(images) == 5


def test_warnings_of_the_log_are_counted(tmp_path):
    lines = [f"[11/22 04:19:3{i}] detectron2.data WARNING: image {i} of '/a/{i}.png' is odd" for i in range(3)]
    lines += ["[11/22 04:20:00] retinanet_ext.training ERROR: it <broke>", "Traceback (most recent call last):"]
    lines += ["[11/22 04:20:01] x INFO:  eta: 0:01 max_mem: 812M", "[11/22 04:20:01 y] INFO: memory 90 MB"]
    (tmp_path / "log.txt").write_text("\n".join(lines))
    (tmp_path / "metrics.json").write_text(json.dumps(training_row(19)))
    page = Page(write_run_report(tmp_path))
    assert page.row("3")[1:3] == ["warning", "11/22 04:19:30"] and page.row("1")[3] == "it <broke>"
    assert "812 MB" in page.text and "The log has 1 error(s)." in page.text


def test_the_largest_confusions_of_many_classes():
    matrix = np.zeros((81, 81), int)
    np.fill_diagonal(matrix, 10)
    matrix[3, 5], matrix[7, 2], matrix[4, 80], matrix[80, 6] = 30, 10, 99, 99  # the last two: missed, background
    names = [f"class {number}" for number in range(80)]
    found = largest_confusions(matrix, names)
    assert found == [("class 3", "class 5", "30", "75.0"), ("class 7", "class 2", "10", "50.0")]
