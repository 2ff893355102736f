"""A dataset mapper that says which file it could not read."""

from collections.abc import Callable

from retinanet_ext.d2 import CfgNode, DatasetMapper, SizeMismatchError

from .doctor.image_probe import IMAGE_ERRORS, probe_images
from .doctor.record_checks import CHECK_KEY, IMAGE_KEY


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


def reading_fault(error: Exception, record: dict) -> str | None:
    """What is wrong with the image file of a record, if that is why a mapper failed; None if it is not.

    Args:
        error: raised by a mapper of this record.
        record: has ``file_name``.
    """
    if not isinstance(error, (*IMAGE_ERRORS, SizeMismatchError)):
        # Decoders raise other types too (struct.error, ValueError). The file is at fault if it cannot be decoded alone.
        [found] = probe_images([record["file_name"]], decode=True)
        if not isinstance(found, Exception):
            return None
    return f"{type(error).__name__}: {error}"


class CheckedMapper:
    """Wraps a mapper (dataset dict -> model input): its errors name the image file that it could not read.

    It is for evaluation, where no other image may replace one. In training, :class:`ReplacingMapper` does that.

    Args:
        mapper: any mapper.
    """

    def __init__(self, mapper: Callable[[dict], dict | None]) -> None:
        self.mapper = mapper

    def __call__(self, dataset_dict: dict) -> dict | None:
        try:
            return self.mapper(dataset_dict)
        except Exception as error:
            reason = reading_fault(error, dataset_dict)
            if reason is None:
                raise
            what = f"{dataset_dict['file_name']} (image id {dataset_dict.get('image_id')})"
            raise ValueError(
                f"Cannot read {what}: {reason}. An evaluation replaces no image. Correct the file, or start again with "
                f"{CHECK_KEY} decode, which finds all such files before the run, and {IMAGE_KEY} drop, which leaves "
                "them out of the evaluation and says so in results.json."
            ) from error
