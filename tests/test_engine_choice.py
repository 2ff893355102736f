"""Which engine runs, and what happens when it cannot."""

import os
import subprocess
import sys

import pytest

from tests.conftest import REPO_ROOT


def import_seam(tmp_path, detectron2_init: str | None, **environment: str) -> subprocess.CompletedProcess:
    """Import the seam in a new process. It finds a `detectron2` with the given `__init__.py` before any other."""
    if detectron2_init is not None:
        (tmp_path / "detectron2").mkdir()
        (tmp_path / "detectron2" / "__init__.py").write_text(detectron2_init)
    env = {k: v for k, v in os.environ.items() if k != "RETINANET_EXT_ENGINE"}
    env.update(PYTHONPATH=f"{tmp_path}{os.pathsep}{REPO_ROOT}", **environment)
    code = "import retinanet_ext.d2 as d2; print('engine', d2.ENGINE)"
    return subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)


def test_lite_can_be_forced(tmp_path):
    result = import_seam(tmp_path, "raise RuntimeError('must not be imported')", RETINANET_EXT_ENGINE="lite")
    assert result.stdout == "engine lite\n", result.stderr


def test_a_broken_detectron2_raises_its_own_error_with_a_hint(tmp_path):
    result = import_seam(tmp_path, "import no_such_module_of_detectron2")
    assert result.returncode != 0
    assert "no_such_module_of_detectron2" in result.stderr
    assert "Detectron2 is installed but does not import" in result.stderr
    assert "RETINANET_EXT_ENGINE=lite" in result.stderr


def test_an_unknown_engine_is_refused(tmp_path):
    result = import_seam(tmp_path, None, RETINANET_EXT_ENGINE="d2")
    assert "RETINANET_EXT_ENGINE is 'd2'; legal values: auto, detectron2, lite" in result.stderr


def is_installed(tmp_path) -> bool:
    command = [sys.executable, "-c", "import detectron2"]
    return subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0


def test_a_folder_of_that_name_is_no_installation(tmp_path):
    if is_installed(tmp_path):
        pytest.skip("Detectron2 is installed, and Python finds it before a folder without code")
    # As after `git clone .../detectron2` in the working directory: importable, but a namespace without code.
    (tmp_path / "detectron2" / "detectron2").mkdir(parents=True)
    result = import_seam(tmp_path, None, RETINANET_EXT_ENGINE="detectron2")
    assert "Detectron2 is not installed" in result.stderr
    assert import_seam(tmp_path, None).stdout == "engine lite\n"


def test_the_default_is_detectron2_where_it_is_installed(tmp_path):
    if not is_installed(tmp_path):
        assert import_seam(tmp_path, None).stdout == "engine lite\n"
        pytest.skip("Detectron2 is not installed: checked that the default is lite")
    assert import_seam(tmp_path, None).stdout == "engine detectron2\n"
