"""COCO average precision of boxes, masks and keypoints, for COCO files and for any dataset of dicts."""

from __future__ import annotations

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from retinanet_ext.evaluation.coco_predictions import ImagePredictions
from retinanet_ext.evaluation.coco_report import warn_about_object_counts
from retinanet_ext.evaluation.coco_tasks import Protocol, evaluate_predictions, merge_parts
from retinanet_ext.evaluation.ground_truth import GroundTruth

from .. import comm
from ..cfg_node import CfgNode
from .coco_ground_truth import load_ground_truth
from .evaluator import DatasetEvaluator

logger = logging.getLogger(__name__)


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
        kpt_oks_sigmas: Sequence[float] = (),
        allow_cached_coco: bool = True,
    ):
        """Reads the ground truth, so that a bad file is found before the model runs.

        Args:
            dataset_name: a registered dataset.
            tasks: some of "bbox", "segm" and "keypoints"; None: boxes, and masks and keypoints if they are predicted
                and annotated. A config, which older code passes here, has no effect.
            distributed: collect the predictions of all processes in the main process; only it has results.
                False: each process evaluates the images that it processed.
            output_dir: where to write `coco_instances_results.json` (predictions), what explains them (see
                `evaluate_predictions`) and, for a dataset without a COCO file, `<dataset_name>_coco_format.json`
                (ground truth). None: nowhere.
            max_dets_per_image: number of predictions that count per image and class, highest scores first;
                default 100. For crowded images set it to `cfg.TEST.DETECTIONS_PER_IMAGE`. For keypoints always 20.
            use_fast_impl: match by faster-coco-eval; otherwise by pycocotools, which gives the same numbers.
            kpt_oks_sigmas: one for each keypoint (`cfg.TEST.KEYPOINT_OKS_SIGMAS`). Empty: COCO's for 17 keypoints,
                else 0.05 for each, which the log says.
            allow_cached_coco: no effect: ground truth is converted in memory each time, so it is never outdated.

        Raises:
            KeyError, FileNotFoundError, ValueError: unknown dataset, unusable ground truth, illegal argument.
        """
        if isinstance(tasks, CfgNode):
            logger.warning("COCOEvaluator(%r, cfg, ...): cfg has no effect", dataset_name)
            tasks = None
        self._protocol = Protocol(tasks, max_dets_per_image, use_fast_impl, kpt_oks_sigmas)
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = output_dir
        self._ground_truth: GroundTruth | None = None
        if not distributed or comm.is_main_process():
            self._ground_truth = load_ground_truth(dataset_name)
            self._protocol.check_truth(self._ground_truth)
            if output_dir and self._ground_truth.converted:
                self._write_ground_truth()
            warn_about_object_counts(self._ground_truth, self._protocol.max_dets_per_image)
        self.reset()

    def reset(self) -> None:
        self._results: dict[Any, ImagePredictions] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Stores the predictions of one batch, masks as RLE.

        Args:
            inputs: one dict per image, with `image_id`.
            outputs: one dict per image, with `instances`: an `Instances` with `pred_boxes` (XYXY, pixels of
                the original image), `scores` and `pred_classes`, and optionally `pred_masks` (bool (N, H, W), or
                `EncodedMasks`) and `pred_keypoints` (N, J, 3), on any device.
        """
        for record, output in zip(inputs, outputs, strict=True):
            if "instances" in output:
                self._results[record["image_id"]] = ImagePredictions.of(output["instances"])

    def evaluate(self, img_ids: list | None = None) -> OrderedDict[str, dict[str, float]]:
        """Computes the metrics.

        Args:
            img_ids: evaluate only these images of the ground truth.

        Returns:
            `{task: {metric: value}}`, NaN where undefined; all NaN if nothing was predicted. Empty if
            nothing was processed, if the dataset has no annotations, and in processes other than the main
            one.

        Raises:
            ValueError: the ground truth does not have a predicted class, or an image with predictions; an annotation
                or a prediction lacks what a task needs.
        """
        parts = comm.gather(self._results, dst=0) if self._distributed else [self._results]
        if self._distributed and not comm.is_main_process():
            return OrderedDict()
        return evaluate_predictions(
            merge_parts(parts), self._ground_truth, self._protocol, output_dir=self._output_dir, image_ids=img_ids
        )

    def _write_ground_truth(self) -> None:
        os.makedirs(self._output_dir, exist_ok=True)
        path = os.path.join(self._output_dir, f"{self._dataset_name}_coco_format.json")
        with open(path, "w") as f:
            f.write(json.dumps(self._ground_truth.coco))
        self._ground_truth.file = path
        logger.info("Wrote %s", path)
