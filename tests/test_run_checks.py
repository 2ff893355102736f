import pytest
import torch

from retinanet_ext import d2
from retinanet_ext.run_checks import check_device, check_processes
from tests.builders import small_config


def test_devices():
    check_device("cpu")
    with pytest.raises(ValueError, match="MODEL.DEVICE is 'gpu'; legal are cpu, cuda"):
        check_device("gpu")
    with pytest.raises(ValueError, match="MODEL.DEVICE is 'cuda:99', but PyTorch finds"):
        check_device("cuda:99")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none_names_the_way_out():
    with pytest.raises(ValueError, match="MODEL.DEVICE is 'cuda', but .* no CUDA device; set `MODEL.DEVICE cpu`"):
        check_device("cuda")


def test_processes_share_the_batch_evenly(monkeypatch):
    cfg = small_config("MODEL.DEVICE", "cuda", "SOLVER.IMS_PER_BATCH", "3")
    check_processes(cfg)
    monkeypatch.setattr(d2.comm, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="SOLVER.IMS_PER_BATCH is 3; it must be a positive multiple of .* 2"):
        check_processes(cfg)
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 1  # the batch will be scaled to 6
    check_processes(cfg)


@pytest.mark.parametrize("wrong", ["0", "3"])
def test_micro_batches_share_the_images_of_a_process_evenly(wrong, monkeypatch):
    monkeypatch.setattr(d2.comm, "get_world_size", lambda: 2)
    check_processes(small_config("MODEL.DEVICE", "cuda", "SOLVER.IMS_PER_BATCH", "8", "SOLVER.ACCUMULATE", "4"))
    cfg = small_config("MODEL.DEVICE", "cuda", "SOLVER.IMS_PER_BATCH", "8", "SOLVER.ACCUMULATE", wrong)
    with pytest.raises(ValueError, match=f"SOLVER.ACCUMULATE is {wrong}; it must be a positive divisor of .* step, 4"):
        check_processes(cfg)


@pytest.mark.skipif(d2.ENGINE != "detectron2", reason="lite can do it on a CPU")
def test_what_detectron2_does_on_gpus_only(monkeypatch):
    monkeypatch.setattr(d2.comm, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="Detectron2 trains one process, not 2; .* RETINANET_EXT_ENGINE=lite"):
        check_processes(small_config())
