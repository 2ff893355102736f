"""Leave out images without objects, as training does by default. Independent of the engine."""

import logging
from collections.abc import Sequence

from retinanet_ext.ops.coco_keypoints import num_labelled

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


def with_keypoints_to_train(records: list[dict], names: Sequence[str], minimum: int) -> list[dict]:
    """Return the records with at least `minimum` labelled keypoints, all of them if it is 0.

    Args:
        records: dataset dicts; each object has flat `keypoints`, or none.
        names: dataset names, for the messages.
        minimum: MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE.

    Raises:
        ValueError: no record is left.
    """
    if minimum <= 0:
        return records
    kept = [r for r in records if "annotations" not in r or _labelled(r["annotations"]) >= minimum]
    if len(kept) < len(records):
        logger.info(
            "%d of %d images of %s have fewer than %d labelled keypoints and are not trained on; "
            "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE 0 keeps them",
            len(records) - len(kept), len(records), ", ".join(names), minimum,
        )  # fmt: skip
    if not kept:
        raise ValueError(
            f"no image of {', '.join(names)} has {minimum} labelled keypoints; check the visibilities, or set "
            "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE 0"
        )
    return kept


def _labelled(annotations):
    return sum(num_labelled(list(a.get("keypoints") or ())) for a in annotations)
