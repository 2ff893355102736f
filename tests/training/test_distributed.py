"""Two processes compute the same as one process with the joint batch."""

import pytest
import torch

from tests.builders import free_port
from tests.training.distributed_worker import run
from tests.two_processes import run_two

CASES = ["ema", "foreground", "empty", "nothing", "accumulated", "accumulated_less", "accumulated_nothing"]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_with_the_joint_batch(case, tmp_path):
    output = tmp_path / "result.pth"
    # A rank whose images are all empty, or that has none, must neither hang nor break the other.
    run_two("tests.training.distributed_worker", 2, free_port(), output, case)
    actual, expected = torch.load(output), run(0, 1, case)
    torch.testing.assert_close(torch.tensor(actual["losses"]), torch.tensor(expected["losses"]), rtol=1e-4, atol=1e-6)
    assert actual["buffers"].keys() == expected["buffers"].keys()
    for name, value in expected["buffers"].items():
        torch.testing.assert_close(actual["buffers"][name], value)
    assert actual["gradients"].keys() == expected["gradients"].keys()
    for name, gradient in expected["gradients"].items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(actual["gradients"][name], gradient, rtol=1e-3, atol=1e-4 * scale + 1e-8, msg=name)
