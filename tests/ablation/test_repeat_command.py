"""The command in a report, parsed again, gives the study that ran."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from retinanet_ext.ablation.repeat_command import repeat_command
from retinanet_ext.ablation.study import load_study, study_from_dict, study_to_dict, with_changes
from retinanet_ext.cli.ablate import _split_seeds
from retinanet_ext.cli.main import build_parser


def called_again(command):
    args = build_parser().parse_args(shlex.split(command)[1:])
    seeds, opts = _split_seeds(args.seeds or [], args.opts)
    return with_changes(load_study(args.study), base=args.config_file, arms=args.arm, seeds=seeds, overrides=opts)


def through_json(study):
    return study_from_dict(json.loads(json.dumps(study_to_dict(study))))


@pytest.fixture
def own(tmp_path, monkeypatch) -> str:
    """A study with overrides that are text, in a folder that is not the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    arms = [{"NAME": f"a{i}", "OVERRIDES": {"SOLVER.BASE_LR": 0.1 * i}} for i in (1, 2, 3)]
    content = {"TITLE": "t", "SOURCE": "s", "METRIC": "bbox/AP", "SEEDS": [0], "BASELINE": "a1", "ARMS": arms}
    content |= {"BASE": "quick/retinanet.yaml", "OVERRIDES": {"MODEL.DEVICE": "cpu", "SOLVER.MAX_ITER": 9}}
    (tmp_path / "studies" / "own.yaml").write_text(yaml.safe_dump(content))
    return "studies/own.yaml"


def test_a_study_of_ones_own(own):
    study = with_changes(load_study(own), seeds=[4, 2], overrides=["TEST.BEST_METRIC", "", "SOLVER.MAX_ITER", "7"])
    command = repeat_command(through_json(study), Path("output/ablations/own"))
    # The file's own MODEL.DEVICE is not repeated, although it is text as well.
    assert command == f"retinanet-ext ablate run {own} --seeds 4 2 TEST.BEST_METRIC '' SOLVER.MAX_ITER 7"
    assert called_again(command) == study


def test_arms_base_and_folder(own, tmp_path):
    (tmp_path / "my base.yaml").write_text("_BASE_: quick/retinanet.yaml\nSEED: 3\n")
    study = with_changes(load_study(own), base="my base.yaml", arms=["a2", "a3"])
    command = repeat_command(through_json(study), tmp_path / "second")
    assert "--arm a2 --arm a3 --seeds 0 --output output/ablations/second" in command
    assert called_again(command) == study


def test_a_base_of_the_package_in_another_checkout():
    study = with_changes(load_study("table_3"), base="quick/retinanet.yaml")
    elsewhere = replace(study, origin=replace(study.origin, base="/elsewhere/configs/quick/retinanet.yaml"))
    command = repeat_command(elsewhere, Path("table_3"))
    assert command == "retinanet-ext ablate run table_3 --config-file configs/quick/retinanet.yaml --seeds 0 1 2"


def test_a_folder_that_does_not_record_it_is_compared_with_the_built_in_study():
    train = ["DATASETS.TRAIN", "('rare_2_train',)"]
    study = with_changes(load_study("shapes_rare"), arms=["ce", "focal-2"], seeds=[0], overrides=train)
    content = json.loads(json.dumps(study_to_dict(study)))
    del content["origin"]
    content["base"] = "/elsewhere/configs/quick/retinanet.yaml"
    command = repeat_command(study_from_dict(content), Path("shapes_rare_2"))
    assert shlex.split(command)[3:] == [
        "shapes_rare", "--arm", "ce", "--arm", "focal-2", "--seeds", "0", "--output", "output/ablations/shapes_rare_2",
        *train,
    ]  # fmt: skip
    assert repeat_command(replace(study, name="unknown", origin=None), Path("unknown")) is None
