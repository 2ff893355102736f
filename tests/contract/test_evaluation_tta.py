"""`DatasetMapperTTA` of the embedded engine against Detectron2's, on the same input."""

import numpy as np
import pytest
import torch

from retinanet_ext.lite.cfg_node import get_cfg
from retinanet_ext.lite.data.tta_mapper import DatasetMapperTTA

d2_config = pytest.importorskip("detectron2.config", reason="needs Detectron2 to compare with")
d2_modeling = pytest.importorskip("detectron2.modeling", reason="needs Detectron2 to compare with")


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(
    "height, width, original",
    [(40, 60, (80, 121)), (60, 40, (60, 40)), (33, 57, (57, 33)), (20, 90, (20, 90))],
)
def test_same_images_and_same_way_back(height, width, original, flip):
    """Original images of the mapped size and of another size, upright, flat, and so long that MAX_SIZE applies."""
    settings = ["TEST.AUG.MIN_SIZES", (24, 32, 75), "TEST.AUG.MAX_SIZE", 110, "TEST.AUG.FLIP", flip]
    ours, theirs = get_cfg(), d2_config.get_cfg()
    ours.merge_from_list(settings)
    theirs.merge_from_list(settings)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mapped = {
        "image": image,
        "height": original[0],
        "width": original[1],
        "image_id": 7,
        "file_name": "a.jpg",
    }

    found = DatasetMapperTTA(ours)(mapped)
    expected = d2_modeling.DatasetMapperTTA(theirs)(mapped)

    assert len(found) == len(expected) == (6 if flip else 3)
    boxes = np.array([[0.0, 0.0, 5.0, 7.0], [3.5, 2.25, 11.0, 19.0]])
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        assert torch.equal(a["image"], b["image"]) and a["image"].is_contiguous()
        assert {k: a[k] for k in ("height", "width", "image_id", "file_name")} == {
            k: b[k] for k in ("height", "width", "image_id", "file_name")
        }
        np.testing.assert_allclose(
            a["transforms"].inverse().apply_box(boxes), b["transforms"].inverse().apply_box(boxes), atol=1e-9
        )


def test_same_versions_for_the_default_config():
    image = torch.zeros(3, 12, 16, dtype=torch.uint8)
    mapped = {"image": image, "height": 12, "width": 16}
    shapes = [
        [tuple(version["image"].shape) for version in mapper(mapped)]
        for mapper in (DatasetMapperTTA(get_cfg()), d2_modeling.DatasetMapperTTA(d2_config.get_cfg()))
    ]
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) == 18
