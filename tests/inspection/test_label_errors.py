"""Label errors injected into generated shapes, and a model that finds what was drawn."""

import copy
import json

import numpy as np
import pytest
import torch

from retinanet_ext.d2 import BoxMode
from retinanet_ext.data.shape_drawing import CLASS_NAMES
from retinanet_ext.inspection.datasets.identity_label_errors import WRONG_IDENTITY, identity_label_errors
from retinanet_ext.inspection.datasets.label_errors import (
    MISPLACED,
    MISSING,
    OTHER_CLASS,
    SPURIOUS,
    Detections,
    iou_matrix,
    label_errors,
)

NAMES = list(CLASS_NAMES)


@pytest.fixture
def truth(shapes):
    """Records of the generated shapes, without objects that overlap another one."""
    content = json.loads((shapes / "annotations" / "shapes_train.json").read_text())
    index = {category["id"]: place for place, category in enumerate(content["categories"])}
    records = []
    for image in content["images"]:
        annotations = [
            {"bbox": a["bbox"], "bbox_mode": BoxMode.XYWH_ABS, "category_id": index[a["category_id"]], "id": a["id"],
             "iscrowd": 0}
            for a in content["annotations"] if a["image_id"] == image["id"]
        ]  # fmt: skip
        boxes = np.array([xyxy(a) for a in annotations]).reshape(-1, 4)
        alone = (iou_matrix(boxes, boxes) > 0).sum(axis=1) == 1
        annotations = [a for a, keep in zip(annotations, alone) if keep]
        size = {"width": image["width"], "height": image["height"]}
        records.append(
            {"file_name": image["file_name"], "image_id": image["id"], "annotations": annotations, **size}
        )
    assert sum(len(record["annotations"]) for record in records) > 15
    return records


def xyxy(annotation):
    x, y, width, height = annotation["bbox"]
    return [x, y, x + width, y + height]


def perfect(records, score=0.9):
    """What a model finds that is right: the boxes moved by less than a pixel, besides doubtful second classes."""
    rng, found = np.random.default_rng(0), {}
    for record in records:
        rows = []
        for annotation in record["annotations"]:
            box = np.array(xyxy(annotation)) + rng.uniform(-0.7, 0.7, 4)
            rows.append([*box, score, annotation["category_id"]])
            rows.append([*box, 0.2, (annotation["category_id"] + 1) % len(NAMES)])
        found[record["image_id"]] = Detections.of_rows(rows)
    return found


def kinds(errors):
    return [(error.finding.kind, error.finding.image_id) for error in errors]


def test_nothing_is_invented_where_the_model_agrees(truth):
    assert label_errors("shapes", truth, perfect(truth), NAMES) == []
    assert label_errors("shapes", truth, {}, NAMES) == []  # nothing was predicted


def test_each_injected_error_is_found_and_nothing_else(truth):
    records, expected = copy.deepcopy(truth), []
    full = [record for record in records if len(record["annotations"]) >= 1]
    removed, swapped, moved, extra, displaced = full[:5]

    expected.append((MISSING, removed["image_id"], xyxy(removed["annotations"].pop(0))))
    swapped["annotations"][0]["category_id"] = (swapped["annotations"][0]["category_id"] + 2) % len(NAMES)
    expected.append((OTHER_CLASS, swapped["image_id"], xyxy(swapped["annotations"][0])))
    # Moved by 0.4 of its width: the IoU is 0.6 / 1.4 = 0.43.
    x, y, width, height = moved["annotations"][0]["bbox"]
    moved["annotations"][0]["bbox"] = [x + 0.4 * width, y, width, height]
    expected.append((MISPLACED, moved["image_id"], xyxy(moved["annotations"][0])))
    free = [40.0, 200.0, 10.0, 8.0]  # below the image of 96 pixels, where nothing is
    extra["annotations"].append({**extra["annotations"][0], "bbox": free})
    expected.append((SPURIOUS, extra["image_id"], xyxy(extra["annotations"][-1])))
    before = xyxy(displaced["annotations"][0])
    displaced["annotations"][0]["bbox"] = free
    expected += [(MISSING, displaced["image_id"], before), (SPURIOUS, displaced["image_id"], [40, 200, 50, 208])]

    errors = label_errors("shapes", records, perfect(truth), NAMES)
    assert sorted(kinds(errors)) == sorted((kind, image_id) for kind, image_id, _ in expected)
    for kind, image_id, box in expected:
        (error,) = (e for e in errors if (e.finding.kind, e.finding.image_id) == (kind, image_id))
        np.testing.assert_allclose(error.finding.box, box, atol=0.71)
        assert error.finding.severity == "warning" and 0 < error.rank <= 1
        assert (error.finding.annotation is None) == (kind == MISSING)
    (error,) = (e for e in errors if e.finding.kind == OTHER_CLASS)
    original = next(record for record in truth if record["image_id"] == swapped["image_id"])
    true_class = NAMES[original["annotations"][0]["category_id"]]
    assert f"the model finds {true_class} (score 0.90)" in error.finding.found
    assert f"(id {swapped['annotations'][0]['id']})" in error.finding.annotation


