import pytest
import torch

from retinanet_ext.machine.devices import check_device


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
