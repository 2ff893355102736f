"""The engine's COCO evaluator with this package's metrics: masks stay run lengths, and the matching is faster."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from retinanet_ext.d2 import ENGINE, COCOEvaluator, MetadataCatalog, comm
from retinanet_ext.evaluation.coco_predictions import ImagePredictions
from retinanet_ext.evaluation.coco_report import warn_about_object_counts
from retinanet_ext.evaluation.coco_tasks import Protocol, evaluate_predictions, merge_parts
from retinanet_ext.evaluation.ground_truth import GroundTruth


class CompactCOCOEvaluator(COCOEvaluator):
    """Detectron2's COCOEvaluator, of which only the ground truth is used. ``lite``'s evaluator computes so itself.

    Masks may be ``EncodedMasks``, which are not decoded. Results have Detectron2's names and, to rounding, its numbers.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas: Sequence[float] = (),
        allow_cached_coco: bool = True,
    ):
        """
        Args:
            use_fast_impl: match by faster-coco-eval; otherwise by pycocotools, which gives the same numbers.
            (the others): as Detectron2's.

        Raises:
            ValueError: an unknown task, or one for which no annotation of the dataset has what it needs.
        """
        self._protocol = Protocol(tasks, max_dets_per_image, use_fast_impl, kpt_oks_sigmas)
        super().__init__(
            dataset_name,
            tasks,
            distributed,
            output_dir,
            max_dets_per_image=max_dets_per_image,
            use_fast_impl=False,  # so that its compiled code need not exist
            kpt_oks_sigmas=kpt_oks_sigmas,
            allow_cached_coco=allow_cached_coco,
        )
        self._gather_parts = distributed
        self._results_dir = output_dir
        self._name = dataset_name
        if not distributed or comm.is_main_process():
            self._protocol.check_truth(self._ground_truth())
        self.reset()

    def _ground_truth(self) -> GroundTruth:
        metadata = MetadataCatalog.get(self._name)
        file = metadata.get("json_file", None)
        truth = GroundTruth.of(
            self._coco_api.dataset,
            file or f"dataset {self._name!r}",
            # Loading the dataset sets these, which may happen after this evaluator was made.
            metadata.get("thing_dataset_id_to_contiguous_id", None),
            metadata.get("thing_classes", None),
        )
        truth.file, truth.name, truth.image_root = file, self._name, metadata.get("image_root", "")
        return truth

    def reset(self) -> None:
        """Forget everything seen so far."""
        self._found: dict[Any, ImagePredictions] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Keep the predictions of one batch, masks as RLE; inputs and outputs are those of Detectron2's evaluator."""
        for record, output in zip(inputs, outputs, strict=True):
            if "instances" in output:
                self._found[record["image_id"]] = ImagePredictions.of(output["instances"])

    def evaluate(self, img_ids: list | None = None) -> OrderedDict[str, dict[str, float]]:
        """``{task: {metric: value}}``, as Detectron2's evaluator; empty in processes other than the main one."""
        parts = comm.gather(self._found, dst=0) if self._gather_parts else [self._found]
        if self._gather_parts and not comm.is_main_process():
            return OrderedDict()
        truth = self._ground_truth()
        warn_about_object_counts(truth, self._protocol.max_dets_per_image)
        return evaluate_predictions(
            merge_parts(parts), truth, self._protocol, output_dir=self._results_dir, image_ids=img_ids
        )


# What the trainer uses.
DefaultCOCOEvaluator = CompactCOCOEvaluator if ENGINE == "detectron2" else COCOEvaluator
