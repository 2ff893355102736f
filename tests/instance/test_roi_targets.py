"""Labels and samples of RoIs."""

import torch

from retinanet_ext.instance.sampling import subsample_each, subsample_labels

BACKGROUND = 3


def test_samples_of_a_batch_are_those_of_each_image_with_equal_draws(generator):
    labels = [torch.randint(-1, BACKGROUND + 1, (size,), generator=generator) for size in (40, 0, 7, 25)]
    for settings in ((16, 0.25, BACKGROUND), (1000, 1.0, BACKGROUND), (0, 0.5, BACKGROUND)):
        torch.manual_seed(1)
        expected = [subsample_labels(image, *settings) for image in labels]
        torch.manual_seed(1)
        for a, b in zip(subsample_each(labels, *settings), expected, strict=True):
            assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert subsample_each([], 16, 0.25, BACKGROUND) == []
