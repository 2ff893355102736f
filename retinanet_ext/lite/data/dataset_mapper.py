"""Turn a dataset record into the input of a detector."""

import logging
from collections.abc import Sequence

import numpy as np
import torch

from ..cfg_node import configurable
from ..structures import Boxes, Instances, Keypoints
from . import detection_utils, instance_annotations
from . import transforms as T

logger = logging.getLogger(__name__)


class DatasetMapper:
    """Reads the image of a record, augments it, and makes tensors of the image and its objects."""

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str,
        use_instance_mask: bool = False,
        use_keypoint: bool = False,
        instance_mask_format: str = "polygon",
        keypoint_hflip_indices: Sequence[int] | None = None,
        recompute_boxes: bool = False,
    ) -> None:
        """
        Args:
            is_train: whether to return ground truth.
            augmentations: applied in this order.
            image_format: channels of the image tensor: ``BGR``, ``RGB`` or ``L``.
            use_instance_mask, use_keypoint: whether to return the masks and the keypoints of the record, if it has any.
            instance_mask_format: ``polygon``, or ``bitmask``, which also takes masks that are not polygons.
            keypoint_hflip_indices: see ``detection_utils.create_keypoint_hflip_indices``; needed for keypoints in
                images that an augmentation mirrors.
            recompute_boxes: make the boxes anew, around the transformed masks. A crop may cut off a part of an object.

        Raises:
            ValueError: ``recompute_boxes`` without ``use_instance_mask``.
        """
        if recompute_boxes and not use_instance_mask:
            raise ValueError("recompute_boxes makes boxes from masks, so it needs use_instance_mask=True")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_instance_mask = use_instance_mask
        self.use_keypoint = use_keypoint
        self.instance_mask_format = instance_mask_format
        self.keypoint_hflip_indices = keypoint_hflip_indices
        self.recompute_boxes = recompute_boxes
        logger.info("%s: %r", "training" if is_train else "inference", self.augmentations)

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> dict:
        augmentations = detection_utils.build_augmentation(cfg, is_train)
        crops = cfg.INPUT.CROP.ENABLED and is_train
        if crops:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        arguments = {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "use_keypoint": cfg.MODEL.KEYPOINT_ON,
            "instance_mask_format": cfg.INPUT.MASK_FORMAT,
            "recompute_boxes": crops and cfg.MODEL.MASK_ON,
        }
        # Without ground truth there are no keypoints to flip, and the training data need not be on this machine.
        if cfg.MODEL.KEYPOINT_ON and is_train:
            arguments["keypoint_hflip_indices"] = detection_utils.create_keypoint_hflip_indices(cfg.DATASETS.TRAIN)
        return arguments

    def __call__(self, dataset_dict: dict) -> dict:
        """
        Args:
            dataset_dict: one record; not changed.

        Returns:
            A copy of the record without ``annotations``, with ``image``, a uint8 tensor ``(C, H, W)``. In training,
            a record with annotations also gets ``instances``, without crowd regions and empty objects: ``gt_boxes``,
            ``gt_classes``, and ``gt_masks`` and ``gt_keypoints`` if they are used and the annotations have them.
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
        if self.use_instance_mask and instance_annotations.all_have(objects, "segmentation"):
            self._add_masks(instances, objects, transforms)
        if self.use_keypoint and instance_annotations.all_have(objects, "keypoints"):
            points = instance_annotations.keypoint_array(objects)
            instances.gt_keypoints = Keypoints(
                instance_annotations.transform_keypoints(points, transforms, image_size, self.keypoint_hflip_indices)
            )
        return detection_utils.filter_empty_instances(instances)

    def _add_masks(self, instances: Instances, objects: list[dict], transforms: T.TransformList) -> None:
        size = instances.image_size
        masks = [instance_annotations.transform_segmentation(o["segmentation"], transforms, size) for o in objects]
        instances.gt_masks = instance_annotations.masks_to_instances(masks, size, self.instance_mask_format)
        if self.recompute_boxes:
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
