"""Shared fixtures. ``RETINANET_EXT_ENGINE`` chooses the engine under test, ``TEST_DEVICE`` the device (cpu)."""

import os
from pathlib import Path

import pytest
import torch

REPO_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets (``bccd``, ``coco_mini``): ``RETINANET_EXT_TEST_DATA`` or ``../shared/data``."""
    folder = Path(os.environ.get("RETINANET_EXT_TEST_DATA", REPO_ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set RETINANET_EXT_TEST_DATA to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where tensors of a test live: ``TEST_DEVICE``, CPU by default."""
    return torch.device(os.environ.get("TEST_DEVICE", "cpu"))


@pytest.fixture
def generator() -> torch.Generator:
    """A fresh generator, so that no test depends on what ran before it."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A small generated detection set, 12 images for training and 6 for validation, 96 pixels a side."""
    from retinanet_ext.data.generated_shapes import write_shapes

    folder = tmp_path_factory.mktemp("data") / "tiny_shapes"
    write_shapes(folder, num_train=12, num_val=6, seed=0, image_size=96)
    return folder
