"""Study files: what is read, and what is refused."""

import copy
from pathlib import Path

import pytest
import yaml

from retinanet_ext.ablation.study import (
    Arm,
    arm_config,
    arm_options,
    load_study,
    study_from_dict,
    study_to_dict,
    with_changes,
)

CONTENT = {
    "TITLE": "Loss and scale",
    "SOURCE": "own",
    "BASE": "base.yaml",
    "METRIC": "bbox/AP",
    "SEEDS": [3, 1],
    "BASELINE": "focal",
    "OVERRIDES": {"SOLVER.MAX_ITER": 10, "SOLVER.BASE_LR": 0.5},
    "ARMS": [
        {"NAME": "focal", "OVERRIDES": {}},
        {
            "NAME": "gamma=0.5_a",
            "OVERRIDES": {
                "MODEL.RETINANET.FOCAL_LOSS_GAMMA": 0.5,
                "SOLVER.BASE_LR": 0.25,
                "INPUT.MIN_SIZE_TRAIN": [96],
            },
            "PAPER": {"AP": 30, "AP50": 49.5},
            "NOTE": "smaller",
        },
    ],
}


@pytest.fixture
def write(tmp_path):
    root = Path.cwd()
    (tmp_path / "base.yaml").write_text(f"_BASE_: {root}/configs/Base-RetinaNet.yaml\nSOLVER: {{STEPS: [5]}}\n")

    def write(change=lambda content: None):
        content = copy.deepcopy(CONTENT)
        change(content)
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
        return tmp_path / "mine.yaml"

    return write


def test_a_study_is_read_whole(write, tmp_path):
    study = load_study(write())
    assert (study.name, study.title, study.source, study.note) == ("mine", "Loss and scale", "own", "")
    assert (study.base, study.metric, study.seeds, study.baseline) == (
        tmp_path.resolve() / "base.yaml", "bbox/AP", (3, 1), "focal",
    )  # fmt: skip
    assert study.overrides == CONTENT["OVERRIDES"]
    overrides = CONTENT["ARMS"][1]["OVERRIDES"]
    assert study.arms == (
        Arm("focal", {}, {}, ""),
        Arm("gamma=0.5_a", overrides, {"AP": 30, "AP50": 49.5}, "smaller"),
    )
    assert study_from_dict(study_to_dict(study)) == study


def test_the_config_of_an_arm_has_base_study_and_arm_in_this_order(write):
    study = load_study(write())
    cfg = arm_config(study, study.arms[1], ["SEED", "7"], datasets=False)
    assert (cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.SEED) == ((5,), 10, 0.25, 7)
    assert cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA == 0.5 and cfg.INPUT.MIN_SIZE_TRAIN == (96,)
    words = arm_options(study, study.arms[1])
    assert dict(zip(words[::2], words[1::2])) == {
        "SOLVER.MAX_ITER": "10", "SOLVER.BASE_LR": "0.25", "INPUT.MIN_SIZE_TRAIN": "[96]",
        "MODEL.RETINANET.FOCAL_LOSS_GAMMA": "0.5",
    }  # fmt: skip


