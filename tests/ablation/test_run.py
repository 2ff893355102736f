"""`run(cfg)` gives the same result twice in one process, and restores the state of the process."""

import json
import logging
import os
import random
import shutil

import cv2  # noqa: F401  (sets environment variables when it is first imported)
import numpy as np
import pytest
import torch

from retinanet_ext import d2
from retinanet_ext.ablation import worker
from retinanet_ext.ablation.run import DivergedError, run
from retinanet_ext.ablation.status import Status, read_status, write_status
from tests.builders import shapes_config

LOGGERS = ("", "detectron2", "fvcore", "retinanet_ext")


def process_state() -> dict:
    """Everything that a run could leave behind, in a comparable form."""
    return {
        "random": random.getstate(),
        "numpy": [x.tolist() if isinstance(x, np.ndarray) else x for x in np.random.get_state()],
        "torch": torch.get_rng_state().tolist(),
        "logging": [(log.level, log.propagate, list(log.handlers)) for log in map(logging.getLogger, LOGGERS)],
        "environment": dict(os.environ),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "tf32": (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32),
        "matmul": torch.get_float32_matmul_precision(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "datasets": sorted(d2.DatasetCatalog),
        "metadata": {name: sorted(entry.as_dict()) for name, entry in d2.MetadataCatalog.items()},
        "storage": d2.has_event_storage(),
        "directory": os.getcwd(),
    }


def open_files_in(folder) -> list[str]:
    files = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            files.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:  # the descriptor of listdir itself
            continue
    return [name for name in files if name.startswith(str(folder))]


OPTIONS = ["CUDNN_BENCHMARK", "True", "FLOAT32_PRECISION", "high", "SOLVER.MAX_ITER", "3", "TEST.EVAL_PERIOD", "2"]
OPTIONS += ["MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"]


def test_twice_in_one_process_gives_the_same_and_leaves_nothing_behind(shapes, tmp_path):
    configs = [shapes_config(shapes, tmp_path / name, *OPTIONS) for name in ("first", "second")]
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    before = process_state()
    first = run(configs[0])
    after = process_state()
    assert {key for key in before if before[key] != after[key]} == set()
    torch.rand(5), np.random.rand(), random.random()
    second = run(configs[1])
    np.testing.assert_equal(second, first)  # NaN equals NaN here
    assert set(first) >= {"bbox/AP", "bbox/AP50", "bbox/AP75", "bbox/APs", "bbox/APm", "bbox/APl"}
    losses = [_losses(tmp_path / name) for name in ("first", "second")]
    assert losses[0] == losses[1] and len(losses[0]) > 0
    if os.path.isdir("/proc/self/fd"):
        assert open_files_in(tmp_path) == []

    # A finished run is evaluated again and logs that; with more iterations it resumes.
    log = tmp_path / "first" / "log.txt"
    lines = len(log.read_text().splitlines())
    np.testing.assert_equal(run(configs[0]), first)
    assert len(log.read_text().splitlines()) > lines
    longer = shapes_config(shapes, tmp_path / "first", *OPTIONS, "SOLVER.MAX_ITER", "4")
    run(longer)
    assert "going on at iteration 3 of 4" in log.read_text()


def _losses(folder) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [line["total_loss"] for line in lines if "total_loss" in line]


def test_datasets_that_it_registers_are_gone_afterwards(shapes, tmp_path):
    cfg = shapes_config(shapes, tmp_path, "SOLVER.MAX_ITER", "1")
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    for name in names:
        d2.DatasetCatalog.remove(name)
        d2.MetadataCatalog.remove(name)
    run(cfg)
    assert not set(names) & {*d2.DatasetCatalog, *d2.MetadataCatalog}


def test_the_annotation_file_that_an_evaluator_writes_is_forgotten(shapes, tmp_path):
    # With a class that the file does not have, the evaluator converts our records instead of reading the file.
    cfg = shapes_config(shapes, tmp_path / "unused")
    items = [
        {**item, "NAME": item["NAME"] + "_6", "CLASSES": [*cfg.MODEL.CLASS_NAMES, "hexagon"]}
        for item in cfg.DATASETS.CUSTOM
    ]
    options = ["DATASETS.CUSTOM", str(items), "SOLVER.MAX_ITER", "1", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"]
    options += ["DATASETS.TRAIN", f"({items[0]['NAME']!r},)", "DATASETS.TEST", f"({items[1]['NAME']!r},)"]
    results = []
    for name in ("first", "second"):
        results.append(run(shapes_config(shapes, tmp_path / name, *options)))
        assert d2.MetadataCatalog.get(items[1]["NAME"]).get("json_file", None) is None
        shutil.rmtree(tmp_path / name)  # the second run must not look for the first run's file
    np.testing.assert_equal(*results)


DIVERGING = ["SOLVER.BASE_LR", "1e20", "SOLVER.CLIP_GRADIENTS.ENABLED", "False", "SOLVER.MAX_ITER", "9"]


def test_divergence_says_where_and_leaves_nothing_behind(shapes, tmp_path):
    cfg = shapes_config(shapes, tmp_path, *DIVERGING)
    before = process_state()
    with pytest.raises(DivergedError, match=r"^iteration \d: loss is not finite: .*loss_cls = nan") as caught:
        run(cfg)
    assert 1 <= caught.value.iteration < 9
    after = process_state()
    assert {key for key in before if before[key] != after[key]} == set()


def test_a_config_without_test_data_is_refused(shapes, tmp_path):
    with pytest.raises(ValueError, match="DATASETS.TEST names no dataset"):
        run(shapes_config(shapes, tmp_path, "DATASETS.TEST", "()"))


@pytest.mark.parametrize(
    ("options", "metric", "state", "reason"),
    [
        (["SOLVER.MAX_ITER", "1"], "bbox/AP", "done", None),
        (["SOLVER.MAX_ITER", "1"], "bbox/Recall", "failed", "ValueError: METRIC 'bbox/Recall' is not among"),
        (DIVERGING, "bbox/AP", "diverged", "iteration "),
        (["DATASETS.TEST", "()"], "bbox/AP", "failed", "ValueError: DATASETS.TEST names no dataset"),
    ],
)
def test_the_process_of_a_run_records_its_outcome(shapes, tmp_path, options, metric, state, reason):
    # Nothing passes the threshold, so nothing is detected.
    cfg = shapes_config(shapes, tmp_path, *options, "MODEL.RETINANET.SCORE_THRESH_TEST", "1.0")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    write_status(tmp_path, Status("running", seconds=1000.0))
    assert worker.main([str(tmp_path), "--metric", metric]) == (0 if state == "done" else 1)
    status = read_status(tmp_path)
    assert status.state == state and status.seconds > 1000.0
    assert status.reason is None if reason is None else status.reason.startswith(reason)
    if state == "done":
        assert status.iterations == 1
        # Without any detection AP is 0, but APs is undefined: there may be no small objects.
        assert status.metrics["bbox/AP"] == 0.0 and status.metrics["bbox/APs"] is None
    else:
        assert status.metrics == {}
