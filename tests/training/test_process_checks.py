from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from retinanet_ext import d2
from retinanet_ext.training.processes import process_checks
from retinanet_ext.training.processes.process_checks import check_processes
from tests.builders import small_config


@pytest.fixture
def two_processes(monkeypatch):
    """A job of two processes with a GPU each."""
    monkeypatch.setattr(d2.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(d2.comm, "all_gather", lambda gpu: [gpu, None])
    monkeypatch.setattr(process_checks, "check_exchange", lambda *_: None)


def test_one_process_takes_any_batch():
    check_processes(small_config("MODEL.DEVICE", "cuda", "SOLVER.IMS_PER_BATCH", "3"))


def test_processes_share_the_batch_evenly(two_processes):
    cfg = small_config("MODEL.DEVICE", "cuda", "SOLVER.IMS_PER_BATCH", "3")
    with pytest.raises(ValueError, match="SOLVER.IMS_PER_BATCH is 3; it must be a positive multiple of .* 2"):
        check_processes(cfg)
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 1  # the batch will be scaled to 6
    check_processes(cfg)


@pytest.mark.parametrize("wrong", ["0", "3"])
def test_micro_batches_share_the_images_of_a_process_evenly(wrong, two_processes):
    check_processes(small_config("MODEL.DEVICE", "cuda", "SOLVER.IMS_PER_BATCH", "8", "SOLVER.ACCUMULATE", "4"))
    cfg = small_config("MODEL.DEVICE", "cuda", "SOLVER.IMS_PER_BATCH", "8", "SOLVER.ACCUMULATE", wrong)
    with pytest.raises(ValueError, match=f"SOLVER.ACCUMULATE is {wrong}; it must be a positive divisor of .* step, 4"):
        check_processes(cfg)


@pytest.mark.skipif(d2.ENGINE != "detectron2", reason="lite trains several processes on a CPU")
def test_what_detectron2_does_on_gpus_only(two_processes):
    with pytest.raises(ValueError, match="Detectron2 trains one process, not 2; .* RETINANET_EXT_ENGINE=lite"):
        check_processes(small_config())


@pytest.mark.parametrize(
    ("device", "gpus", "shared"),
    [
        ("cuda", ["GPU-a", "GPU-b", "GPU-a"], r"processes \[0, 2\] would train on one GPU \(GPU-a\).* sees 1 GPU"),
        # SLURM can show each process a single GPU, which differs between processes.
        ("cuda", ["GPU-a", "GPU-b", "GPU-c"], None),
        ("cpu", [None, None, None], None),
    ],
)
def test_two_processes_on_one_gpu_are_refused(monkeypatch, device, gpus, shared):
    if d2.ENGINE == "detectron2" and device == "cpu":
        pytest.skip("several processes on a CPU are refused earlier on Detectron2")
    gathered = []
    monkeypatch.setattr(process_checks, "check_exchange", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="GPU-a"))
    monkeypatch.setattr(d2.comm, "get_world_size", lambda: 3)
    monkeypatch.setattr(d2.comm, "all_gather", lambda gpu: gathered.append(gpu) or gpus)
    cfg = small_config("MODEL.DEVICE", device, "SOLVER.IMS_PER_BATCH", "3")
    with pytest.raises(ValueError, match=shared) if shared else nullcontext():
        check_processes(cfg)
    assert gathered == [gpus[0]]
