import pytest

from retinanet_ext.losses import one_pass


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks per image, of 12 anchors with 4 classes; the last block is smaller."""
    monkeypatch.setattr(one_pass, "CPU_BLOCK", 50)
    monkeypatch.setattr(one_pass, "GPU_BLOCK", 50)
