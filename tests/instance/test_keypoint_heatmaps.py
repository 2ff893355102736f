import math

import pytest
import torch

from retinanet_ext.instance import keypoint_heatmaps
from retinanet_ext.instance.keypoint_heatmaps import (
    heatmaps_to_keypoints,
    heatmaps_to_keypoints_reference,
    keypoints_to_heatmap_index,
)
from tests.instance.rois import random_boxes

SIZE = 56


def random_keypoints(generator, rois, num_keypoints=17):
    """Some beyond their RoI, some on its borders, some not labelled."""
    low, high = rois[:, None, :2], rois[:, None, 2:]
    points = low + (torch.rand(len(rois), num_keypoints, 2, generator=generator) * 1.4 - 0.2) * (high - low)
    points[:, 0], points[:, 1], points[:, 2] = low[:, 0], high[:, 0], torch.cat([low[..., :1], high[..., 1:]], 2)[:, 0]
    visibility = torch.randint(0, 3, (len(rois), num_keypoints, 1), generator=generator)
    visibility[:, :3] = 2
    return torch.cat([points, visibility], dim=2)


def test_the_half_pixel_rule_by_hand():
    """A RoI of 8x4 pixels at (10, 20) in a map of 4x4: cells of 2x1 pixels."""
    roi = torch.tensor([[10.0, 20.0, 18.0, 24.0]])
    points = [
        (10.0, 20.0, 0, 0),  # the corner is in the first cell
        (11.99, 20.99, 0, 0),
        (12.0, 21.0, 1, 1),  # a border between cells belongs to the right one
        (15.5, 22.5, 2, 2),
        (18.0, 24.0, 3, 3),  # the far border belongs to the last cell
        (18.0, 20.5, 3, 0),
    ]
    keypoints = torch.tensor([[(x, y, 1.0) for x, y, _, _ in points]])
    index, valid = keypoints_to_heatmap_index(keypoints, roi, 4)
    assert valid.all() and index.dtype == torch.int64
    assert index[0].tolist() == [row * 4 + column for _, _, column, row in points]


def test_keypoints_without_a_cell():
    nan, inf = float("nan"), float("inf")
    roi = torch.tensor([[10.0, 20.0, 18.0, 24.0]])
    keypoints = torch.tensor([[
        (11.0, 21.0, 0.0), (9.99, 21.0, 2.0), (18.01, 21.0, 2.0), (11.0, 19.9, 2.0), (11.0, 24.1, 2.0),
        (nan, 21.0, 2.0), (inf, 21.0, 2.0), (1e30, 21.0, 2.0),
    ]])  # fmt: skip
    index, valid = keypoints_to_heatmap_index(keypoints, roi, 4)
    assert not valid.any() and not index.any()
    # A RoI without area has no cells, whatever the point.
    index, valid = keypoints_to_heatmap_index(
        torch.tensor([[(11.0, 21.0, 2.0)]]), torch.tensor([[11.0, 20, 11, 24]]), 4
    )
    assert index.max() < 16


def test_index_by_loop(generator):
    rois = random_boxes(6, generator)
    keypoints = random_keypoints(generator, rois)
    index, valid = keypoints_to_heatmap_index(keypoints, rois, SIZE)
    for m, roi in enumerate(rois.tolist()):
        for j, (x, y, visibility) in enumerate(keypoints[m].tolist()):
            cells = []
            for value, low, high in ((x, roi[0], roi[2]), (y, roi[1], roi[3])):
                cells.append(SIZE - 1 if value == high else math.floor((value - low) / (high - low) * SIZE))
            expected = visibility > 0 and all(0 <= cell < SIZE for cell in cells)
            assert valid[m, j] == expected
            assert index[m, j] == (cells[1] * SIZE + cells[0] if expected else 0)


def test_there_and_back(generator):
    """A peak in a keypoint's cell comes back within a cell and a pixel of the keypoint.

    In a RoI with fewer pixels than cells the peak could lie between two pixels.
    """
    rois = random_boxes(8, generator, size=200)
    rois[:, 2:] += SIZE
    keypoints = random_keypoints(generator, rois)
    index, valid = keypoints_to_heatmap_index(keypoints, rois, SIZE)
    heatmaps = torch.full((8, 17, SIZE * SIZE), -20.0).scatter_(2, index[:, :, None], 20.0).view(8, 17, SIZE, SIZE)
    found = heatmaps_to_keypoints(heatmaps, rois)
    tolerance = (rois[:, None, 2:] - rois[:, None, :2]) / SIZE + 1
    assert valid.sum() > 50
    assert ((found[..., :2] - keypoints[..., :2]).abs() < tolerance)[valid].all()


