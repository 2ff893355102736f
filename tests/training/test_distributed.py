"""Two processes compute the same as one process with the joint batch."""

import subprocess
import sys

import pytest
import torch

from tests.builders import free_port
from tests.conftest import REPO_ROOT
from tests.training.distributed_worker import run

CASES = ["ema", "foreground", "empty", "nothing", "accumulated", "accumulated_less", "accumulated_nothing"]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_with_the_joint_batch(case, tmp_path):
    port, output = str(free_port()), str(tmp_path / "result.pth")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.distributed_worker", str(rank), "2", port, output, case],
            cwd=REPO_ROOT,
        )
        for rank in range(2)
    ]
    try:
        # A rank whose images are all empty, or that has none, must neither hang nor break the other.
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    actual, expected = torch.load(output), run(0, 1, case)
    torch.testing.assert_close(torch.tensor(actual["losses"]), torch.tensor(expected["losses"]), rtol=1e-4, atol=1e-6)
    assert actual["buffers"].keys() == expected["buffers"].keys()
    for name, value in expected["buffers"].items():
        torch.testing.assert_close(actual["buffers"][name], value)
    assert actual["gradients"].keys() == expected["gradients"].keys()
    for name, gradient in expected["gradients"].items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(actual["gradients"][name], gradient, rtol=1e-3, atol=1e-4 * scale + 1e-8, msg=name)
