"""The region proposal network in two processes equals one process with the images of both."""

import pytest
import torch

from tests.instance.rpn_worker import SHARES, run
from tests.two_processes import run_two


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What two processes computed, by case."""
    output = tmp_path_factory.mktemp("job") / "results.pth"
    # A rank without images, or whose image has no object, must neither hang nor break the other.
    run_two("tests.instance.rpn_worker", 2, output)
    return torch.load(output)


@pytest.mark.parametrize("case", SHARES)
def test_two_processes_equal_one_with_the_joint_batch(case, results):
    actual, expected = results[case], run(0, 1, case)
    assert actual.keys() == expected.keys() and expected["loss_rpn_loc"] > 0
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-5 * value.abs().max().item(), msg=name)
