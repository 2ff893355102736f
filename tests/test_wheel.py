"""An installed wheel is whole: without the repository it lists the studies, trains, and predicts in three lines."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO_ROOT

BUILD = "from setuptools.build_meta import build_wheel; import sys; print(build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the package as its wheel installs it, built from a copy, so that nothing old is packed."""
    pytest.importorskip("setuptools", minversion="70.1", reason="building a wheel needs setuptools 70.1 or newer")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("retinanet_ext", "configs"):
        shutil.copytree(REPO_ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO_ROOT / name, source)
    run([sys.executable, "-c", BUILD, str(folder)], cwd=source)
    (wheel,) = folder.glob("*.whl")
    shutil.unpack_archive(wheel, folder / "site", "zip")
    return folder / "site"


def run(command, cwd, **environment) -> str:
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_configs_and_studies_are_installed(installed, tmp_path):
    for path in (REPO_ROOT / "configs").rglob("*.yaml"):
        assert (installed / "retinanet_ext" / "configs" / path.relative_to(REPO_ROOT / "configs")).is_file()
    command = [sys.executable, "-m", "retinanet_ext.cli.main", "ablate", "list"]
    listed = run(command, cwd=tmp_path, PYTHONPATH=str(installed))
    assert "table_1b" in listed and "shapes_losses" in listed


def test_it_trains_and_predicts_away_from_the_repository(installed, shapes, tmp_path):
    custom = f"""
_BASE_: "quick/retinanet.yaml"
DATASETS:
  CUSTOM:
    - {{NAME: wheel_train, FORMAT: coco, JSON: {shapes}/annotations/shapes_train.json, IMAGES: {shapes}/train}}
    - {{NAME: wheel_val, FORMAT: coco, JSON: {shapes}/annotations/shapes_val.json, IMAGES: {shapes}/val}}
  TRAIN: ("wheel_train",)
  TEST: ("wheel_val",)
"""
    (tmp_path / "mine.yaml").write_text(custom)
    words = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TRAIN", "(96,)"]
    words += ["INPUT.MIN_SIZE_TEST", "96", "OUTPUT_DIR", "out"]
    command = [sys.executable, "-m", "retinanet_ext.cli.main", "train", "--config-file", "mine.yaml", *words]
    run(command, cwd=tmp_path, PYTHONPATH=str(installed))
    assert (tmp_path / "out" / "model_final.pth").is_file() and (tmp_path / "out" / "results.json").is_file()
    code = f"""
import retinanet_ext
assert retinanet_ext.__file__.startswith({str(installed)!r})
predictor = retinanet_ext.load("out")
result = predictor({str(next((shapes / "val").iterdir()))!r})
result.save("out.jpg")
"""
    run([sys.executable, "-c", code], cwd=tmp_path, PYTHONPATH=str(installed))
    assert (tmp_path / "out.jpg").stat().st_size > 1000
