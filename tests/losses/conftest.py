import pytest

from retinanet_ext.losses import one_pass


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks an image, the last of them smaller: 12 anchors of 4 classes."""
    monkeypatch.setattr(one_pass, "CPU_BLOCK", 50)
    monkeypatch.setattr(one_pass, "GPU_BLOCK", 50)
