"""`retinanet-ext ablate`: arguments, output and exit codes. A stand-in does the runs."""

import logging
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from retinanet_ext.ablation import jobs
from retinanet_ext.ablation.study import built_in_studies, load_study
from retinanet_ext.cli.main import build_parser, main
from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import default_argument_parser

STUB = Path(__file__).parents[1] / "ablation" / "stub_worker.py"


@pytest.fixture(autouse=True)
def stub(monkeypatch, tmp_path):
    monkeypatch.setattr(jobs, "WORKER", (sys.executable, str(STUB)))
    monkeypatch.setattr(logging.getLogger("retinanet_ext"), "propagate", True)


@pytest.fixture
def study(tmp_path) -> str:
    base = {
        "_BASE_": str(Path("configs/Base-RetinaNet.yaml").absolute()),
        "MODEL": {"DEVICE": "cpu", "RESNETS": {"DEPTH": 18, "RES2_OUT_CHANNELS": 64}},
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    arms = [
        {"NAME": "fine", "OVERRIDES": {"SOLVER.BASE_LR": 1.0}},
        {"NAME": "nan", "OVERRIDES": {"SOLVER.BASE_LR": 2.0}},
    ]
    content = {"TITLE": "t", "SOURCE": "s", "BASE": "base.yaml", "METRIC": "bbox/AP", "SEEDS": [0], "BASELINE": "fine"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**content, "ARMS": arms}))
    return str(tmp_path / "mine.yaml")


