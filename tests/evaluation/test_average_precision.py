"""Stored matches against pycocotools: its AP, and its AP of a dataset whose images are copied."""

import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools.coco import COCO

from retinanet_ext.evaluation.average_precision import average_precision, interpolated_precision, summarize
from retinanet_ext.evaluation.coco_metrics import compute_metrics
from retinanet_ext.evaluation.evaluated_dataset import EvaluatedDataset
from retinanet_ext.evaluation.ground_truth import GroundTruth
from retinanet_ext.evaluation.image_matches import match_dataset
from retinanet_ext.evaluation.protocol import Protocol
from tests.evaluation.coco_samples import adversarial, predict_masks_and_keypoints


def dataset(coco, predictions, categories, max_dets=None):
    names = {k: f"class {k}" for k in categories}
    return EvaluatedDataset.of(
        GroundTruth(coco, "a test", categories, names), predictions, Protocol(None, max_dets)
    )  # fmt: skip


def precisions(metrics):
    """(T, K, A) mean over recalls, NaN where COCO has -1."""
    return np.where(metrics.precision[:, 0] < 0, np.nan, metrics.precision.mean(axis=1))


@pytest.mark.parametrize("max_dets", [100, 20, 1])
def test_matches_give_cocos_average_precision(max_dets):
    defined = 0
    for seed in range(15):
        coco, predictions, categories = adversarial(seed)
        expected = compute_metrics(
            "bbox", coco, predictions, categories, max_dets_per_image=max_dets, use_fast_impl=False
        )
        matches = match_dataset(dataset(coco, predictions, categories, max_dets))
        values = average_precision(matches)
        np.testing.assert_allclose(values, precisions(expected), rtol=0, atol=1e-9)
        curves = expected.precision[2, :, :, 0].T
        np.testing.assert_allclose(interpolated_precision(matches, 2), np.where(curves < 0, np.nan, curves), atol=1e-9)
        found = summarize(values, matches.area_ranges, matches.class_names)
        overall = expected.average_precisions()
        np.testing.assert_allclose([found[name] for name in overall], list(overall.values()), atol=1e-9)
        defined += np.isfinite(values).sum()
    assert defined > 500


@pytest.mark.parametrize("task", ["bbox", "segm", "keypoints"])
def test_matches_of_coco_mini_give_pycocotools_average_precision(shared_data, task):
    kind = "person_keypoints" if task == "keypoints" else "instances"
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(shared_data / "coco_mini" / "annotations" / f"{kind}_val2017.json")
    predictions = predict_masks_and_keypoints(coco, seed=1)
    categories = {k: category["id"] for k, category in enumerate(coco.dataset["categories"])}
    expected = compute_metrics(task, coco.dataset, predictions, categories, use_fast_impl=False)
    matches = match_dataset(dataset(coco.dataset, predictions, categories), task)
    assert matches.area_ranges == (("all", "m", "l") if task == "keypoints" else ("all", "s", "m", "l"))
    np.testing.assert_allclose(average_precision(matches), precisions(expected), rtol=0, atol=1e-9)


def with_copies(coco, predictions, times):
    """The dataset with each image as often as `times` says; copies follow the original in the order of ids."""
    images, annotations, found = [], [], {}
    for image, count in zip(sorted(coco["images"], key=lambda image: image["id"]), times):
        for copied in range(count):
            image_id = 100 * image["id"] + copied
            images.append({**image, "id": image_id})
            own = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
            annotations += [{**a, "image_id": image_id} for a in own]
            found[image_id] = predictions[image["id"]]
    return {"images": images, "annotations": annotations}, found


def test_an_image_with_weight_n_counts_as_n_copies():
    compared = 0
    for seed in range(12):
        coco, predictions, categories = adversarial(seed)
        rng = np.random.default_rng(seed)
        predictions = copy.deepcopy(predictions)
        for found in predictions.values():  # the order of equal scores in different images is another with copies
            found.scores = rng.permutation(10_000)[: len(found)] / 10_000 + rng.random(len(found)) / 1e5
        matches = match_dataset(dataset(coco, predictions, categories))
        weights = rng.integers(0, 4, (3, len(coco["images"])))
        values = average_precision(matches, weights)
        for row, times in zip(values, weights):
            copied, found = with_copies(coco, predictions, times)
            expected = compute_metrics("bbox", copied, found, categories, use_fast_impl=False)
            np.testing.assert_allclose(row, precisions(expected), rtol=0, atol=1e-9)
            compared += np.isfinite(row).sum()
    assert compared > 500
