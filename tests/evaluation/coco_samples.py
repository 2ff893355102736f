"""Ground truth and predictions that are hard to evaluate."""

import numpy as np
from pycocotools import mask as mask_api

from retinanet_ext.evaluation.coco_predictions import ImagePredictions


def adversarial(seed):
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
    predictions = {image_id: to_predictions(found) for image_id, found in results.items()}
    return {"images": images, "annotations": annotations}, predictions, dict(enumerate(categories))


def to_predictions(found):
    return ImagePredictions(
        boxes=np.array([xywh for _, xywh, _ in found], dtype=np.float64).reshape(-1, 4),
        scores=np.array([score for _, _, score in found], dtype=np.float64),
        classes=np.array([k for k, _, _ in found], dtype=np.int64),
    )


def _moved_mask(rng, rle):
    """The mask moved by a few pixels, as RLE."""
    mask = mask_api.decode(rle)
    shift = tuple(rng.integers(-6, 7, size=2))
    return mask_api.encode(np.asfortranarray(np.roll(mask, shift, axis=(0, 1))))


def predict_masks_and_keypoints(coco, seed):
    """Moved masks and keypoints of the objects, with tied scores, and none on some images.

    Returns predictions by image id; class k is the k-th category.
    """
    rng = np.random.default_rng(seed)
    labels = {category["id"]: k for k, category in enumerate(coco.dataset["categories"])}
    predictions = {}
    for image_id in coco.getImgIds():
        found = []
        for annotation in coco.imgToAnns[image_id] if rng.random() < 0.9 else []:
            for _ in range(int(rng.integers(3))):
                rle = _moved_mask(rng, coco.annToRLE(annotation))
                points = np.array(annotation.get("keypoints") or [0] * 51, float).reshape(-1, 3)
                points[:, :2] += rng.normal(size=(len(points), 2)) * 0.05 * np.sqrt(annotation["area"])
                found.append((labels[annotation["category_id"]], rle, points, rng.integers(10) / 10))
        predictions[image_id] = ImagePredictions(
            boxes=np.array([mask_api.toBbox(rle) for _, rle, _, _ in found], np.float32).reshape(-1, 4),
            scores=np.array([score for *_, score in found], np.float32),
            classes=np.array([k for k, *_ in found], np.int64),
            rles=[rle for _, rle, _, _ in found],
            keypoints=np.array([points for _, _, points, _ in found], np.float32).reshape(len(found), 17, 3),
        )
    return predictions
