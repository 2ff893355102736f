"""COCO's metrics against the reference, pycocotools, on awkward data and on COCO's, and against hand arithmetic."""

import contextlib
import io
import logging
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from retinanet_ext.evaluation.coco_metrics import compute_metrics
from tests.evaluation.coco_samples import adversarial, predict_masks_and_keypoints, to_predictions


@pytest.mark.parametrize("max_dets", [100, 20, 1])
def test_all_images_at_once_give_the_numbers_of_pycocotools(max_dets):
    defined = 0
    for seed in range(15):
        coco, predictions, categories = adversarial(seed)
        fast, reference = (
            compute_metrics("bbox", coco, predictions, categories, max_dets_per_image=max_dets, use_fast_impl=fast)
            for fast in (True, False)
        )
        np.testing.assert_array_equal(fast.precision, reference.precision)
        np.testing.assert_array_equal(fast.recall, reference.recall)
        defined += (reference.precision > 0).sum()
    assert defined > 1000


def test_predictions_of_an_unknown_class_are_refused():
    coco = {"images": [{"id": 1}], "annotations": []}
    with pytest.raises(KeyError, match="5"):
        compute_metrics("bbox", coco, {1: to_predictions([(5, [0, 0, 1, 1], 0.5)])}, {0: 1})


@pytest.mark.parametrize("hits", [1, 2, 3])
def test_the_first_hits_of_many_objects_are_rounded_as_by_pycocotools(hits):
    """250 objects: the recalls of one hit and of two lie below the same recall point, 0.01.

    pycocotools divides 1 hit by 1 + 2^-52, and 2 hits by 2.
    """
    coco, predictions, categories = _row_of_boxes(250, hits)
    metrics = compute_metrics("bbox", coco, predictions, categories)
    reference = compute_metrics("bbox", coco, predictions, categories, use_fast_impl=False)
    assert metrics.precision[0, 0, 0, 0] == (1 - 2**-52 if hits == 1 else 1)
    np.testing.assert_array_equal(metrics.precision, reference.precision)


def _row_of_boxes(count, hits):
    """`hits` of `count` objects are found, then comes a miss, then another hit."""
    boxes = [[20.0 * n, 0.0, 10.0, 10.0] for n in range(count)]
    annotations = [{"image_id": 1, "category_id": 1, "bbox": box} for box in boxes]
    found = [(0, box, 0.9 - n / 100) for n, box in enumerate(boxes[:hits])]
    found += [(0, [5.0, 100.0, 9.0, 9.0], 0.3), (0, boxes[-1], 0.2)]
    return {"images": [{"id": 1}], "annotations": annotations}, {1: to_predictions(found)}, {0: 1}


# ---- masks and keypoints, against pycocotools' own files and loaders


def _of_pycocotools(coco, task, predictions, category_ids, max_dets):
    """Precision and recall of COCOeval on results as read from a file."""
    results = [row for i, found in predictions.items() for row in found.to_coco(i, category_ids)]
    if task == "segm":  # then pycocotools takes the areas of the masks
        results = [{key: value for key, value in row.items() if key != "bbox"} for row in results]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(results), task)
        if task != "keypoints":
            evaluation.params.maxDets = [1, 10, max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., -1], evaluation.eval["recall"]


@pytest.mark.parametrize("task, max_dets", [("bbox", 100), ("segm", 100), ("segm", 12), ("keypoints", 100)])
def test_coco_mini_gives_the_numbers_of_pycocotools(shared_data, task, max_dets):
    kind = "person_keypoints" if task == "keypoints" else "instances"
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(shared_data / "coco_mini" / "annotations" / f"{kind}_val2017.json")
    assert any(a["iscrowd"] for a in coco.dataset["annotations"])
    predictions = predict_masks_and_keypoints(coco, seed=0)
    category_ids = {k: category["id"] for k, category in enumerate(coco.dataset["categories"])}
    expected = _of_pycocotools(coco, task, predictions, category_ids, max_dets)
    assert (expected[0] > 0).sum() > 100
    for fast in (True, False):
        found = compute_metrics(
            task, coco.dataset, predictions, category_ids, max_dets_per_image=max_dets, use_fast_impl=fast
        )
        np.testing.assert_array_equal(found.precision, expected[0])
        np.testing.assert_array_equal(found.recall, expected[1])


def _one_person(num_keypoints, **annotation):
    points = [10.0, 20.0, 2] * num_keypoints
    person = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 100], "area": 10000, "keypoints": points}
    return {"images": [{"id": 1, "height": 200, "width": 200}], "annotations": [{**person, **annotation}]}


def _keypoints_at(x, y, num_keypoints):
    found = to_predictions([(0, [0, 0, 100, 100], 0.9)])
    found.keypoints = np.full((1, num_keypoints, 3), [x, y, 1], np.float32)
    return {1: found}


@pytest.mark.parametrize("sigma, configured, num_keypoints", [(0.05, (), 4), (0.1, (0.1, 0.1, 0.1), 3)])
def test_similarity_of_keypoints_by_hand(sigma, configured, num_keypoints, caplog):
    """OKS is exp(-d^2 / (2 area (2 sigma)^2)): distances that give 0.72 and 0.68, at thresholds 0.5, 0.55 ... 0.95."""
    caplog.set_level(logging.INFO)
    for similarity, thresholds in ((0.72, 5), (0.68, 4)):
        distance = math.sqrt(-2 * 10000 * (2 * sigma) ** 2 * math.log(similarity))
        predictions = _keypoints_at(10 + distance, 20, num_keypoints)
        for fast in (True, False):
            metrics = compute_metrics(
                "keypoints", _one_person(num_keypoints), predictions, {0: 1}, oks_sigmas=configured, use_fast_impl=fast
            )
            found = metrics.average_precisions()
            assert list(found) == ["AP", "AP50", "AP75", "APm", "APl"]
            assert found["AP"] == pytest.approx(10 * thresholds)
    assert ("TEST.KEYPOINT_OKS_SIGMAS is empty" in caplog.text) == (not configured)


def test_an_object_without_labelled_keypoints_need_not_be_found():
    for annotation in ({"keypoints": [0, 0, 0] * 17}, {"keypoints": None}):
        metrics = compute_metrics("keypoints", _one_person(17, **annotation), _keypoints_at(10, 20, 17), {0: 1})
        assert math.isnan(metrics.average_precisions()["AP"])


def test_what_a_task_lacks_is_named():
    person, found = _one_person(17, id=5), _keypoints_at(10, 20, 17)
    with pytest.raises(ValueError, match="'segm' needs instances with pred_masks, which those of image 1 lack"):
        with_mask = _one_person(17, id=5, segmentation=[[0, 0, 9, 0, 9, 9]])
        compute_metrics("segm", with_mask, found, {0: 1})
    with pytest.raises(ValueError, match="annotation 5 of image 1 needs a segmentation"):
        compute_metrics("segm", person, found, {0: 1})
    with pytest.raises(ValueError, match="different numbers of keypoints: 4 in the predictions, 17 in the ground"):
        compute_metrics("keypoints", person, _keypoints_at(10, 20, 4), {0: 1})
    with pytest.raises(ValueError, match="TEST.KEYPOINT_OKS_SIGMAS.*it needs 17 positive"):
        compute_metrics("keypoints", person, found, {0: 1}, oks_sigmas=(0.1, 0.2))
