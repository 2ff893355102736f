"""Real runs end with their page: of masks and keypoints, of FaceNet, and of an evaluation alone."""

import json
import logging
from argparse import Namespace

import pytest

from retinanet_ext.inspection.runs.run_report import write_run_report
from retinanet_ext.training.launch import main
from retinanet_ext.training.trainer import Trainer
from tests.builders import INSTANCE_RUNS, shapes_config
from tests.data.conftest import catalogs  # noqa: F401
from tests.inspection.report_runs import Page
from tests.training.test_identity_runs import config  # noqa: F401

pytestmark = pytest.mark.usefixtures("catalogs")


def run(cfg, folder, *, eval_only=False, opts=()):
    file = folder / "run.yaml"
    file.write_text(cfg.dump())
    main(Namespace(config_file=str(file), opts=list(opts), eval_only=eval_only, resume=False, num_gpus=1))


def test_a_run_with_masks_and_keypoints(shapes, tmp_path, capsys):
    file, *opts = INSTANCE_RUNS["two stages"]
    cfg = shapes_config(shapes, tmp_path / "run", *opts, "SOLVER.MAX_ITER", "2", file=file)
    run(cfg, tmp_path)
    page = Page(tmp_path / "run" / "report.html")
    # The path is the last thing a user sees.
    assert capsys.readouterr().out.strip().splitlines()[-1].endswith(f"{tmp_path}/run/report.html")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    for task, name in (("bbox", "boxes"), ("segm", "masks"), ("keypoints", "keypoints")):
        value = results[task]["AP"]
        assert page.row(name)[1].split()[0] == ("–" if value is None else f"{value:.1f}")
    assert page.row("circle")[0] == "circle" and "MaskRCNN" in page.text and "2 of 2 iterations" in page.text
    assert page.row("tiny_shapes_train")[1:3] == ["training", "12"] and page.row("tiny_shapes_val")[2] == "6"

    weights = str(tmp_path / "run" / "model_final.pth")
    run(cfg, tmp_path, eval_only=True, opts=["MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(tmp_path / "again")])
    assert "this run evaluated only" in Page(tmp_path / "again" / "report.html").text


def test_a_run_of_facenet_without_a_page_and_with_one(config, tmp_path):  # noqa: F811
    run(config("run", "SOLVER.MAX_ITER", "2", "TEST.REPORT", "False"), tmp_path)
    assert not (tmp_path / "run" / "report.html").exists()
    page = Page(write_run_report(tmp_path / "run"))
    results = json.loads((tmp_path / "run" / "results.json").read_text())["verification"]
    assert f"{results['accuracy']:.1f} %" in page.text and "Verification" in page.headings
    assert page.row("num_same")[1] == "30" and page.row("num_different")[1] == "75"


def test_a_page_that_fails_leaves_the_run_as_it_is(shapes, tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("no page\ntoday")

    monkeypatch.setattr("retinanet_ext.inspection.runs.run_report.write_run_report", fail)
    monkeypatch.setattr(Trainer, "train", lambda self: None)
    monkeypatch.setattr(logging.getLogger("retinanet_ext"), "propagate", True)
    run(shapes_config(shapes, tmp_path / "run", "DATASETS.TEST", "()"), tmp_path)
    assert [r.message for r in caplog.records if "report" in r.message] == [
        "No report of this run: RuntimeError: no page today"
    ]
