"""The fast computation of box AP against the reference, pycocotools, on awkward data."""

import numpy as np
import pytest

from retinanet_ext.lite.evaluation import box_matching
from retinanet_ext.lite.evaluation.coco_box_ap import compute_box_metrics
from retinanet_ext.lite.evaluation.coco_predictions import ImagePredictions


def _adversarial(seed):
    """Ground truth and predictions with ties, crowds, copies, empty images, border areas, up to 150 more per image.

    Returns a COCO dict, predictions by image id, and {class: category id}.
    """
    rng = np.random.default_rng(seed)
    categories = [3 * k + 1 for k in range(rng.integers(1, 4))]
    sides = [(32, 32), (96, 96), (64, 16), (5, 7), (250, 180), (93, 97)]
    images = [{"id": int(i)} for i in rng.permutation(20)[: rng.integers(1, 10)]]
    annotations, results = [], {image["id"]: [] for image in images}

    def box():
        width, height = sides[rng.integers(len(sides))]
        return [float(rng.integers(300)), float(rng.integers(300)), float(width), float(height)]

    def result(image, category, xywh):
        score = float(rng.choice([0.2, 0.4, 0.6, rng.random()]))
        results[image["id"]].append((categories.index(category), xywh, score))

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
    predictions = {image_id: _predictions(found) for image_id, found in results.items()}
    return {"images": images, "annotations": annotations}, predictions, dict(enumerate(categories))


def _predictions(found):
    return ImagePredictions(
        boxes=np.array([xywh for _, xywh, _ in found], dtype=np.float64).reshape(-1, 4),
        scores=np.array([score for _, _, score in found], dtype=np.float64),
        classes=np.array([k for k, _, _ in found], dtype=np.int64),
    )


@pytest.mark.parametrize("max_dets", [100, 20, 1])
def test_all_images_at_once_give_the_numbers_of_pycocotools(max_dets):
    defined = 0
    for seed in range(15):
        coco, predictions, categories = _adversarial(seed)
        fast, reference = (
            compute_box_metrics(coco, predictions, categories, max_dets_per_image=max_dets, use_fast_impl=fast)
            for fast in (True, False)
        )
        np.testing.assert_array_equal(fast.precision, reference.precision)
        np.testing.assert_array_equal(fast.recall, reference.recall)
        defined += (reference.precision > 0).sum()
    assert defined > 1000


def test_small_blocks_give_the_same_numbers(monkeypatch):
    coco, predictions, categories = _adversarial(3)
    whole = compute_box_metrics(coco, predictions, categories)
    monkeypatch.setattr(box_matching, "BLOCK_PAIRS", 1)
    in_blocks = compute_box_metrics(coco, predictions, categories)
    assert (whole.precision > 0).any()
    np.testing.assert_array_equal(in_blocks.precision, whole.precision)


def test_predictions_of_an_unknown_class_are_refused():
    coco = {"images": [{"id": 1}], "annotations": []}
    with pytest.raises(KeyError, match="5"):
        compute_box_metrics(coco, {1: _predictions([(5, [0, 0, 1, 1], 0.5)])}, {0: 1})
