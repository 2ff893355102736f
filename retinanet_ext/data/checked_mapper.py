"""A dataset mapper that says which file it could not read."""

import logging
from collections.abc import Callable

from retinanet_ext.d2 import CfgNode, DatasetMapper, SizeMismatchError

from .doctor.image_probe import IMAGE_ERRORS
from .doctor.record_checks import CHECK_KEY, IMAGE_KEY, IMAGE_POLICIES

logger = logging.getLogger(__name__)


def mapper_for_test(cfg: CfgNode) -> DatasetMapper:
    """The engine's mapper of a config, for images without ground truth."""
    return DatasetMapper(boxes_only(cfg), is_train=False)


def boxes_only(cfg: CfgNode) -> CfgNode:
    """A copy of a config for a mapper that needs neither masks nor keypoints.

    With MODEL.KEYPOINT_ON, a mapper asks the training data for their flip map, and they may not be on this machine.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.MASK_ON = cfg.MODEL.KEYPOINT_ON = False
    return cfg


class CheckedMapper:
    """Wraps a mapper (dataset dict -> model input) and handles image files that the mapper cannot read.

    Such files were damaged after the dataset check, or the check did not decode them.

    Args:
        mapper: any mapper.
        on_bad_image: "error" raises a ValueError that names the file; "drop" logs it and returns None; the data
            loader then takes another sample.
    """

    def __init__(self, mapper: Callable[[dict], dict | None], on_bad_image: str = "error") -> None:
        if on_bad_image not in IMAGE_POLICIES:
            raise ValueError(f"on_bad_image is {on_bad_image!r}; legal: {', '.join(IMAGE_POLICIES)}.")
        self.mapper = mapper
        self.on_bad_image = on_bad_image
        self.num_dropped = 0  # in this process; each loader worker has its own count

    def __call__(self, dataset_dict: dict) -> dict | None:
        try:
            return self.mapper(dataset_dict)
        except (*IMAGE_ERRORS, SizeMismatchError) as error:
            what = f"{dataset_dict['file_name']} (image id {dataset_dict.get('image_id')})"
            reason = f"{type(error).__name__}: {error}"
            if self.on_bad_image == "error":
                raise ValueError(
                    f"Cannot read {what}: {reason}. Correct the file, or set {IMAGE_KEY} drop to leave such images "
                    f"out. {CHECK_KEY} decode finds all of them before the run; an evaluation leaves out only images "
                    "that the check found."
                ) from error
            self.num_dropped += 1
            logger.warning("Left out %s: %s. Samples left out so far: %d.", what, reason, self.num_dropped)
            return None