BOX = [10.0, 10.0, 40.0, 40.0]  # XYXY


def one_image(annotations, rows):
    record = {"file_name": "a.png", "image_id": 7, "annotations": [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": kind, "iscrowd": crowd}
        for box, kind, crowd in annotations
    ]}  # fmt: skip
    errors = label_errors("d", [record], {7: Detections.of_rows(rows)}, NAMES)
    return [error.finding.kind for error in errors]


@pytest.mark.parametrize(
    "annotations, rows, expected",
    [
        # A detection that is not confident is no evidence, but enough to keep an annotation.
        ([], [[*BOX, 0.59, 0]], []),
        ([], [[*BOX, 0.6, 0]], [MISSING]),
        ([(BOX, 0, 0)], [[*BOX, 0.06, 1]], []),
        ([(BOX, 0, 0)], [[*BOX, 0.04, 0]], [SPURIOUS]),
        # Of two classes at one place, one missing annotation.
        ([], [[*BOX, 0.9, 0], [*BOX, 0.8, 1]], [MISSING]),
        # A class contradicts only if the annotation's own has at most half of its score there.
        ([(BOX, 0, 0)], [[*BOX, 0.9, 1], [*BOX, 0.5, 0]], []),
        ([(BOX, 0, 0)], [[*BOX, 0.9, 1], [*BOX, 0.4, 0]], [OTHER_CLASS]),
        # An object of another class beside an annotated one of the class that is found.
        ([(BOX, 0, 0), ([11.0, 11, 42, 42], 1, 0)], [[*BOX, 0.3, 0], [11, 11, 42, 42, 0.9, 1]], []),
        # Crowds: detections inside do not count, nor does the crowd itself.
        ([([0.0, 0, 100, 100], 0, 1)], [[*BOX, 0.9, 0], [*BOX, 0.9, 2]], []),
        ([([0.0, 0, 20, 100], 0, 1)], [[*BOX, 0.9, 0]], [MISSING]),
        ([], [], []),
        ([(BOX, 0, 0)], [], [SPURIOUS]),
    ],
)
def test_the_limits(annotations, rows, expected):
    assert one_image(annotations, rows) == expected


def test_results_in_coco_form():
    results = [
        {"image_id": 3, "category_id": 18, "bbox": [1, 2, 3, 4], "score": 0.5},
        {"image_id": "b", "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.25},
        {"image_id": 3, "category_id": 1, "bbox": [5, 5, 1, 1], "score": 0.75},
    ]
    found = Detections.of_coco(results, {1: 0, 18: 1})
    assert found[3].boxes.tolist() == [[1, 2, 4, 6], [5, 5, 6, 6]] and found[3].classes.tolist() == [1, 0]
    assert found["b"].scores.tolist() == [0.25]


def test_the_most_certain_come_first(truth):
    records = copy.deepcopy(truth)
    chosen = [record for record in records if record["annotations"]][:3]
    found = perfect(truth)
    for record, score in zip(chosen, (0.7, 0.95, 0.8)):
        place = 0
        record["annotations"].pop(place)
        found[record["image_id"]].scores[2 * place] = score
    assert [error.score for error in label_errors("shapes", records, found, NAMES)] == [0.95, 0.8, 0.7]


def test_an_image_filed_under_another_identity():
    """Three identities around the axes of space; one image of the first lies in the folder of the second."""
    rng, records, vectors = np.random.default_rng(0), [], {}
    for identity in range(3):
        for number in range(6):
            vector = np.eye(8)[identity] + rng.normal(0, 0.1, 8)
            name = f"{identity}/{number}.jpg"
            vectors[name] = torch.tensor(vector / np.linalg.norm(vector), dtype=torch.float32)
            records.append({"file_name": name, "image_id": len(records), "identity": identity})
    records.append({"file_name": "3/0.jpg", "image_id": 99, "identity": 3})  # alone: without another image to compare
    vectors["3/0.jpg"] = vectors["0/0.jpg"]
    names = ["ann", "bob", "eve", "dan"]

    def embed(files):
        return (vectors[file] for file in files)

    assert identity_label_errors("faces", records, embed, names) == []
    records[2]["identity"] = 1
    (error,) = identity_label_errors("faces", records, embed, names)
    assert error.finding.kind == WRONG_IDENTITY and error.finding.file_name == "0/2.jpg"
    assert "filed under bob" in error.finding.found and "nearer is ann" in error.finding.found
    own = torch.stack([vectors[f"1/{number}.jpg"] for number in range(6)]).double().mean(dim=0)
    distance = float((vectors["0/2.jpg"].double() - own / own.norm()).square().sum())
    assert error.score == pytest.approx(distance, abs=1e-6)
