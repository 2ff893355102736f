"""Leave out images without objects or keypoints, as training does by default. Independent of the engine."""

import logging
from collections.abc import Sequence

logger = logging.getLogger(__name__)


def without_empty_images(records: list[dict], names: Sequence[str]) -> list[dict]:
    """Return the records with at least one object that is not a crowd. Records without ``annotations`` stay.

    Args:
        records: dataset dicts.
        names: dataset names, for the messages.

    Raises:
        ValueError: no record is left.
    """
    kept = [r for r in records if "annotations" not in r or any(not a.get("iscrowd", 0) for a in r["annotations"])]
    if len(kept) < len(records):
        logger.info(
            "%d of %d images of %s have no objects and are not trained on; DATALOADER.FILTER_EMPTY_ANNOTATIONS False "
            "keeps them",
            len(records) - len(kept),
            len(records),
            ", ".join(names),
        )
    if not kept:
        raise ValueError(
            f"no image of {', '.join(names)} has an object to train on; check the annotations, or set "
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS False to train on background alone"
        )
    return kept


def without_few_keypoints(records: list[dict], names: Sequence[str], minimum: int) -> list[dict]:
    """Return the records with at least ``minimum`` labelled keypoints, counted over all their annotations.

    Args:
        records: dataset dicts; ``keypoints`` of an annotation are x, y, visibility, x, ...; visibility 0 means not
            labelled.
        names: dataset names, for the messages.
        minimum: MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE; 0 keeps all records.

    Raises:
        ValueError: no record is left.
    """
    kept = [record for record in records if _labelled_keypoints(record) >= minimum]
    if len(kept) < len(records):
        logger.info(
            "%d of %d images of %s have less than %d labelled keypoints and are not trained on; "
            "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE 0 keeps them",
            len(records) - len(kept), len(records), ", ".join(names), minimum,
        )  # fmt: skip
    if not kept:
        raise ValueError(
            f"no image of {', '.join(names)} has {minimum} labelled keypoints to train on; check that the annotations "
            "have keypoints, or set MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE 0, or MODEL.KEYPOINT_ON False"
        )
    return kept


def _labelled_keypoints(record: dict) -> int:
    points = (annotation.get("keypoints") for annotation in record.get("annotations", ()))
    return sum(int(visibility > 0) for values in points if values is not None for visibility in values[2::3])


def fewest_keypoints(cfg) -> int:
    """The number of labelled keypoints that an image of a config's training data needs; 0 without keypoints."""
    return cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
