"""Average precision of boxes, masks and keypoints, by faster-coco-eval or pycocotools, with equal numbers."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import faster_coco_eval
import numpy as np
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from .coco_columns import number_images, object_annotations, predicted_annotations, to_dataset
from .coco_predictions import ImagePredictions

logger = logging.getLogger(__name__)

# Indices in COCO's list of IoU thresholds, 0.5, 0.55 ... 0.95.
IOU_50, IOU_75 = 0, 5
# COCO's sizes, in the order of its area ranges after `all`. An area of exactly 32^2 or 96^2 belongs to two sizes.
SIZES = {
    "s": "small (up to 32^2 pixels)",
    "m": "medium (32^2 to 96^2 pixels)",
    "l": "large (from 96^2 pixels)",
}
TASK_SIZES = {"bbox": "sml", "segm": "sml", "keypoints": "ml"}
# COCO's rule for keypoints, which `max_dets_per_image` does not change.
KEYPOINT_MAX_DETS = 20
COCO_NUM_KEYPOINTS = 17
# For keypoints that are not COCO's 17. COCO's own lie between 0.025 (eyes) and 0.107 (hips).
DEFAULT_OKS_SIGMA = 0.05


@dataclass
class Metrics:
    """Fractions in 0 to 1; -1 where there is no ground truth.

    Attributes:
        precision: (10, 101, K, A): IoU or OKS threshold, recall, class, area range (all, then those of `sizes`).
        recall: (10, K, A, D): threshold, class, area range, entry of `max_dets`.
        max_dets: numbers of detections per image at which recall is given; precision is given at the last.
        sizes: letters of the sizes, keys of `SIZES`.
    """

    precision: np.ndarray
    recall: np.ndarray
    max_dets: list[int]
    sizes: str = "sml"

    def average_precisions(self) -> dict[str, float]:
        """AP, AP50, AP75, APs (not of keypoints), APm, APl in 0 to 100; NaN where there is no ground truth."""
        overall = self.precision[:, :, :, 0]
        metrics = {
            "AP": _mean(overall),
            "AP50": _mean(overall[IOU_50]),
            "AP75": _mean(overall[IOU_75]),
        }
        for index, size in enumerate(self.sizes, start=1):
            metrics[f"AP{size}"] = _mean(self.precision[:, :, :, index])
        return metrics

    def class_average_precisions(self) -> list[float]:
        """AP of every class, in 0 to 100; NaN where it has no ground truth."""
        return [_mean(self.precision[:, :, k, 0]) for k in range(self.precision.shape[2])]

    def average_recalls(self) -> dict[int, float]:
        """AR in 0 to 100 for each number of detections per image."""
        return {n: _mean(self.recall[:, :, 0, d]) for d, n in enumerate(self.max_dets)}


def _mean(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(100 * np.mean(defined)) if defined.size else float("nan")


def compute_metrics(
    task: str,
    coco: dict[str, Any],
    predictions: Mapping[Any, ImagePredictions],
    category_ids: Mapping[int, int],
    *,
    max_dets_per_image: int = 100,
    use_fast_impl: bool = True,
    oks_sigmas: Sequence[float] = (),
    image_ids: list | None = None,
) -> Metrics:
    """Compares predictions with ground truth.

    Args:
        task: `bbox`, `segm` or `keypoints`.
        coco: `images` and `annotations` of a COCO file; not modified. Without `area`, an annotation has
            the area of its box; without `iscrowd`, it is a single object.
        predictions: predictions by image id.
        category_ids: the category of each class to evaluate; the k-th of them is class k of the returned arrays.
        max_dets_per_image: number of predictions that count per image and class, highest scores first. For
            keypoints always 20.
        use_fast_impl: match by faster-coco-eval; otherwise by pycocotools: the same numbers, slower.
        oks_sigmas: one for each of the J keypoints; empty: see :func:`sigmas_for`.
        image_ids: the images to evaluate; default all.

    Raises:
        ValueError: duplicate image ids, an annotation or predictions that lack what the task needs, or another
            number of keypoints or sigmas; the message names them.
        KeyError: predictions of a class that is not in `category_ids`.
    """
    with _no_garbage_collection():
        return _compute(task, coco, predictions, category_ids, max_dets_per_image, use_fast_impl, oks_sigmas, image_ids)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Python would search all annotations for reference cycles again and again, while more of them are made."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _compute(
    task: str,
    coco: dict[str, Any],
    predictions: Mapping[Any, ImagePredictions],
    category_ids: Mapping[int, int],
    max_dets_per_image: int,
    use_fast_impl: bool,
    oks_sigmas: Sequence[float],
    image_ids: list | None,
) -> Metrics:
    images = number_images(coco, image_ids)
    objects = object_annotations(task, coco, images, category_ids)
    found = predicted_annotations(task, predictions, images, category_ids)
    protocol = Params(task)
    protocol.maxDets = [n for n in (1, 10) if n < max_dets_per_image] + [max_dets_per_image]
    if task == "keypoints":
        protocol.maxDets = [KEYPOINT_MAX_DETS]
        protocol.kpt_oks_sigmas = sigmas_for(_keypoint_count(objects, found), oks_sigmas)
    protocol.imgIds, protocol.catIds = list(images.values()), list(range(1, len(category_ids) + 1))
    datasets = [to_dataset(rows, len(images), len(category_ids)) for rows in (objects, found)]
    compute = _by_faster_coco_eval if use_fast_impl else _by_pycocotools
    precision, recall = compute(*datasets, protocol)
    return Metrics(precision, recall, protocol.maxDets, TASK_SIZES[task])


def sigmas_for(num_keypoints: int, configured: Sequence[float] = ()) -> np.ndarray:
    """(J,) float64: COCO's standard deviation of each keypoint, relative to the square root of the object's area.

    Those of `configured`, else COCO's for 17 keypoints, else 0.05 for each.

    Raises:
        ValueError: `configured` has another number than J, or one that is not positive.
    """
    if len(configured):
        sigmas = np.asarray(configured, dtype=np.float64)
        if len(sigmas) != num_keypoints or not (sigmas > 0).all():
            raise ValueError(
                f"TEST.KEYPOINT_OKS_SIGMAS (kpt_oks_sigmas) has {list(configured)}; it needs {num_keypoints} positive "
                "numbers, one for each keypoint of the data, or none for the default"
            )
        return sigmas
    if num_keypoints == COCO_NUM_KEYPOINTS:
        return Params("keypoints").kpt_oks_sigmas
    logger.info(
        "TEST.KEYPOINT_OKS_SIGMAS is empty, and the data have %d keypoints, not COCO's 17: each gets the sigma %.2f",
        num_keypoints, DEFAULT_OKS_SIGMA,
    )  # fmt: skip
    return np.full(num_keypoints, DEFAULT_OKS_SIGMA)


def _keypoint_count(objects: list[dict], found: list[dict]) -> int:
    """J, the same for all that have keypoints."""
    sources = [("the predictions", found), ("the ground truth", [a for a in objects if a["keypoints"]])]
    lengths = {(len(a["keypoints"]), source) for source, annotations in sources for a in annotations}
    if len({length for length, _ in lengths}) > 1:
        shown = ", ".join(f"{length / 3:g} in {source}" for length, source in sorted(lengths))
        raise ValueError(f"objects have different numbers of keypoints: {shown}. Is the model for this dataset?")
    return next(iter(lengths))[0] // 3 if lengths else COCO_NUM_KEYPOINTS


# ---- pycocotools


def _by_pycocotools(truth: dict, found: dict, protocol: Params) -> tuple[np.ndarray, np.ndarray]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        evaluation = COCOeval(_index(truth), _index(found), protocol.iouType)
        evaluation.params = protocol
        evaluation.evaluate()
        evaluation.accumulate()
    for line in printed.getvalue().splitlines():
        logger.debug("pycocotools: %s", line)
    return evaluation.eval["precision"][..., -1], evaluation.eval["recall"]


def _index(dataset: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    coco.createIndex()
    return coco


# ---- faster-coco-eval


class _MaskEvaluation(faster_coco_eval.COCOeval_faster):
    """Matches by the IoU of masks. The library's own way is slower: it copies every RLE, also those without a match.

    It evaluates as `bbox`, which differs from `segm` only in the IoU and in the masks that it then need not prepare.
    """

    def computeIoU(self, imgId: int, catId: int) -> list | np.ndarray:
        """(predictions, best score first; objects) float64, by pycocotools."""
        objects, found = self.gt_dataset.get(imgId, catId), self.dt_dataset.get(imgId, catId)
        if not objects or not found:
            return []
        best = np.argsort([-a["score"] for a in found], kind="stable")[: self.params.maxDets[-1]]
        masks = [found[index]["segmentation"] for index in best]
        return mask_api.iou(masks, [a["segmentation"] for a in objects], [a["iscrowd"] for a in objects])


def _by_faster_coco_eval(truth: dict, found: dict, protocol: Params) -> tuple[np.ndarray, np.ndarray]:
    evaluator = _MaskEvaluation if protocol.iouType == "segm" else faster_coco_eval.COCOeval_faster
    evaluation = evaluator(
        *(faster_coco_eval.COCO(dataset) for dataset in (truth, found)),
        "bbox" if protocol.iouType == "segm" else protocol.iouType,
        print_function=logger.debug,
    )
    counts = _count_objects(truth["annotations"], protocol)
    params = evaluation.params
    for name in ("imgIds", "catIds", "maxDets", "areaRng", "iouThrs"):
        setattr(params, name, getattr(protocol, name))
    params.kpt_oks_sigmas = getattr(protocol, "kpt_oks_sigmas", None)
    params.recThrs = np.union1d(protocol.recThrs, 2 / counts[counts > 1])
    evaluation.evaluate()
    evaluation.accumulate()
    precision = _round_as_pycocotools(evaluation.eval["precision"][..., -1], counts, params.recThrs)
    return precision[:, np.searchsorted(params.recThrs, protocol.recThrs)], evaluation.eval["recall"]


def _count_objects(objects: list[dict], protocol: Params) -> np.ndarray:
    """(K, A) int64: the number of objects to be found, by class and area range."""
    counts = np.zeros((len(protocol.catIds), len(protocol.areaRng)), dtype=np.int64)
    for found in objects:
        if not found["iscrowd"] and found.get("num_keypoints") != 0:
            row = counts[found["category_id"] - 1]
            row += [low <= found["area"] <= high for low, high in protocol.areaRng]
    return counts


def _round_as_pycocotools(precision: np.ndarray, counts: np.ndarray, recall_points: np.ndarray) -> np.ndarray:
    """Precision with the rounding of pycocotools, which divides hits by hits + misses + 2^-52.

    This matters for one quotient only, 1 / (1 + 0 + 2^-52), which is just below 1: that of a best prediction that is
    a hit. If the second best is a hit too, its precision 1 counts for both, and reaches the recall 2 / count.

    Args:
        precision: (T, R, K, A) as hits / (hits + misses).
        counts: (K, A) objects.
        recall_points: (R,), ascending; has 2 / count for each count above 1.
    """
    second = np.searchsorted(recall_points, 2 / np.maximum(counts, 2))
    at_second = np.take_along_axis(precision, second[None, None], axis=1)
    only_first = (precision == 1) & ((at_second != 1) | (counts == 1))
    return np.where(only_first, 1 / (1 + np.spacing(1)), precision)
