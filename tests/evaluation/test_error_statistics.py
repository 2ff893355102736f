"""Curves, thresholds, confusion, kinds of errors, calibration: by hand, by brute force, and by pycocotools."""

import numpy as np
import pytest

from retinanet_ext.evaluation.average_precision import average_precision, summarize
from retinanet_ext.evaluation.bootstrap import bootstrap, draw_weights
from retinanet_ext.evaluation.coco_metrics import compute_metrics
from retinanet_ext.evaluation.coco_predictions import ImagePredictions
from retinanet_ext.evaluation.confusion_matrix import confusion_matrix
from retinanet_ext.evaluation.error_kinds import KINDS, error_kinds
from retinanet_ext.evaluation.evaluated_dataset import EvaluatedDataset
from retinanet_ext.evaluation.ground_truth import GroundTruth
from retinanet_ext.evaluation.image_counts import image_counts, worst_images
from retinanet_ext.evaluation.image_matches import match_dataset
from retinanet_ext.evaluation.operating_thresholds import (
    OperatingThresholds,
    find_thresholds,
    read_thresholds,
    write_thresholds,
)
from retinanet_ext.evaluation.protocol import Protocol
from retinanet_ext.evaluation.score_calibration import calibration
from retinanet_ext.evaluation.score_curves import score_curves
from tests.evaluation.coco_samples import adversarial, to_predictions

CAT, DOG = 0, 1


def scene(objects, found, num_images=1):
    """`objects`: (image, class, box XYWH) and `found`: (image, class, box, score), both of 100-pixel images."""
    images = [{"id": n, "width": 100, "height": 100, "file_name": f"{n}.png"} for n in range(1, num_images + 1)]
    annotations = [
        {"id": n, "image_id": image, "category_id": 10 + k, "bbox": box, "iscrowd": 0, "area": box[2] * box[3]}
        for n, (image, k, box) in enumerate(objects, start=1)
    ]
    predictions = {
        image["id"]: to_predictions([(k, box, score) for i, k, box, score in found if i == image["id"]])
        for image in images
    }
    coco = {"images": images, "annotations": annotations}
    truth = GroundTruth(coco, "a scene", {CAT: 10, DOG: 11}, {CAT: "cat", DOG: "dog"})
    return EvaluatedDataset.of(truth, predictions, Protocol())


A, B, C = [0.0, 0.0, 10.0, 10.0], [50.0, 0.0, 10.0, 10.0], [0.0, 50.0, 10.0, 10.0]
FAR = [80.0, 80.0, 10.0, 10.0]
# IoU with A: 50 / 150.
A_MOVED = [5.0, 0.0, 10.0, 10.0]


def one_of_each_kind():
    objects = [(1, CAT, A), (1, CAT, B), (1, DOG, C), (2, DOG, A), (3, CAT, B)]
    found = [
        (1, CAT, A, 0.9),  # a hit
        (1, CAT, A, 0.8),  # a duplicate
        (1, DOG, B, 0.7),  # classification: B is a cat
        (2, DOG, A_MOVED, 0.6),  # localisation
        (1, DOG, FAR, 0.5),  # background
        (1, CAT, [5.0, 50.0, 10.0, 10.0], 0.4),  # both: C is a dog, IoU 1/3
    ]  # missed: C (not covered by `both`), and B of image 3
    return scene(objects, found, num_images=3)


def test_each_kind_of_error_is_told_and_its_cost_follows_from_hand_arithmetic():
    data = one_of_each_kind()
    found = error_kinds(data, match_dataset(data))
    assert found.counts == {
        "classification": 1, "localisation": 1, "both": 1, "duplicate": 1, "background": 1, "missed": 2,
    }  # fmt: skip
    assert tuple(found.counts) == KINDS
    # Cats: 1 hit of 3 objects at the best score: recalls 0 to 0.33, 34 of 101. Dogs: no hit of 2.
    assert found.ap50 == pytest.approx(100 * (34 / 101) / 2)
    # Fixed class: cats get a second hit (after hit, duplicate: precision 2/3, recalls 0.34 to 0.66).
    assert found.ap50_fixed["classification"] == pytest.approx(100 * ((34 + 33 * 2 / 3) / 101) / 2)
    # Fixed box: dogs get a hit after one false alarm, of 2 objects: precision 1/2 at recalls 0 to 0.5.
    assert found.ap50_fixed["localisation"] == pytest.approx(100 * (34 / 101 + 51 / 101 / 2) / 2)
    for kind in ("both", "duplicate", "background"):  # all below the hit of cats, or of dogs without a hit
        assert found.cost(kind) == 0
    # Without C and B of image 3: 2 cats, one found.
    assert found.ap50_fixed["missed"] == pytest.approx(100 * (51 / 101) / 2)


