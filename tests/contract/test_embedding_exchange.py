"""Equal seeds give equal FaceNets on both engines, and one checkpoint gives the same embeddings on both."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from tests.conftest import REPO_ROOT
from tests.contract.embedding_worker import FORMS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embeddings")
    for engine in ("lite", "detectron2"):
        command = [sys.executable, "-m", "tests.contract.embedding_worker", str(folder)]
        subprocess.run(command, cwd=REPO_ROOT, env={**os.environ, "RETINANET_EXT_ENGINE": engine}, check=True)
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_same_initial_weights_embeddings_and_losses(form, folder):
    ours, theirs = (torch.load(folder / f"{form}_{engine}.pth") for engine in ("lite", "detectron2"))
    assert list(ours["initial"]) == list(theirs["initial"])
    for name, value in ours["initial"].items():
        assert torch.equal(value, theirs["initial"][name]), name
    embeddings = ours["embeddings"]
    assert torch.cdist(embeddings, embeddings).max() > 0.05
    torch.testing.assert_close(embeddings, theirs["embeddings"], rtol=0, atol=1e-5)
    assert list(ours["losses"]) == list(theirs["losses"])
    for name, loss in ours["losses"].items():
        torch.testing.assert_close(loss, theirs["losses"][name], rtol=1e-4, atol=1e-6)
