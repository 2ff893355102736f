import pytest
import torch
import torch.distributed as dist

from retinanet_ext.instance.shared_count import average_over_processes


def test_one_process_keeps_its_count():
    assert average_over_processes(7, "cpu") == 7
    assert average_over_processes(torch.tensor(3), "cpu") == 3
    # A sum over nothing is 0, and so must its loss be.
    assert torch.zeros(()) / average_over_processes(0, "cpu") == 0


def test_a_count_is_not_changed_in_place():
    count = torch.tensor(5.0)
    average_over_processes(count, "cpu").add_(1)
    assert count == 5


@pytest.mark.parametrize(("counts", "average"), [((3, 4), 3.5), ((1, 0), 0.5), ((0, 0), 0.5)])
def test_two_processes_average(monkeypatch, counts, average):
    """Losses 1 per thing: the average over the processes of sum / count is that of the joint batch, 1 or 0."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda total: total.fill_(sum(counts)))
    shared = [average_over_processes(count, "cpu") for count in counts]
    assert shared == [average, average]
    loss = sum(count / divisor for count, divisor in zip(counts, shared, strict=True)) / 2
    assert loss == (1 if sum(counts) else 0)
