import pytest

from retinanet_ext.ops import dense_blocked


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks an image, the last of them smaller: 12 anchors of 4 classes."""
    monkeypatch.setattr(dense_blocked, "CPU_BLOCK", 50)
    monkeypatch.setattr(dense_blocked, "GPU_BLOCK", 50)
