"""What is broken on a machine is found, named and mended by a command; libraries are faked by folders on the path."""

import json
import shutil
from collections import namedtuple

import pytest

from retinanet_ext.cli.main import main
from retinanet_ext.inspection import environment
from retinanet_ext.inspection.environment import FAIL, NOTE, OK, as_records, as_text, check_environment

Usage = namedtuple("Usage", "total used free")


def library(folder, name, code):
    """A library of this name, first on the path of the probes."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)


def of(checks, part):
    return next(check for check in checks if check.part == part)


def test_a_machine_on_which_the_tests_run_passes_all_that_they_need(tmp_path):
    checks = check_environment(str(tmp_path / "not" / "yet" / "there"))
    assert {check.part for check in checks} >= {
        "Python", "torch", "torchvision's ops", "CUDA", "Triton", "Detectron2", "engine", "disk", "shared memory",
    }  # fmt: skip
    for part in ("Python", "torch", "torchvision's ops", "engine"):
        assert of(checks, part).state == OK
    assert str(tmp_path) in of(checks, "disk").found
    assert all(check.mend for check in checks if check.state == FAIL)
    assert as_records(checks)[0]["part"] == "Python"


@pytest.mark.parametrize(
    ("error", "mend"),
    [
        ("ModuleNotFoundError: No module named 'pkg_resources'", "'setuptools<81'"),
        ("ImportError: _C.so: undefined symbol: _ZN2at4_ops5zeros4callE", "--no-build-isolation"),
    ],
)
def test_a_detectron2_that_does_not_import_fails_with_its_remedy(tmp_path, monkeypatch, error, mend):
    kind, _, text = error.partition(": ")
    library(tmp_path, "detectron2", f"raise {kind}({text!r})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    (check,) = environment._detectron2()
    assert check.state == FAIL and text in check.found and mend in check.mend


def test_detectron2_that_is_missing_is_no_failure(monkeypatch):
    monkeypatch.setattr(environment, "_probe", lambda code: environment._Outcome(True, "missing"))
    (check,) = environment._detectron2()
    assert check.state == NOTE and "lite" in check.found


def test_a_library_that_ends_the_process_is_a_failure(tmp_path, monkeypatch):
    library(tmp_path, "torchvision", "import os\nos.abort()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    (check,) = environment._torchvision()
    assert check.state == FAIL and "signal 6" in check.found and "torchvision" in check.mend


def test_an_operator_with_wrong_numbers_is_a_failure(tmp_path, monkeypatch):
    library(tmp_path, "torchvision", "class ops:\n  nms = staticmethod(lambda boxes, scores, threshold: boxes[:, 0])")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    (check,) = environment._torchvision()
    assert check.state == FAIL and "NMS keeps [0.0, 1.0, 20.0] instead of [1, 2]" in check.found


def test_an_opencv_without_cascades_is_a_failure(tmp_path, monkeypatch):
    library(tmp_path, "cv2", "__version__ = '5.0.0'\nimdecode = None")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    (check,) = environment._opencv()
    assert check.state == FAIL and "cv2 5.0.0 has no CascadeClassifier" in check.found
    assert "opencv-python-headless<5" in check.mend


def test_a_driver_that_torch_cannot_use_is_a_failure(monkeypatch):
    monkeypatch.setattr(environment, "_driver", lambda: "NVIDIA H200, 550.1")
    monkeypatch.setattr(environment, "_probe", lambda code: environment._Outcome(True, "torch is built without CUDA"))
    (check,) = environment._cuda()
    assert check.state == FAIL and "H200" in check.found and "--index-url" in check.mend


def test_a_package_that_is_too_old_or_missing_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(environment, "_is_installed", lambda name: True)
    wanted = ["numpy>=99", "no-such-package>=2", "x; extra == 'dev'"]
    monkeypatch.setattr(environment.importlib.metadata, "requires", lambda name: wanted)
    old, missing = environment._requirements()
    assert old.part == "numpy" and "needed: >=99" in old.found and "'numpy>=99'" in old.mend
    assert missing.found == "not installed" and "'no-such-package>=2'" in missing.mend


def test_little_space_fails_for_disk_and_shared_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10, 9, 2**20))
    assert environment._disk(str(tmp_path)).state == FAIL
    if environment.Path("/dev/shm").is_dir():
        (check,) = environment._shared_memory()
        assert check.state == FAIL and "--shm-size" in check.mend


def test_the_text_shows_how_to_mend():
    checks = [environment.Check("torch", OK, "2.6"), environment.Check("disk", FAIL, "0 GiB", "free some space")]
    assert as_text(checks).splitlines() == [
        "OK    torch  2.6", "FAIL  disk   0 GiB", "             -> free some space", "", "1 of 2 checks failed.",
    ]  # fmt: skip


@pytest.mark.parametrize(("state", "code"), [(OK, 0), (NOTE, 0), (FAIL, 1)])
def test_the_verb_writes_the_checks_and_its_exit_code_says_whether_one_failed(tmp_path, monkeypatch, state, code):
    monkeypatch.setattr(environment, "check_environment", lambda folder: [environment.Check("torch", state, "2.6")])
    path = tmp_path / "checks.json"
    assert main(["doctor", "env", "--json", str(path)]) == code
    assert json.loads(path.read_text()) == [{"part": "torch", "state": state, "found": "2.6", "mend": ""}]