def test_list_shows_every_study_and_its_runs(capsys):
    assert main(["ablate", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in built_in_studies():
        arms = len(load_study(name).arms)
        seeds = len(load_study(name).seeds)
        line = next(line for line in lines if line.split()[:1] == [name])
        assert f" {arms} " in line and f" {arms * seeds} " in line


def test_run_prints_the_results_and_says_what_did_not_end_well(study, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    command = ["ablate", "run", study, "--output", str(tmp_path / "out"), "--jobs", "2", "--seeds", "0", "4"]
    assert main([*command, "SOLVER.MAX_ITER", "9"]) == 1
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["bbox/AP", "seed", "0", "seed", "4"] in table
    assert ["fine", "10.00", "14.00"] in table and ["nan", "diverged", "diverged"] in table
    assert "fine, seed 4: done after 1 s: bbox/AP 14.00" in caplog.text
    assert "nan, seed 0: diverged after 1 s: iteration 7: loss is not finite" in caplog.text
    assert "MAX_ITER: 9" in (tmp_path / "out" / "fine" / "seed_4" / "config.yaml").read_text()
    # The folder now holds runs with another config.
    assert main([*command, "SOLVER.MAX_ITER", "8"]) == 2


def test_all_done_is_exit_code_0(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load(Path(study).read_text())
    content["ARMS"].pop()
    Path(study).write_text(yaml.safe_dump(content))
    assert main(["ablate", "run", study]) == 0
    assert (tmp_path / "output" / "ablations" / "mine" / "fine" / "seed_0" / "status.json").exists()


@pytest.mark.parametrize(
    "words",
    [
        "STUDY SOLVER.MAX_ITER 9 --seeds 3 4 --jobs 2",
        "STUDY --seeds 3 4 --jobs 2 SOLVER.MAX_ITER 9",
        "STUDY --jobs 2 --seeds 3 4 SOLVER.MAX_ITER 9",
        "STUDY --jobs 2 SOLVER.MAX_ITER 9 --seeds 3 4",
        "--seeds 3 4 --jobs 2 STUDY SOLVER.MAX_ITER 9",
        "STUDY SOLVER.MAX_ITER 9 --seeds 3 4 MODEL.RETINANET.FOCAL_LOSS_ALPHA -1.0",
    ],
)
def test_overrides_may_stand_anywhere(study, words, capsys):
    words = [study if word == "STUDY" else word for word in words.split()]
    assert main(["ablate", "run", *words, "--dry-run"]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 4 and all("SOLVER.MAX_ITER 9" in command for command in commands)
    assert all("FOCAL_LOSS_ALPHA -1.0" in command for command in commands) == ("-1.0" in words)


@pytest.mark.parametrize("name", ["table_1c", "table_1d", "table_1e"])
def test_a_dry_run_prints_commands_that_can_be_pasted_anywhere(name, tmp_path, capsys, monkeypatch):
    output = tmp_path / "with space"
    command = ["ablate", "run", name, "--seeds", "2", "--output", str(output), "--dry-run", "INPUT.RANDOM_FLIP", "none"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    study = load_study(name)
    assert len(lines) == len(study.arms) and not output.exists()
    monkeypatch.chdir(tmp_path)
    for line, arm in zip(lines, study.arms):
        words = shlex.split(line)
        assert words[:2] == ["retinanet-ext", "train"]
        args = default_argument_parser().parse_args(words[2:])
        assert args.num_gpus == 8 and not args.resume
        cfg = load_config(args.config_file, args.opts, datasets=False)
        assert cfg.SEED == 2 and cfg.INPUT.RANDOM_FLIP == "none"
        assert Path(cfg.OUTPUT_DIR) == output / arm.name / "seed_2"
        for key, value in {**study.overrides, **arm.overrides}.items():
            found = cfg
            for part in key.split("."):
                found = found[part]
            assert (list(found) if isinstance(found, tuple) else found) == value


def test_a_dry_run_of_a_study_of_ones_own_names_absolute_paths(study, shapes, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(shapes.parent)
    item = {"NAME": "mine", "FORMAT": "coco", "JSON": "tiny_shapes/annotations/shapes_train.json"}
    item["IMAGES"] = "tiny_shapes/train"
    elsewhere = {**item, "NAME": "theirs", "JSON": "not/here.json", "IMAGES": "/not/here"}
    # Of a VOC item, IMAGES is a folder in ROOT, even if the working directory has one of that name.
    voc = {"NAME": "voc", "FORMAT": "voc", "ROOT": "tiny_shapes", "SPLIT": "train", "IMAGES": "tiny_shapes"}
    assert main(["ablate", "run", study, "--dry-run", "DATASETS.CUSTOM", repr([item, elsewhere, voc])]) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[0])
    monkeypatch.chdir(tmp_path / "..")
    args = build_parser().parse_args(words[1:])
    cfg = load_config(args.config_file, args.opts, datasets=False)
    assert Path(args.config_file) == tmp_path / "base.yaml"
    assert Path(cfg.OUTPUT_DIR) == shapes.parent / "output" / "ablations" / "mine" / "fine" / "seed_0"
    mine, theirs, of_voc = cfg.DATASETS.CUSTOM
    assert (Path(mine["JSON"]), Path(mine["IMAGES"])) == (shapes / "annotations/shapes_train.json", shapes / "train")
    assert theirs == elsewhere
    assert of_voc == {**voc, "ROOT": str(shapes)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table1a"], "no built-in study 'table1a'; there are: table_1a"),
        (["hinge", "SOLVER.MAXITER", "1"], "'SOLVER.MAXITER' does not exist; nearest: SOLVER.MAX_ITER"),
        (["hinge", "SOLVER.MAX_ITER"], "KEY VALUE pairs"),
        (["hinge", "MODEL.RETINANET.CLS_LOSS.NAME", "ohem"], "collides .*arm 'FL' sets MODEL.RETINANET.CLS_LOSS.NAME"),
        (["hinge", "MODEL.RETINANET.CLS_LOSS.OHEM.BATCH", "5"], "nothing reads MODEL.RETINANET.CLS_LOSS.OHEM.BATCH"),
        (["hinge", "--seeds", "a"], "--seeds wants integers from 0 on, found 'a'"),
        (["hinge", "--seeds", "1", "1"], "--seeds: 1 occurs more than once"),
        (["hinge", "--config-file", "nowhere.yaml"], "nowhere.yaml' does not exist"),
    ],
)
def test_mistakes_are_said_without_a_traceback(words, message, capsys):
    assert main(["ablate", "run", *words, "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("retinanet-ext ablate: error: ") and re.search(message, error), error


@pytest.mark.parametrize(
    "words", [[], ["fly"], ["run"], ["run", "hinge", "--jobs", "1", "--ray", "auto"], ["run", "hinge", "--job5", "1"]]
)
def test_wrong_usage_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["ablate", *words])
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_ray_that_is_not_installed_is_an_error_that_says_what_to_do(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["ablate", "run", study, "--ray", "auto", "--output", str(tmp_path / "out")]) == 2
    assert "pip install ray" in capsys.readouterr().err


def test_an_installation_without_studies_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("retinanet_ext.ablation.study.BUILT_IN_STUDIES", tmp_path)
    assert main(["ablate", "list"]) == 2
    assert "has no studies" in capsys.readouterr().err
