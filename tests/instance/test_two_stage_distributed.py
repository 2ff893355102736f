"""Two processes compute the step of one with the joint batch, in one stage and in two; micro-batches give a mean."""

import math

import pytest
import torch

from retinanet_ext import d2
from tests.instance.tiny_rcnn import micro_batch_losses, tame, two_stage_config
from tests.instance.two_stage_worker import BRANCHES, OPTS, run
from tests.two_processes import run_two


def step_of_two(case: str, folder) -> dict:
    run_two("tests.instance.two_stage_worker", folder, case)
    return torch.load(folder / "result.pth")


ONE_STAGE = ["one_stage", "one_stage_empty", "one_stage_nothing"]


@pytest.mark.parametrize("case", ["objects", "empty", "nothing", "c4", "c4_nothing", *ONE_STAGE])
def test_two_processes_equal_one_with_the_joint_batch(case, tmp_path):
    actual, expected = step_of_two(case, tmp_path), run(0, 1, case)
    for found, wanted in zip(actual["losses"], expected["losses"], strict=True):
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert actual["gradients"].keys() == expected["gradients"].keys()
    largest = max(gradient.abs().max().item() for gradient in expected["gradients"].values())
    for name, gradient in expected["gradients"].items():
        assert (actual["gradients"][name] - gradient).norm() <= 1e-3 * gradient.norm() + 1e-6 * largest, name


@pytest.mark.parametrize("case", ["embeddings_empty", "embeddings_nothing"])
def test_a_rank_without_objects_or_images_is_normal_for_embeddings(case, tmp_path):
    result = step_of_two(case, tmp_path)
    for losses in result["losses"]:
        assert "loss_embedding" in losses and all(map(math.isfinite, losses.values()))
    head = [gradient for name, gradient in result["gradients"].items() if "embedding_head" in name]
    assert head and all(gradient.isfinite().all() for gradient in head)


@pytest.mark.parametrize("case", ["accumulated", "accumulated_nothing", "one_stage_accumulated_nothing"])
def test_processes_with_other_numbers_of_micro_batches_do_not_wait_for_each_other(case, tmp_path):
    actual, expected = step_of_two(case, tmp_path), run(0, 1, case)
    # The dense losses are those of the joint batch.
    for name in ("loss_cls", "loss_box_reg") if "one_stage" in case else ("loss_rpn_cls", "loss_rpn_loc"):
        assert actual["losses"][0][name] == pytest.approx(expected["losses"][0][name], rel=1e-4)


def test_micro_batches_add_up_to_the_mean_over_images():
    torch.manual_seed(0)
    model = d2.build_model(two_stage_config("FPN", *OPTS, *BRANCHES))
    tame(model)
    total, mean, whole = micro_batch_losses(model)
    for name in whole:
        torch.testing.assert_close(total[name], mean[name], rtol=1e-4, atol=1e-6)
    for name in ("loss_rpn_cls", "loss_rpn_loc"):
        torch.testing.assert_close(total[name], whole[name], rtol=1e-4, atol=1e-6)
