"""A run of several processes evaluates, saves and chooses one model: the average of their running statistics."""

import pytest
import torch

from retinanet_ext.training.processes.running_statistics import average_buffers
from tests.builders import free_port
from tests.two_processes import run_two


@pytest.fixture(scope="module")
def run(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run_two("tests.training.running_statistics_worker", free_port(), shapes, folder)
    return folder, [torch.load(folder / f"{rank}.pth") for rank in range(2)]


def statistics(buffers: dict) -> dict:
    return {name: value for name, value in buffers.items() if "running_" in name}


def test_all_processes_evaluate_the_same_statistics(run):
    _, (first, second) = run
    assert len(first["evaluated"]) == len(second["evaluated"]) == 3
    for ours, others in zip(first["evaluated"], second["evaluated"]):
        assert statistics(ours)
        for name, value in ours.items():
            if value.is_floating_point():  # the normaliser's average is among them
                assert torch.equal(value, others[name]), name


def test_they_are_the_mean_over_the_processes(run):
    _, (first, second) = run
    # After step 2 each process has the statistics of its own images; the first evaluation follows.
    ours, others = (statistics(process["local"][1]) for process in (first, second))
    assert any(not torch.equal(ours[name], others[name]) for name in ours)
    for name, value in statistics(first["evaluated"][0]).items():
        torch.testing.assert_close(value, (ours[name] + others[name]) / 2, rtol=1e-6, atol=1e-7)


def test_the_saved_model_is_the_evaluated_one(run):
    folder, (first, second) = run
    final = torch.load(folder / "model_final.pth")["model"]
    for name, value in statistics(first["evaluated"][-1]).items():
        assert torch.equal(final[name], value), name
    # A checkpoint without an evaluation has the mean too.
    saved = torch.load(folder / "model_0000002.pth")["model"]
    ours, others = (statistics(process["local"][2]) for process in (first, second))
    for name in ours:
        torch.testing.assert_close(saved[name], (ours[name] + others[name]) / 2, rtol=1e-6, atol=1e-7)


def test_one_process_keeps_its_statistics():
    norm = torch.nn.BatchNorm2d(2)
    norm.running_mean.fill_(0.1)
    average_buffers(norm)
    assert norm.running_mean.tolist() == pytest.approx([0.1, 0.1])