@pytest.mark.parametrize("kind", ["both", "duplicate", "background"])
def test_the_cost_of_false_alarms_is_that_of_pycocotools_without_them(kind):
    removed = 0
    for seed in range(8):
        coco, predictions, categories = adversarial(seed)
        data = EvaluatedDataset.of(
            GroundTruth(coco, "", categories, {k: str(k) for k in categories}), predictions, Protocol(None, 1000)
        )
        matches = match_dataset(data)
        found = error_kinds(data, matches)
        alarms = alarms_by_definition(data, matches)
        removed += sum(label == kind for label in alarms.values())
        assert found.counts[kind] == sum(label == kind for label in alarms.values())
        kept = {
            image_id: select(one, [row for row in range(len(one)) if alarms.get((image_id, row)) != kind])
            for image_id, one in predictions.items()
        }
        metrics = compute_metrics("bbox", coco, kept, categories, max_dets_per_image=1000, use_fast_impl=False)
        expected = metrics.average_precisions()["AP50"]
        assert found.ap50_fixed[kind] == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert removed


def select(one, rows):
    return ImagePredictions(one.boxes[rows], one.scores[rows], one.classes[rows])


def alarms_by_definition(data, matches):
    """(image, row) -> kind of each false alarm, by loops over the definitions."""
    labels = {}
    for k, one in enumerate(matches.classes):
        for row in range(len(one.scores)):
            if one.hits[0, 0, row] or one.ignored[0, 0, row]:
                continue
            image_id, index = matches.image_ids[one.images[row]], int(one.indices[row])
            same, other = [0.0], [0.0]
            for annotation in data.objects(image_id):
                if not annotation["iscrowd"]:
                    mine = annotation["category_id"] == data.truth.category_ids[k]
                    overlap = iou(data.predictions[image_id].boxes[index], annotation["bbox"])
                    (same if mine else other).append(overlap)
            if 0.1 <= max(same) < 0.5:
                label = "localisation"
            elif max(other) >= 0.5:
                label = "classification"
            elif max(same) >= 0.5:
                label = "duplicate"
            else:
                label = "background" if max(other) <= 0.1 else "both"
            labels[image_id, index] = label
    return labels


def iou(one, other):
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    return both / (one[2] * one[3] + other[2] * other[3] - both)


def test_confusion_of_classes_by_hand():
    data = one_of_each_kind()
    matrix = confusion_matrix(data, match_dataset(data), [0.0, 0.0])
    # Rows: cat, dog, background; columns: predicted cat, dog, nothing.
    assert matrix.tolist() == [[1, 1, 1], [0, 0, 2], [2, 2, 0]]
    matrix = confusion_matrix(data, match_dataset(data), [0.85, 0.65])
    assert matrix.tolist() == [[1, 1, 1], [0, 0, 2], [0, 0, 0]]


def test_confusion_counts_every_object_and_prediction_once():
    for seed in range(10):
        coco, predictions, categories = adversarial(seed)
        data = EvaluatedDataset.of(GroundTruth(coco, "", categories, {k: str(k) for k in categories}), predictions,
                                   Protocol())  # fmt: skip
        matches = match_dataset(data)
        matrix = confusion_matrix(data, matches, [0.3] * len(categories))
        objects = [one.counted[0].sum() for one in matches.classes]
        shown = [((one.scores >= 0.3) & ~one.ignored[0, 0]).sum() for one in matches.classes]
        assert matrix[:-1].sum(axis=1).tolist() == objects
        assert matrix[:, :-1].sum(axis=0).tolist() == shown
        counts = image_counts(matches, [0.3] * len(categories))
        assert counts.tp.sum() == np.trace(matrix[:-1, :-1])
        assert (counts.tp + counts.fn).sum() == sum(objects) and (counts.tp + counts.fp).sum() == sum(shown)


def test_operating_thresholds_by_brute_force():
    for seed in range(10):
        coco, predictions, categories = adversarial(seed)
        data = EvaluatedDataset.of(GroundTruth(coco, "", categories, {k: str(k) for k in categories}), predictions,
                                   Protocol())  # fmt: skip
        matches = match_dataset(data)
        for target in (None, 0.5):
            thresholds = find_thresholds(matches, category_ids=categories, target_precision=target)
            for one, of_class in zip(thresholds.classes, matches.classes):
                tried = {float(s): rates_at(of_class, s) for s in np.unique(of_class.scores)}
                legal = {s: r for s, r in tried.items() if r[0] and (target is None or r[0] / (r[0] + r[1]) >= target)}
                if not of_class.counted[0].any() or not legal:
                    assert one.threshold is None and one.reason
                    continue
                tp, fp, fn = rates_at(of_class, one.threshold)
                assert (tp, fp, fn) == (one.tp, one.fp, one.fn)
                if target is None:
                    best = max(2 * t / (2 * t + f + n) for t, f, n in legal.values())
                    assert one.f1 == pytest.approx(best) == pytest.approx(2 * tp / (2 * tp + fp + fn))
                else:
                    assert tp == max(t for t, _, _ in legal.values()) and one.precision >= target


