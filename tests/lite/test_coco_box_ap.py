"""The fast computation of box AP against the reference, pycocotools, on awkward data."""

import numpy as np
import pytest

from retinanet_ext.lite.evaluation.coco_box_ap import compute_box_metrics


def _adversarial(seed):
    """Ground truth and predictions with ties, crowds, copies, empty images, border areas, 150 an image."""
    rng = np.random.default_rng(seed)
    categories = [3 * k + 1 for k in range(rng.integers(1, 4))]
    sides = [(32, 32), (96, 96), (64, 16), (5, 7), (250, 180), (93, 97)]
    images = [{"id": int(i)} for i in rng.permutation(20)[: rng.integers(1, 10)]]
    annotations, results = [], []

    def box():
        width, height = sides[rng.integers(len(sides))]
        return [float(rng.integers(300)), float(rng.integers(300)), float(width), float(height)]

    def result(image, category, xywh):
        score = float(rng.choice([0.2, 0.4, 0.6, rng.random()]))
        results.append({"image_id": image["id"], "category_id": category, "bbox": xywh, "score": score})

    for image in images:
        for _ in range(rng.choice([0, 1, 25])):
            xywh, category = box(), int(rng.choice(categories))
            crowd = int(rng.random() < 0.2)
            area = xywh[2] * xywh[3] * float(rng.choice([1, 0.6]))
            annotations.append(
                {
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": xywh,
                    "area": area,
                    "iscrowd": crowd,
                }
            )
            for _ in range(rng.integers(0, 4)):
                moved = xywh if rng.random() < 0.3 else (np.array(xywh) + rng.integers(0, 9, 4)).tolist()
                result(image, category, moved)
        for _ in range(rng.choice([0, 2, 150])):
            result(image, int(rng.choice(categories)), box())
    return {"images": images, "annotations": annotations}, results, categories


@pytest.mark.parametrize("max_dets", [100, 20, 1])
def test_fast_implementation_gives_the_same_numbers(max_dets):
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed: nothing to compare")
    defined = 0
    for seed in range(15):
        coco, results, categories = _adversarial(seed)
        fast, reference = (
            compute_box_metrics(coco, results, categories, max_dets_per_image=max_dets, use_fast_impl=fast)
            for fast in (True, False)
        )
        np.testing.assert_allclose(fast.precision, reference.precision, rtol=0, atol=1e-12)
        np.testing.assert_allclose(fast.recall, reference.recall, rtol=0, atol=1e-12)
        defined += (reference.precision > 0).sum()
    assert defined > 1000
