"""Reading the folder of a study: what it may hold, and what it must not hold."""

import json

import pytest

from retinanet_ext.ablation.results import read_curve, read_study_folder
from tests.ablation.fake_study import make_study, write_run, write_study

STUDY = make_study({"base": {"AP": 30.0}, "other": {}}, seeds=(0, 7))


@pytest.fixture
def folder(tmp_path):
    return write_study(tmp_path / "study", STUDY, {"base": (40.0, 41.0), "other": ("loss_cls is nan", None)})


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_runs_come_in_the_order_of_the_study(folder):
    study, runs = read_study_folder(folder)
    assert study == STUDY
    assert [(run.arm, run.seed, run.state) for run in runs] == [
        ("base", 0, "done"), ("base", 7, "done"), ("other", 0, "diverged"), ("other", 7, "missing"),
    ]  # fmt: skip
    first, last = runs[0], runs[3]
    assert first.metrics == {"bbox/AP": 40.0, "bbox/AP50": 60.0, "bbox/AP75": 41.0}
    assert (first.seconds, first.iterations, first.reason) == (60.0, 100, "")
    assert first.config["MODEL.RETINANET.FOCAL_LOSS_GAMMA"] == 2.0
    assert runs[2].reason == "loss_cls is nan" and runs[2].metrics == {}
    assert last.reason == "not started" and last.starts == () and last.config is None


@pytest.mark.parametrize(
    ("git", "version", "expected"),
    [
        ({"commit": "ab" * 20, "diff": ""}, "0.1", "git abababababab"),
        # sha256 of "x" begins with 2d711642
        ({"commit": "ab" * 20, "diff": "x"}, "0.1", "git abababababab with uncommitted changes 2d711642"),
        (None, "0.1", "retinanet_ext 0.1"),
        (None, None, "unknown (neither installed nor in a git repository)"),
    ],
)
def test_code_is_identified(folder, git, version, expected):
    path = folder / "base" / "seed_0" / "run.json"
    edit(path, git=git, versions={"torch": "2.15.0", "retinanet_ext": version})
    (start,) = read_study_folder(folder)[1][0].starts
    assert start.code == expected
    assert (start.engine, start.torch, start.machine) == ("lite", "2.15.0", "CPU (Linux)")


def test_every_start_counts(folder):
    path = folder / "base" / "seed_0" / "run.json"
    record = json.loads(path.read_text())
    edit(path, earlier_starts=[{**record, "engine": "detectron2"}])
    assert [start.engine for start in read_study_folder(folder)[1][0].starts] == ["detectron2", "lite"]


def test_no_folder_and_an_empty_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        read_study_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is empty: no study"):
        read_study_folder(tmp_path)


def test_a_folder_without_study(folder):
    (folder / "study.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"study\.json does not exist"):
        read_study_folder(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "x"}'])
def test_a_study_that_is_none(folder, text):
    (folder / "study.json").write_text(text)
    with pytest.raises(ValueError, match=r"study\.json"):
        read_study_folder(folder)


@pytest.mark.parametrize(("arm", "seed"), [("stranger", 0), ("base", 1)])
def test_runs_of_another_study(folder, arm, seed):
    write_run(folder, arm, seed, 1.0)
    with pytest.raises(ValueError, match=rf"mixes runs of several studies: {arm}/seed_{seed} .*base, other.*0, 7"):
        read_study_folder(folder)


def test_other_folders_may_lie_beside(folder):
    (folder / "report").mkdir()
    assert len(read_study_folder(folder)[1]) == 4


@pytest.mark.parametrize("text", ["{", "[]", '{"state": "done", "speed": 1}', '{"state": "finished"}'])
def test_an_unreadable_status(folder, text):
    path = folder / "base" / "seed_7" / "status.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"base/seed_7/status\.json"):
        read_study_folder(folder)


@pytest.mark.parametrize("name", ["run.json", "config.yaml"])
def test_a_finished_run_has_its_files(folder, name):
    (folder / "base" / "seed_0" / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"base/seed_0/{name} is missing, although the run is done"):
        read_study_folder(folder)


def test_a_record_that_is_none(folder):
    (folder / "base" / "seed_0" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"run\.json is not the record of a run"):
        read_study_folder(folder)


def test_curves_of_a_resumed_run(folder, caplog):
    run = read_study_folder(folder)[1][0]
    lines = ['{"iteration": 20, "a": 1}', '{"iteration": 40, "a": 9}', '{"iteration": 60, "a": NaN}', '{"iterat']
    lines += ['{"iteration": 40, "a": 3}', '{"iteration": 41, "b": 5}']
    (run.folder / "metrics.json").write_text("\n".join(lines))
    assert read_curve(run, "a") == [(20, 1.0), (40, 3.0)]
    assert "line 4" in caplog.text
    (run.folder / "metrics.json").unlink()
    assert read_curve(run, "a") == []
