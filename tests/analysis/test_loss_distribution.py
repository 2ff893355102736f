"""The distribution of the loss: the histogram against sorting all losses, the paper's statements on a trained model."""

import math

import numpy as np
import pytest
import torch

from retinanet_ext.analysis.loss_distribution import (
    BIN_WIDTH,
    MAX_MARGIN,
    MarginHistogram,
    annotated_loader,
    loss_distribution,
    sorted_curve,
)
from retinanet_ext.d2 import build_model
from retinanet_ext.detection.matcher import BACKGROUND, FOREGROUND, IGNORE
from tests.builders import batch, ground_truth, shapes_config, small_config

GAMMAS = (0.0, 0.5, 1.0, 2.0)


def like_a_detector(generator, count=20000):
    """Margins of many easy entries and some hard ones."""
    easy = 5 + 2 * torch.randn(count, generator=generator)
    hard = -1 + 3 * torch.randn(count // 50, generator=generator)
    return torch.cat([easy, hard])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_histogram_gives_the_sorted_curve_within_its_bound(gamma, generator):
    margins = like_a_detector(generator)
    histogram = MarginHistogram([gamma])
    for part in margins.split(777):
        histogram.add(part)
    assert len(histogram) == len(margins)
    fraction, share = histogram.curve(gamma)
    expected_fraction, expected_share = sorted_curve(margins, gamma)
    assert fraction[0] == share[0] == 0.0 and fraction[-1] == pytest.approx(1) and share[-1] == pytest.approx(1)

    # Between bins the curve is exact. The sorted curve's points are 1/M apart, so fractions are multiples of 1/M.
    index = np.rint(fraction * len(margins)).astype(int)
    np.testing.assert_allclose(fraction * len(margins), index, atol=1e-6)
    np.testing.assert_allclose(share, expected_share[index], rtol=1e-9, atol=1e-12)
    # Inside a bin the line lies above the sorted curve, by at most the bound in the docstring.
    excess = np.interp(expected_fraction, fraction, share) - expected_share
    bound = (1 + gamma) * BIN_WIDTH / 4 * np.diff(share).max()
    assert excess.min() > -1e-12 and 0 < excess.max() <= bound + 1e-12


def test_every_curve_is_that_of_its_gamma(generator):
    margins = like_a_detector(generator, 5000).half()  # raised to float64 before anything is computed
    histogram = MarginHistogram(GAMMAS)
    histogram.add(margins)
    for gamma in GAMMAS:
        p_t = torch.sigmoid(margins.double())
        hardest = (-((1 - p_t) ** gamma) * p_t.log()).sort(descending=True).values
        for fraction in (0.01, 0.1, 0.5):
            expected = hardest[: round(fraction * len(hardest))].sum() / hardest.sum()
            assert histogram.hardest(fraction, gamma) == pytest.approx(float(expected), abs=1e-4)


def test_shares_by_hand():
    """Three entries with cross entropies ln 2, ln 4 and ln 16 hold 1/7, 2/7 and 4/7 of the loss."""
    histogram = MarginHistogram([0.0])
    p_t = torch.tensor([1 / 4, 1 / 16, 1 / 2], dtype=torch.float64)
    histogram.add(torch.logit(p_t))
    np.testing.assert_allclose(histogram.curve(0.0), [[0, 1 / 3, 2 / 3, 1], [0, 1 / 7, 3 / 7, 1]], atol=1e-12)
    assert histogram.hardest(1 / 3, 0.0) == pytest.approx(4 / 7)
    assert histogram.hardest(0.5, 0.0) == pytest.approx(5 / 7)  # half of the middle entry
    assert histogram.hardest(0.0, 0.0) == 0.0 and histogram.hardest(1.0, 0.0) == 1.0


def test_margins_outside_the_range_join_the_end_bins():
    histogram = MarginHistogram([0.0])
    histogram.add(torch.tensor([-1000.0, -MAX_MARGIN - 1, 0.0, MAX_MARGIN, 1000.0]))
    fraction, share = histogram.curve(0.0)
    np.testing.assert_allclose(fraction, [0, 0.4, 0.6, 1])
    total = 1000 + MAX_MARGIN + 1 + math.log(2)  # the losses themselves are not clamped
    np.testing.assert_allclose(share, [0, 0, math.log(2) / total, 1], atol=1e-12)


@pytest.mark.parametrize("gammas", [[], [1.0, 1.0], [-1.0]])
def test_bad_gammas(gammas):
    with pytest.raises(ValueError, match="gamma"):
        MarginHistogram(gammas)


def test_nothing_to_normalise():
    with pytest.raises(ValueError, match="nothing to normalise"):
        MarginHistogram([2.0]).curve(2.0)
    with pytest.raises(ValueError, match="gamma is 1.0; the losses were summed for 2.0"):
        MarginHistogram([2.0]).curve(1.0)


def test_entries_are_those_of_the_paper(generator):
    """Foreground anchors count for their own class, background anchors for all, ignored anchors not at all."""
    torch.manual_seed(0)
    model = build_model(small_config()).train()
    states = torch.tensor([FOREGROUND, IGNORE, BACKGROUND, FOREGROUND])

    def matcher(anchors, gt_boxes):
        """The first four anchors by hand, the rest background."""
        state = torch.full((len(anchors),), BACKGROUND)
        state[:4] = states
        return torch.zeros(len(anchors), dtype=torch.int64), state

    model.anchor_matcher = matcher
    images = batch(generator, (64, 64), (64, 64), num_objects=1)
    together = loss_distribution(model, [images], [0.0, 2.0])
    assert model.training  # its mode is unchanged
    model.eval()
    with torch.no_grad():
        logits = torch.cat(model.network(model.preprocess_image(images).tensor)[1], dim=1)
    classes = [int(inputs["instances"].gt_classes[0]) for inputs in images]
    foreground = torch.stack([logits[i, r, k] for i, k in enumerate(classes) for r in (0, 3)])
    background = -torch.cat([logits[:, 2:3], logits[:, 4:]], dim=1)
    for margins, histogram in ((foreground, together.foreground), (background, together.background)):
        assert len(histogram) == margins.numel()
        expected = np.interp(0.9, *sorted_curve(margins.flatten(), 2.0))
        assert histogram.hardest(0.1, 2.0) == pytest.approx(1 - expected, abs=1e-3)
    assert (together.num_images, together.num_ignored) == (2, 2)

    apart = loss_distribution(model, [images[:1], images[1:]], [0.0, 2.0])
    for histogram, other in ((apart.foreground, together.foreground), (apart.background, together.background)):
        assert len(histogram) == len(other)
        assert histogram.hardest(0.1, 2.0) == pytest.approx(other.hardest(0.1, 2.0), abs=1e-3)


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """The config and a model after 50 steps on the generated shapes."""
    cfg = shapes_config(shapes, tmp_path_factory.mktemp("run"))
    torch.manual_seed(0)
    model = build_model(cfg).train()
    images = [image for (image,) in annotated_loader(cfg, cfg.DATASETS.TRAIN[0])]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for step in range(50):
        first = 4 * step % len(images)
        optimizer.zero_grad()
        sum(model(images[first : first + 4]).values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    return cfg, model


def test_the_papers_statements_hold_for_a_small_trained_model(trained):
    """Gamma 2 moves the background loss to its hardest entries, and changes the foreground loss little (Figure 4).

    Measured with three seeds: from gamma 0 to 2 the share of the hardest tenth rises by 0.55 to 0.65 for background and
    by 0.02 for foreground; the share of the hardest fifth rises by 0.47 to 0.52 and by 0.03 to 0.04.
    """
    cfg, model = trained
    found = loss_distribution(model, annotated_loader(cfg, cfg.DATASETS.TEST[0]), GAMMAS)
    assert found.num_images == 6 and len(found.foreground) > 50 and len(found.background) > 10000
    for fraction in (0.1, 0.2):
        foreground = [found.foreground.hardest(fraction, gamma) for gamma in GAMMAS]
        background = [found.background.hardest(fraction, gamma) for gamma in GAMMAS]
        assert foreground == sorted(foreground) and background == sorted(background)
        assert background[-1] - background[0] > 0.35 and background[-1] > 0.75
        assert foreground[-1] - foreground[0] < 0.08


def test_ground_truth_is_resized_like_the_image(shapes, tmp_path):
    """At 192 pixels, twice the size of the images, boxes are twice as large; nothing is flipped or cropped."""
    flips = ["INPUT.RANDOM_FLIP", "horizontal", "INPUT.CROP.ENABLED", "True", "INPUT.MIN_SIZE_TRAIN", "(48,)"]
    small, large = (shapes_config(shapes, tmp_path, "INPUT.MIN_SIZE_TEST", size, *flips) for size in ("96", "192"))
    name = small.DATASETS.TEST[0]
    pairs = list(zip(annotated_loader(small, name, 3), annotated_loader(large, name, 3)))
    assert len(pairs) == 3
    for (a,), (b,) in pairs:
        assert a["image"].shape == (3, 96, 96) and b["image"].shape == (3, 192, 192)
        torch.testing.assert_close(2 * a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
    with pytest.raises(ValueError, match="max_images is 0"):
        annotated_loader(small, name, 0)


def test_ground_truth_of_a_config_with_masks_and_keypoints(shapes, tmp_path):
    """Boxes alone are read, whatever the training data, which may lack a flip map or not be on this machine."""
    cfg = shapes_config(shapes, tmp_path, "MODEL.MASK_ON", "True", "MODEL.KEYPOINT_ON", "True")
    cfg.DATASETS.TRAIN = ("not on this machine",)
    ((inputs,),) = annotated_loader(cfg, cfg.DATASETS.TEST[0], 1)
    assert sorted(inputs["instances"].get_fields()) == ["gt_boxes", "gt_classes"]


def test_errors(generator):
    model = build_model(small_config())
    images = batch(generator, (64, 64))
    with pytest.raises(ValueError, match="gave no images"):
        loss_distribution(model, [])
    empty = [{**images[0], "instances": ground_truth(64, 64)}]
    with pytest.raises(ValueError, match="none of the anchors of 1 images is foreground"):
        loss_distribution(model, [empty])
    with pytest.raises(ValueError, match="image_0.png: no 'instances'"):
        loss_distribution(model, [[{k: v for k, v in images[0].items() if k != "instances"}]])
    outside = ground_truth(64, 64, [[0, 0, 9, 9]], [3])
    with pytest.raises(ValueError, match="has class 3; legal are 0..2"):
        loss_distribution(model, [[{**images[0], "instances": outside}]])
    with pytest.raises(TypeError, match="takes a FocalRetinaNet, got Linear"):
        loss_distribution(torch.nn.Linear(1, 1), [images])
    torch.nn.init.constant_(model.head.cls_score.bias, float("nan"))
    with pytest.raises(ValueError, match="not all finite for image_0.png"):
        loss_distribution(model, [images])