def rates_at(one, threshold):
    shown = (one.scores >= threshold) & ~one.ignored[0, 0]
    tp = int((shown & one.hits[0, 0]).sum())
    return tp, int(shown.sum()) - tp, int(one.counted[0].sum()) - tp


def test_thresholds_survive_their_file_and_say_why_there_is_none(tmp_path):
    data = scene([(1, CAT, A)], [(1, CAT, A, 0.75), (1, CAT, FAR, 0.25)])
    found = find_thresholds(match_dataset(data), dataset="pets", category_ids=data.truth.category_ids)
    cat, dog = found.classes
    assert (cat.threshold, cat.tp, cat.fp, cat.fn, cat.category_id) == (0.5, 1, 0, 0, 10)
    assert dog.threshold is None and dog.reason == "no object of this class in the images"
    assert found.vector(0.3) == [0.5, 0.3] and found.rule == "best F1"
    write_thresholds(tmp_path / "thresholds.json", found)
    assert read_thresholds(tmp_path / "thresholds.json") == found
    (tmp_path / "thresholds.json").write_text('{"version": 1}')
    with pytest.raises(ValueError, match="json does not hold operating thresholds.*retinanet-ext thresholds"):
        read_thresholds(tmp_path / "thresholds.json")
    broken = found.to_dict()
    broken["classes"][0]["threshold"] = 7
    with pytest.raises(ValueError, match="class 'cat' has the score threshold 7; legal: 0 to 1"):
        OperatingThresholds.of_dict(broken, "here")
    high = find_thresholds(match_dataset(scene([(1, CAT, A)], [(1, CAT, FAR, 0.9), (1, CAT, A, 0.75)])),
                           target_precision=0.9)  # fmt: skip
    assert "no threshold reaches the precision 0.9; the highest is 0.5" in high.classes[0].reason


def test_curves_count_hits_and_false_alarms_at_each_distinct_score():
    data = scene([(1, CAT, A), (1, CAT, B)], [(1, CAT, A, 0.9), (1, CAT, FAR, 0.5), (1, CAT, B, 0.5)])
    curve = score_curves(match_dataset(data))[CAT]
    assert curve.scores.tolist() == [0.9, 0.5] and curve.tp.tolist() == [1, 2] and curve.fp.tolist() == [0, 1]
    assert curve.recall.tolist() == [0.5, 1] and curve.f1.tolist() == pytest.approx([2 / 3, 0.8])


def test_calibration_by_hand():
    found = [(1, CAT, A, 0.95), (1, CAT, FAR, 0.85), (1, CAT, [70.0, 0.0, 10.0, 10.0], 0.9), (1, CAT, B, 0.15)]
    result = calibration(match_dataset(scene([(1, CAT, A), (1, CAT, B)], found)), bins=10)
    assert result.counts.tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 2, 1]
    assert result.precisions[[1, 8, 9]].tolist() == [1, 0, 1]
    # |1 - 0.15| / 4 + |0 - 0.875| * 2 / 4 + |1 - 0.95| / 4
    assert result.ece == pytest.approx(0.85 / 4 + 0.875 / 2 + 0.05 / 4)
    assert np.isnan(calibration(match_dataset(scene([(1, CAT, A)], []))).ece)


def test_the_worst_images_have_the_lowest_f1():
    data = scene([(1, CAT, A), (2, CAT, A), (3, CAT, A)], [(1, CAT, A, 0.9), (2, CAT, FAR, 0.9)], num_images=4)
    counts = image_counts(match_dataset(data), [0.5, 0.5])
    assert counts.f1.tolist() == [1, 0, 0, 1]
    assert worst_images(counts, 10) == [1, 2]


def test_bootstrap_intervals_hold_the_value_and_follow_the_seed():
    coco, predictions, categories = adversarial(3)
    data = EvaluatedDataset.of(GroundTruth(coco, "", categories, {k: str(k) for k in categories}), predictions,
                               Protocol())  # fmt: skip
    matches = match_dataset(data)
    found = bootstrap(matches, samples=100, seed=7)
    assert found == bootstrap(matches, samples=100, seed=7) != bootstrap(matches, samples=100, seed=8)
    weights = draw_weights(len(matches.image_ids), 100, 7)
    assert (weights.sum(axis=1) == len(matches.image_ids)).all()
    ap = [summarize(average_precision(matches, row), matches.area_ranges, matches.class_names)["AP"] for row in weights]
    assert (found["AP"].low, found["AP"].high) == pytest.approx(tuple(np.nanquantile(ap, [0.025, 0.975])))
    assert set(found) >= {"AP", "AP50", "AP75", "APs", "APm", "APl"}
