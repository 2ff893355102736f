"""COCO average precision of detected boxes, for COCO files and for any dataset of dicts."""

from __future__ import annotations

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from .. import comm
from ..cfg_node import CfgNode
from .coco_box_ap import compute_box_metrics
from .coco_ground_truth import GroundTruth, load_ground_truth
from .coco_predictions import ImagePredictions, write_coco_results
from .coco_report import log_box_report, warn_about_images, warn_about_object_counts
from .evaluator import DatasetEvaluator

logger = logging.getLogger(__name__)

DEFAULT_MAX_DETS_PER_IMAGE = 100


class COCOEvaluator(DatasetEvaluator):
    """AP, AP50, AP75, APs, APm, APl and the AP of each class, in 0 to 100, after the COCO protocol.

    The ground truth is the whole file `json_file` of the dataset's metadata; for a dataset without a file it is
    converted from the dicts. An image that was processed twice, because a sampler pads, counts once. The result
    depends neither on the order of processing nor on the number of processes.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | CfgNode | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        allow_cached_coco: bool = True,
    ):
        """Reads the ground truth, so that a bad file is found before the model runs.

        Args:
            dataset_name: a registered dataset.
            tasks: ("bbox",), which is also what None means. A config, which older code passes here, has no effect.
            distributed: collect the predictions of all processes in the main process; only it has results.
                False: each process evaluates the images that it processed.
            output_dir: where to write `coco_instances_results.json` (predictions) and, for a dataset without
                a COCO file, `<dataset_name>_coco_format.json` (ground truth). None: nowhere.
            max_dets_per_image: number of predictions that count per image and class, highest scores first;
                default 100. For crowded images set it to `cfg.TEST.DETECTIONS_PER_IMAGE`.
            use_fast_impl: compute for all images at once; otherwise by pycocotools, which gives the same numbers.
            allow_cached_coco: no effect: ground truth is converted in memory each time, so it is never outdated.

        Raises:
            KeyError, FileNotFoundError, ValueError: unknown dataset, unusable ground truth, illegal argument.
        """
        if isinstance(tasks, CfgNode):
            logger.warning("COCOEvaluator(%r, cfg, ...): cfg has no effect; boxes are evaluated", dataset_name)
            tasks = None
        if isinstance(tasks, str) or set(tasks or ("bbox",)) != {"bbox"}:
            raise ValueError(f'tasks={tasks!r} cannot be evaluated; legal: ("bbox",) or None')
        if max_dets_per_image is None:
            max_dets_per_image = DEFAULT_MAX_DETS_PER_IMAGE
        if not isinstance(max_dets_per_image, int) or max_dets_per_image < 1:
            raise ValueError(f"max_dets_per_image must be a positive integer, found {max_dets_per_image!r}")
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = output_dir
        self._max_dets_per_image = max_dets_per_image
        self._use_fast_impl = use_fast_impl
        self._ground_truth: GroundTruth | None = None
        if not distributed or comm.is_main_process():
            self._ground_truth = load_ground_truth(dataset_name)
            if output_dir and self._ground_truth.converted:
                self._write_json(f"{dataset_name}_coco_format.json", self._ground_truth.coco)
            warn_about_object_counts(self._ground_truth, max_dets_per_image)
        self.reset()

    def reset(self) -> None:
        self._results: dict[Any, ImagePredictions] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Stores the predictions of one batch.

        Args:
            inputs: one dict per image, with `image_id`.
            outputs: one dict per image, with `instances`: an `Instances` with `pred_boxes` (XYXY, pixels of
                the original image), `scores` and `pred_classes`, on any device.
        """
        for record, output in zip(inputs, outputs, strict=True):
            if "instances" in output:
                self._results[record["image_id"]] = ImagePredictions.of(output["instances"])

    def evaluate(self, img_ids: list | None = None) -> OrderedDict[str, dict[str, float]]:
        """Computes the metrics.

        Args:
            img_ids: evaluate only these images of the ground truth.

        Returns:
            `{"bbox": {metric: value}}`, NaN where undefined; all NaN if nothing was predicted. Empty if
            nothing was processed, if the dataset has no annotations, and in processes other than the main
            one.

        Raises:
            ValueError: the ground truth does not have a predicted class, or an image with predictions.
        """
        by_image = self._gather()
        if by_image is None:
            return OrderedDict()
        if not by_image:
            logger.warning("Nothing to evaluate: no output with `instances` was processed.")
            return OrderedDict()
        predictions = self._in_order(by_image)
        truth = self._ground_truth
        if self._output_dir:
            path = self._path("coco_instances_results.json")
            write_coco_results(path, predictions, truth.category_ids)
            logger.info("Wrote %s", path)
        if "annotations" not in truth.coco:
            logger.info("%s has no annotations: predictions were written, but not evaluated.", truth.source)
            return OrderedDict()
        warn_about_images(truth, processed=by_image.keys(), wanted=img_ids)
        metrics = compute_box_metrics(
            truth.coco,
            predictions,
            truth.category_ids,
            max_dets_per_image=self._max_dets_per_image,
            use_fast_impl=self._use_fast_impl,
            image_ids=img_ids,
        )
        return OrderedDict(bbox=log_box_report(metrics, truth, predictions))

    def _gather(self) -> dict[Any, ImagePredictions] | None:
        """Predictions of all processes, by image; None in processes that return no results."""
        if not self._distributed:
            return self._results
        parts = comm.gather(self._results, dst=0)
        if not comm.is_main_process():
            return None
        merged: dict[Any, ImagePredictions] = {}
        for part in parts:
            for image_id, results in part.items():
                merged.setdefault(image_id, results)
        return merged

    def _in_order(self, by_image: dict[Any, ImagePredictions]) -> dict[Any, ImagePredictions]:
        """Check image ids and classes; return the predictions in the order of the dataset's images."""
        truth = self._ground_truth
        index = {image["id"]: n for n, image in enumerate(truth.coco["images"])}
        unknown = [image_id for image_id, found in by_image.items() if len(found) and image_id not in index]
        if unknown:
            raise ValueError(
                f"{len(unknown)} images with predictions are not in {truth.source}: ids {unknown[:10]}, but "
                f"it has ids like {list(index)[:5]}. Evaluate on the dataset that the loader reads"
            )
        for image_id, found in by_image.items():
            strange = set(found.classes.tolist()) - truth.category_ids.keys()
            if strange:
                raise ValueError(
                    f"class {min(strange)} was predicted on image {image_id}, but {truth.source} has the "
                    f"{len(truth.category_ids)} classes 0 to {max(truth.category_ids, default=-1)}. Is "
                    "MODEL.RETINANET.NUM_CLASSES the number of classes of this dataset?"
                )
        ordered = sorted((i for i in by_image if i in index), key=index.__getitem__)
        return {image_id: by_image[image_id] for image_id in ordered}

    def _write_json(self, file_name: str, content: Any) -> None:
        path = self._path(file_name)
        with open(path, "w") as f:
            f.write(json.dumps(content))
        logger.info("Wrote %s", path)

    def _path(self, file_name: str) -> str:
        os.makedirs(self._output_dir, exist_ok=True)
        return os.path.join(self._output_dir, file_name)
