"""Test-time augmentation: the versions of an image, and mapping boxes back to the original."""

import numpy as np
import torch

from retinanet_ext.lite.cfg_node import get_cfg
from retinanet_ext.lite.data.tta_mapper import DatasetMapperTTA


def test_versions_and_way_back():
    """A 20x30 image of a 40x60 original, to short sides 10 and 40 with the long side at most 45.

    10: 10x15. 40 would be 40x60; 60 > 45, so 30x45.
    """
    mapped = {"image": torch.zeros(3, 20, 30, dtype=torch.uint8), "height": 40, "width": 60, "image_id": 5}
    versions = DatasetMapperTTA(min_sizes=[10, 40], max_size=45, flip=True)(mapped)
    assert [tuple(v["image"].shape) for v in versions] == [(3, 10, 15)] * 2 + [(3, 30, 45)] * 2
    assert all(v["image_id"] == 5 and v["height"] == 40 and v["width"] == 60 for v in versions)
    # In the 10x15 version one pixel is four of the original. Mirrored, x 1..3 was 12..14.
    box = np.array([[1.0, 2.0, 3.0, 4.0]])
    np.testing.assert_allclose(versions[0]["transforms"].inverse().apply_box(box), [[4, 8, 12, 16]])
    np.testing.assert_allclose(versions[1]["transforms"].inverse().apply_box(box), [[48, 8, 56, 16]])
    assert tuple(mapped["image"].shape) == (3, 20, 30) and "transforms" not in mapped


def test_mirror_image_is_mirrored():
    image = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 4).expand(3, 3, 4)
    plain, mirrored = DatasetMapperTTA([3], 100, True)({"image": image, "height": 3, "width": 4})
    assert torch.equal(plain["image"], image)
    assert torch.equal(mirrored["image"], image.flip(2))


def test_reads_the_config_and_leaves_random_state_alone():
    cfg = get_cfg()
    cfg.merge_from_list(["TEST.AUG.MIN_SIZES", (8, 16), "TEST.AUG.FLIP", False])
    state = np.random.get_state()[1].copy()
    mapped = {"image": torch.zeros(3, 8, 8, dtype=torch.uint8), "height": 8, "width": 8}
    versions = DatasetMapperTTA(cfg)(mapped)
    assert [tuple(v["image"].shape) for v in versions] == [(3, 8, 8), (3, 16, 16)]
    assert np.array_equal(state, np.random.get_state()[1])