def test_back_by_hand():
    """A heatmap of the RoI's size is not interpolated: the maximum is the centre of its pixel."""
    heatmap = torch.zeros(1, 1, 4, 4)
    heatmap[0, 0, 1, 2] = math.log(5)
    for form in (heatmaps_to_keypoints, heatmaps_to_keypoints_reference):
        x, y, logit, score = form(heatmap, torch.tensor([[10.0, 20.0, 14.0, 24.0]]))[0, 0].tolist()
        assert (x, y) == (12.5, 21.5)
        assert logit == pytest.approx(math.log(5)) and score == pytest.approx(5 / (5 + 15))


def smooth(generator, count, size=SIZE):
    coarse = torch.randn(count, 17, 7, 7, generator=generator) * 5
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")


@pytest.mark.parametrize("kind", ["smooth", "noise", "flat", "tied"])
def test_the_fast_form_equals_the_reference(kind, generator, monkeypatch):
    rois = random_boxes(12, generator, size=150)
    rois[0] = torch.tensor([5.0, 5.0, 5.2, 5.9])  # smaller than a pixel
    rois[1] = torch.tensor([5.0, 5.0, 61.0, 61.0])
    rois[2] = torch.tensor([5.0, 5.0, 5.0, 90.0])  # without area
    if kind == "smooth":
        heatmaps = smooth(generator, 12)
    elif kind == "noise":
        heatmaps = torch.randn(12, 17, SIZE, SIZE, generator=generator) * 3
    elif kind == "flat":
        heatmaps = torch.full((12, 17, SIZE, SIZE), 0.37)
    else:
        # Symmetric, so that two maxima differ by rounding at most.
        heatmaps = smooth(generator, 12)
        heatmaps = heatmaps + heatmaps.flip(3)
    expected = heatmaps_to_keypoints_reference(heatmaps, rois)
    for limit in (1, 2**18, 2**30):
        monkeypatch.setitem(keypoint_heatmaps.VALUES_OF_CHUNK, "cpu", limit)
        found = heatmaps_to_keypoints(heatmaps, rois)
        assert found.shape == (12, 17, 4)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert found[..., :2].equal(expected[..., :2])


def test_autocast_does_not_round(generator):
    rois, heatmaps = random_boxes(4, generator), smooth(generator, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = heatmaps_to_keypoints(heatmaps, rois)
    assert found.equal(heatmaps_to_keypoints(heatmaps, rois))


def test_no_rois():
    keypoints, rois = torch.zeros(0, 17, 3), torch.zeros(0, 4)
    index, valid = keypoints_to_heatmap_index(keypoints, rois, SIZE)
    assert index.shape == valid.shape == (0, 17)
    assert heatmaps_to_keypoints(torch.zeros(0, 17, SIZE, SIZE), rois).shape == (0, 17, 4)


def test_a_heatmap_that_is_not_a_number_stops_nothing(generator):
    heatmaps = smooth(generator, 2)
    heatmaps[0, 0] = float("nan")
    found = heatmaps_to_keypoints(heatmaps, random_boxes(2, generator))
    assert found[0, 0, 3].isnan() and found[1].isfinite().all()


def test_equals_detectron2(generator):
    theirs = pytest.importorskip("detectron2.structures.keypoints")
    rois = random_boxes(10, generator, size=120)
    keypoints = random_keypoints(generator, rois)
    index, valid = keypoints_to_heatmap_index(keypoints, rois, SIZE)
    expected_index, expected_valid = theirs.Keypoints(keypoints).to_heatmap(rois, SIZE)
    assert index.equal(expected_index) and valid.equal(expected_valid.bool())
    for heatmaps in (smooth(generator, 10), torch.randn(10, 17, SIZE, SIZE, generator=generator)):
        found, expected = heatmaps_to_keypoints(heatmaps, rois), theirs.heatmaps_to_keypoints(heatmaps, rois)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
