import pytest
import torch

from retinanet_ext.detection import EMANormalizer, ForegroundNormalizer


def test_moving_average_by_hand():
    normalizer = EMANormalizer(momentum=0.9, initial=100.0)
    # 0.9 * 100 + 0.1 * (20 + 30) = 95; every image of the batch has the same weight.
    assert normalizer(torch.tensor([20, 30])).tolist() == pytest.approx([1 / 95, 1 / 95])
    # A batch without foreground counts as one anchor: 0.9 * 95 + 0.1.
    assert normalizer(torch.tensor([0])).tolist() == pytest.approx([1 / 85.6])


def test_moving_average_is_saved_and_need_not_be_there():
    normalizer = EMANormalizer()
    normalizer(torch.tensor([20]))
    restored = EMANormalizer()
    restored.load_state_dict(normalizer.state_dict())
    assert restored.average.item() == pytest.approx(92.0)
    assert EMANormalizer().load_state_dict({}).missing_keys == []


def test_foreground_of_each_image():
    # The mean over two images of loss_i / foreground_i; an image without foreground divides by 1.
    assert ForegroundNormalizer()(torch.tensor([4, 0])).tolist() == pytest.approx([1 / 8, 1 / 2])
