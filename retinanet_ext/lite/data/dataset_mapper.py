"""Turn a dataset record into the input of a detector."""

import logging
from collections.abc import Sequence

import numpy as np
import torch

from ..cfg_node import configurable
from ..structures import Boxes, Instances
from . import detection_utils
from . import transforms as T

logger = logging.getLogger(__name__)


class DatasetMapper:
    """Reads the image of a record, augments it, and makes tensors of the image and its boxes."""

    @configurable
    def __init__(
        self, is_train: bool, *, augmentations: Sequence[T.Augmentation | T.Transform], image_format: str
    ) -> None:
        """
        Args:
            is_train: whether to return ground truth.
            augmentations: applied in this order.
            image_format: channels of the image tensor: ``BGR``, ``RGB`` or ``L``.
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        logger.info("%s: %r", "training" if is_train else "inference", self.augmentations)

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict:
        for key in ("MASK_ON", "KEYPOINT_ON"):
            if cfg.MODEL[key]:
                raise ValueError(
                    f"MODEL.{key} is True, but the lite engine reads boxes only; set it to False, or run on Detectron2"
                )
        augmentations = detection_utils.build_augmentation(cfg, is_train)
        if cfg.INPUT.CROP.ENABLED and is_train:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        return {"is_train": is_train, "augmentations": augmentations, "image_format": cfg.INPUT.FORMAT}

    def __call__(self, dataset_dict: dict) -> dict:
        """
        Args:
            dataset_dict: one record; not changed.

        Returns:
            A copy of the record without ``annotations``, with ``image``, a uint8 tensor ``(C, H, W)``. In training,
            a record with annotations also gets ``instances``, without crowd regions and boxes without area.
        """
        record = dict(dataset_dict)
        image = detection_utils.read_image(record["file_name"], format=self.image_format)
        detection_utils.check_image_size(record, image)
        aug_input = T.AugInput(image)
        transforms = self.augmentations(aug_input)
        image = aug_input.image
        record["image"] = detection_utils.image_to_tensor(image)
        annotations = record.pop("annotations", None)
        if self.is_train and annotations is not None:
            record["instances"] = self._instances(annotations, transforms, image.shape[:2])
        return record

    def _instances(
        self, annotations: list[dict], transforms: T.TransformList, image_size: tuple[int, int]
    ) -> Instances:
        objects = [annotation for annotation in annotations if annotation.get("iscrowd", 0) == 0]
        boxes = detection_utils.boxes_of_annotations(objects)
        if len(boxes):
            boxes = transforms.apply_box(boxes)
        height, width = image_size
        instances = Instances(image_size)
        instances.gt_boxes = Boxes(torch.from_numpy(np.clip(boxes, 0, [width, height, width, height])).float())
        instances.gt_classes = torch.tensor([a["category_id"] for a in objects], dtype=torch.int64)
        return detection_utils.filter_empty_instances(instances)
