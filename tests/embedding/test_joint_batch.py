"""Two processes compute the step of one with the joint batch: negatives are found over both."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from retinanet_ext.embedding.joint_batch import joint_batch
from tests.conftest import REPO_ROOT
from tests.embedding.joint_batch_worker import run

CASES = ["semi_hard", "semi_hard-uneven", "semi_hard-empty", "batch_hard", "batch_all", "harmonic", "harmonic-uneven"]
if importlib.util.find_spec("pytorch_metric_learning"):
    CASES += ["cosface-uneven", "warmup"]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    """The results of both ranks, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.embedding.joint_batch_worker"]
    processes = [subprocess.Popen([*command, str(rank), str(folder), *CASES], cwd=REPO_ROOT) for rank in range(2)]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"result_{rank}.pth") for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_with_the_joint_batch(case, results):
    expected = run(0, 1, case)
    # Both ranks log the joint batch, and both have the averaged gradients.
    for actual in (result[case] for result in results):
        for found, wanted in zip(actual["history"], expected["history"], strict=True):
            assert found == pytest.approx(wanted, rel=1e-5, abs=1e-7)
        for found, wanted in zip(actual["gradients"], expected["gradients"], strict=True):
            assert found.keys() == wanted.keys()
            for name, gradient in wanted.items():
                largest = gradient.abs().max().item()
                assert (found[name] - gradient).abs().max() <= 1e-4 * largest, name
    assert expected["history"][-1]["total_loss"] > 0
    assert case == "warmup" or all(gradient.any() for gradient in expected["gradients"][-1].values())


def test_one_process_needs_no_exchange(generator):
    embeddings, identities = torch.randn(4, 3, generator=generator), torch.arange(4)
    gathered = joint_batch(embeddings, identities)
    assert gathered[0] is embeddings and gathered[1] is identities
