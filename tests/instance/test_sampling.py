"""Samples of anchors and proposals, by counts."""

import pytest
import torch

from retinanet_ext.instance.sampling import subsample_batch, subsample_each, subsample_labels

BACKGROUND = 7


def labels_of(foreground: int, background: int, ignored: int = 5) -> torch.Tensor:
    """Labels in random order; foreground has the classes 0 to 6."""
    parts = [torch.arange(foreground) % 7, torch.full((background,), BACKGROUND), torch.full((ignored,), -1)]
    labels = torch.cat(parts)
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))]


@pytest.mark.parametrize(
    "foreground, background, fraction, expected",
    [
        (300, 1000, 0.5, (128, 128)),  # enough of both
        (300, 1000, 0.25, (64, 192)),
        (10, 1000, 0.5, (10, 246)),  # background fills up
        (300, 20, 0.5, (128, 20)),  # foreground does not
        (0, 1000, 0.5, (0, 256)),
        (300, 0, 0.5, (128, 0)),
        (0, 0, 0.5, (0, 0)),
        (300, 1000, 0.0, (0, 256)),
        (300, 1000, 1.0, (256, 0)),
        (300, 1000, 0.003, (0, 256)),  # 0.768 rounds down
    ],
)
def test_counts(foreground, background, fraction, expected):
    labels = labels_of(foreground, background)
    found, rest = subsample_labels(labels, 256, fraction, BACKGROUND)
    assert (len(found), len(rest)) == expected
    assert ((labels[found] >= 0) & (labels[found] < BACKGROUND)).all() and (labels[rest] == BACKGROUND).all()
    assert len(set(found.tolist())) == len(found) and len(set(rest.tolist())) == len(rest)


def test_every_candidate_is_drawn_equally_often():
    torch.manual_seed(0)
    labels = labels_of(20, 40, ignored=4)
    times = torch.zeros(len(labels))
    for _ in range(2000):
        for part in subsample_labels(labels, 20, 0.25, BACKGROUND):
            times[part] += 1
    # Foreground 5 of 20, background 15 of 40; the bounds are six standard deviations.
    foreground, background = (labels >= 0) & (labels < BACKGROUND), labels == BACKGROUND
    assert (times[foreground] - 500).abs().max() < 6 * (2000 * 0.25 * 0.75) ** 0.5
    assert (times[background] - 750).abs().max() < 6 * (2000 * 0.375 * 0.625) ** 0.5
    assert (times[labels == -1] == 0).all()


def test_a_batch_draws_what_its_images_draw():
    images = [labels_of(30, 70), labels_of(0, 100), labels_of(90, 0, ignored=15), labels_of(3, 97)]
    labels = torch.stack([image[:100] for image in images])
    torch.manual_seed(1)
    expected = torch.full_like(labels, -1)
    for image, sampled in zip(labels, expected):
        for part in subsample_labels(image, 16, 0.5, BACKGROUND):
            sampled[part] = image[part]
    torch.manual_seed(1)
    assert torch.equal(subsample_batch(labels, 16, 0.5, BACKGROUND), expected)


def test_a_batch_without_images():
    assert subsample_batch(torch.zeros(0, 9, dtype=torch.int64), 16, 0.5, BACKGROUND).shape == (0, 9)


def test_images_with_other_numbers_of_labels_have_equal_draws(generator):
    labels = [torch.randint(-1, BACKGROUND + 1, (size,), generator=generator) for size in (40, 0, 7, 25)]
    for settings in ((16, 0.25, BACKGROUND), (1000, 1.0, BACKGROUND), (0, 0.5, BACKGROUND)):
        torch.manual_seed(1)
        expected = [subsample_labels(image, *settings) for image in labels]
        torch.manual_seed(1)
        for a, b in zip(subsample_each(labels, *settings), expected, strict=True):
            assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
    assert subsample_each([], 16, 0.25, BACKGROUND) == []
