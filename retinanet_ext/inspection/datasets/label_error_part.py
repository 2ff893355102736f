"""Probable label errors as a part of `doctor data --weights`: runs the model over the images of a dataset."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch

from retinanet_ext.config.class_count import set_score_threshold
from retinanet_ext.d2 import CfgNode
from retinanet_ext.data.identity_datasets import embeds_identities
from retinanet_ext.inference.embedder import Embedder
from retinanet_ext.inference.predictor import Predictor
from retinanet_ext.report.document import Block, Heading, Paragraph, Table

from .doctor_parts import Part, UsableDataset
from .findings import ERROR, Finding
from .identity_label_errors import MARGIN, identity_label_errors
from .label_errors import LIMITS, Detections, LabelError, label_errors

NO_MODEL = "model that cannot look for label errors"
# At least this many detections of an image are kept, so that a crowded image has none that were cut off.
_DETECTIONS = 300
_SECONDS = 10.0
_STATISTICS = "probable label errors"

logger = logging.getLogger(__name__)


def label_error_part(weights: str) -> Part:
    """The part for a checkpoint, of a detector or of a FaceNet; its model is built once, for the first dataset."""
    models: list[Predictor | Embedder] = []

    def part(cfg: CfgNode, dataset: UsableDataset) -> tuple[list[Finding], list[Block]]:
        try:
            if not models:
                models.append(_model(cfg, weights))
        except Exception as error:  # any exception: of a file that is no checkpoint, or that of another model
            found = f"{weights}: {type(error).__name__}: {error}"
            legal = "a checkpoint of the model that the config describes"
            return [Finding(NO_MODEL, ERROR, dataset.name, None, None, None, found, legal)], []
        errors = errors_of(models[0], dataset)
        dataset.statistics[_STATISTICS] = as_json(errors)
        return [error.finding for error in errors], label_error_blocks(errors, dataset)

    return part


def errors_of(model: Predictor | Embedder, dataset: UsableDataset) -> list[LabelError]:
    """The probable label errors of a dataset, as a model sees it."""
    if isinstance(model, Embedder):
        return identity_label_errors(dataset.name, dataset.records, model.stream, dataset.identity_names)
    return label_errors(dataset.name, dataset.records, predicted(model.predict, dataset.records), dataset.class_names)


def predicted(predict: Callable, records: Sequence[dict]) -> dict[object, Detections]:
    """Detections by image id. One batch of images is in memory at a time, and the log shows the progress.

    Args:
        predict: yields a result for each path, as ``Predictor.predict``, with all scores from ``Limits.low`` on.
        records: dataset dicts.
    """
    detections, last = {}, time.perf_counter()
    results = predict(record["file_name"] for record in records)
    for record, result in zip(records, results, strict=True):
        boxes = result.pred_boxes.tensor.double().numpy()
        detections[record["image_id"]] = Detections(boxes, result.scores.double().numpy(), result.pred_classes.numpy())
        if time.perf_counter() - last >= _SECONDS:
            last = time.perf_counter()
            logger.info("label errors: %d of %d images predicted", len(detections), len(records))
    return detections


def as_json(errors: Sequence[LabelError]) -> list[dict]:
    """The errors as JSON values, in their order."""
    return [
        {
            "kind": error.finding.kind,
            "file_name": error.finding.file_name,
            "annotation": error.finding.annotation,
            "box": error.finding.box,
            "detection": error.detection,
            "score": error.score,
            "rank": error.rank,
        }
        for error in errors
    ]


def label_error_blocks(errors: Sequence[LabelError], dataset: UsableDataset) -> list[Block]:
    """The section of the page: how many errors of each kind. Their pictures are among those of the findings."""
    rule = (
        f"A detection counts from a score of {LIMITS.confident:g} on; an annotation is not found if no detection from "
        f"{LIMITS.low:g} on has an IoU of {LIMITS.apart:g} with it."
    )
    if dataset.identity_names:
        rule = (
            "An image counts if the centre of another identity is nearer than that of its own other images, by "
            f"{MARGIN:g} in squared distance."
        )
    explained = (
        f"Labels and model contradict each other in {len(errors):,} places. {rule} The model may be mistaken too: look "
        "at the pictures, the most certain first."
    )
    blocks: list[Block] = [Heading(f"Probable label errors: {dataset.name}"), Paragraph(explained)]
    counts = Counter(error.finding.kind for error in errors)
    return [*blocks, Table(["kind", "places"], [[kind, f"{n:,}"] for kind, n in counts.items()])] if counts else blocks


def _model(cfg: CfgNode, weights: str) -> Predictor | Embedder:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = weights
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    if embeds_identities(cfg):
        return Embedder(cfg)
    set_score_threshold(cfg, LIMITS.low)
    cfg.TEST.DETECTIONS_PER_IMAGE = max(cfg.TEST.DETECTIONS_PER_IMAGE, _DETECTIONS)
    return Predictor(cfg)
