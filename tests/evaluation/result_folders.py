"""Folders as evaluations leave them, from a few objects and detections."""

import json

import numpy as np

from retinanet_ext.evaluation.coco_predictions import ImagePredictions
from retinanet_ext.evaluation.coco_tasks import evaluate_predictions
from retinanet_ext.evaluation.ground_truth import GroundTruth
from retinanet_ext.evaluation.protocol import Protocol


def coco_content(names, objects, num_images=1, size=(64, 64)):
    """`objects`: (image, class name, box XYWH); category ids are 1, 2, ..."""
    width, height = size
    images = [{"id": n, "file_name": f"{n}.png", "width": width, "height": height} for n in range(1, num_images + 1)]
    annotations = [
        {"id": n, "image_id": image, "category_id": names.index(name) + 1, "bbox": list(box), "iscrowd": 0,
         "area": box[2] * box[3]}
        for n, (image, name, box) in enumerate(objects, start=1)
    ]  # fmt: skip
    categories = [{"id": k, "name": name} for k, name in enumerate(names, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_evaluation(folder, names, objects, found, num_images=1, image_root="", truth_file=None):
    """Evaluate `found`, (image, class name, box XYWH, score), and write the files; returns the metrics."""
    content = coco_content(names, objects, num_images)
    folder.mkdir(parents=True, exist_ok=True)
    file = truth_file or folder / "annotations.json"
    file.write_text(json.dumps(content))
    truth = GroundTruth.of(content, str(file), {k + 1: k for k in range(len(names))}, names)
    truth.file, truth.name, truth.image_root = str(file), "insects", str(image_root)
    predictions = {}
    for image in content["images"]:
        rows = [(names.index(name), box, score) for n, name, box, score in found if n == image["id"]]
        predictions[image["id"]] = ImagePredictions(
            np.array([box for _, box, _ in rows], np.float32).reshape(-1, 4),
            np.array([score for *_, score in rows], np.float32),
            np.array([k for k, *_ in rows], np.int64),
        )
    return evaluate_predictions(predictions, truth, Protocol(), output_dir=str(folder))