def change_arm(**entries):
    return lambda content: content["ARMS"][1].update(entries)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(SEED=[1]), "unknown key 'SEED'; legal: .*; did you mean SEEDS"),
        (lambda c: c.pop("BASELINE"), "missing BASELINE"),
        (lambda c: c.update(TITLE=3), "TITLE must be text, found 3"),
        (lambda c: c.update(METRIC="AP"), "METRIC is 'AP'; it must be 'task/metric', such as 'bbox/AP'"),
        (lambda c: c.update(SEEDS=[1, 2, 1]), "SEEDS: 1 occurs more than once"),
        (lambda c: c.update(SEEDS=[-1]), "SEEDS must be integers from 0 on"),
        (lambda c: c.update(SEEDS=[True]), "SEEDS must be integers from 0 on"),
        (lambda c: c.update(SEEDS=[]), "SEEDS must be integers from 0 on, at least one"),
        (lambda c: c.update(BASELINE="fokal"), "BASELINE is 'fokal', but the arms are focal, gamma=0.5_a"),
        (lambda c: c.update(BASE="bas.yaml"), "BASE: there is no .*/bas.yaml: config file 'bas.yaml' does not exist"),
        (lambda c: c.update(ARMS=[]), "ARMS must be a list of arms, at least one"),
        (lambda c: c.update(ARMS=["focal"]), r"ARMS\[0\] must be .*, found 'focal'"),
        (lambda c: c.update(OVERRIDES=[1]), "OVERRIDES must be {KEY: value}"),
        (lambda c: c.update(OVERRIDES={"SEED": 1}), "SEED cannot be set there"),
        (change_arm(OVERRIDES={"OUTPUT_DIR": "x"}), "OUTPUT_DIR cannot be set there"),
        (change_arm(OVERRIDES={"SOLVER": {"MAX_ITER": 1}}), "SOLVER holds a section; write the full key"),
        (
            change_arm(OVERRIDES={"SOLVER.MAXITER": 1}),
            "arm 'gamma=0.5_a': .*'SOLVER.MAXITER' does not exist",
        ),
        (change_arm(OVERRIDES={"SOLVER.MAX_ITER": "many"}), "arm 'gamma=0.5_a': .*SOLVER.MAX_ITER"),
        (change_arm(NAME="focal"), "ARMS: focal occurs more than once"),
        (change_arm(NAME="FOCAL"), "ARMS: focal occurs more than once"),
        (change_arm(NAME="a/b"), "NAME is 'a/b'; it names a folder"),
        (change_arm(NAME=".."), "NAME is '..'; it names a folder"),
        (change_arm(NAME=0.5), "NAME must be text, found 0.5; put it into quotes"),
        (change_arm(PAPER={"AP05": 1}), "PAPER has no column 'AP05'; legal: AP, AP50"),
        (change_arm(PAPER={"AP": "1"}), "PAPER AP must be a number, found '1'"),
        (change_arm(PAPERS={}), "unknown key 'PAPERS'; .*did you mean PAPER"),
        (change_arm(OVERRIDES={}), "the arms 'focal' and 'gamma=0.5_a' have the same config"),
        # Written differently, but equal to the value for all arms.
        (change_arm(OVERRIDES={"SOLVER.BASE_LR": "5e-1"}), "the arms 'focal' and 'gamma=0.5_a' have the same config"),
    ],
)
def test_what_is_wrong_in_a_study_is_said(write, change, message):
    with pytest.raises((KeyError, TypeError, ValueError, FileNotFoundError), match=message):
        load_study(write(change))


def test_a_metric_of_one_s_own_may_be_in_the_paper(write):
    study = load_study(write(lambda c: (c.update(METRIC="bbox/F1"), c["ARMS"][1].update(PAPER={"F1": 0.5}))))
    assert study.arms[1].paper == {"F1": 0.5}


def test_an_unknown_study_lists_those_there_are(write):
    with pytest.raises(FileNotFoundError, match="no built-in study 'table1a'; there are: table_1a, .*hinge.*"):
        load_study("table1a")
    with pytest.raises(FileNotFoundError):
        load_study("nowhere/table_1a.yaml")


def test_code_in_a_study_is_refused(write, tmp_path):
    path = write()
    path.write_text(path.read_text() + 'NOTE: !!python/object/apply:os.system ["true"]\n')
    with pytest.raises(ValueError, match="tag .* is refused"):
        load_study(path)


def test_base_seeds_and_overrides_can_be_changed(write, tmp_path):
    (tmp_path / "other.yaml").write_text((tmp_path / "base.yaml").read_text().replace("[5]", "[6]"))
    study = load_study(write())
    changed = with_changes(
        study, base=tmp_path / "other.yaml", seeds=[9], overrides=["SOLVER.MAX_ITER", "20", "TEST.EVAL_PERIOD", "5"]
    )
    assert changed.seeds == (9,)
    cfg = arm_config(changed, changed.arms[1], datasets=False)
    assert (cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.TEST.EVAL_PERIOD) == ((6,), 20, 0.25, 5)
    assert with_changes(study) == study


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"overrides": ["SOLVER.BASE_LR", "1"]}, "collides with .*: arm 'gamma=0.5_a' sets SOLVER.BASE_LR"),
        ({"overrides": ["SOLVER.MAX_ITER"]}, "KEY VALUE pairs"),
        ({"overrides": ["SOLVER.MAX_ITER", "1", "SOLVER.MAX_ITER", "2"]}, "SOLVER.MAX_ITER occurs more than once"),
        ({"overrides": ["SEED", "1"]}, "SEED cannot be set there"),
        ({"overrides": ["SOLVER.MAXITER", "1"]}, "'SOLVER.MAXITER' does not exist"),
        ({"seeds": [1, 1]}, "--seeds: 1 occurs more than once"),
        ({"seeds": [-1]}, "--seeds must be integers from 0 on"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml' does not exist"),
    ],
)
def test_changes_that_do_not_fit_are_refused(write, arguments, message):
    with pytest.raises((KeyError, ValueError, FileNotFoundError), match=message):
        with_changes(load_study(write()), **arguments)
