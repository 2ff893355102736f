"""What a config trains beside boxes, and whether a dataset has it at all. Independent of single annotations."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from retinanet_ext.d2 import CfgNode
from retinanet_ext.ops.coco_keypoints import num_labelled

from .keypoint_faults import flat_keypoints
from .mask_faults import has_mask

NUM_KEYPOINTS_KEY = "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"


@dataclass(frozen=True)
class Tasks:
    """``masks``: MODEL.MASK_ON. ``polygons_only``: the masks are trained as polygons, which encoded masks are not.
    ``num_keypoints``: J, 0 if MODEL.KEYPOINT_ON is off. ``identities``: MODEL.EMBEDDING_ON, in training."""

    masks: bool = False
    polygons_only: bool = False
    num_keypoints: int = 0
    identities: bool = False

    def __bool__(self) -> bool:
        return bool(self.masks or self.num_keypoints or self.identities)


BOXES = Tasks()


def tasks_of(cfg: CfgNode, dataset_name: str) -> Tasks:
    """What the config trains or evaluates on a dataset. An evaluation takes polygons and encoded masks together."""
    polygons = cfg.MODEL.MASK_ON and dataset_name in cfg.DATASETS.TRAIN and cfg.INPUT.MASK_FORMAT == "polygon"
    num_keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS if cfg.MODEL.KEYPOINT_ON else 0
    identities = cfg.MODEL.EMBEDDING_ON and dataset_name in cfg.DATASETS.TRAIN
    return Tasks(cfg.MODEL.MASK_ON, polygons, num_keypoints, identities)


def refuse_tasks_without_data(dicts: Sequence[dict], dataset_name: str, tasks: Tasks) -> None:
    """Refuse a config that does not fit the dataset as a whole. No policy applies: the data are not at fault.

    Raises:
        ValueError: no object has a mask, or keypoints; masks are trained as polygons, but some are encoded; the objects
            have another number of keypoints than the config.
    """
    objects = [(d, a) for d in dicts for a in d.get("annotations", ()) if a.get("iscrowd", 0) in (0, "0", None)]
    if not objects:
        return
    if tasks.masks:
        _refuse_masks(objects, dataset_name, tasks)
    if tasks.num_keypoints:
        _refuse_keypoints(objects, dataset_name, tasks)


def task_summary(dicts: Sequence[dict], tasks: Tasks) -> str:
    """For the log: how many objects (crowds do not count) have masks, keypoints and identities; "" for boxes alone."""
    if not tasks:
        return ""
    objects = [a for d in dicts for a in d.get("annotations", ()) if not a.get("iscrowd", 0)]
    parts = []
    if tasks.masks:
        encoded = sum(isinstance(a.get("segmentation"), dict) for a in objects)
        polygons = sum(map(has_mask, objects)) - encoded
        parts.append(f"{polygons + encoded} have masks ({polygons} polygons, {encoded} RLE)")
    if tasks.num_keypoints:
        visible = [num_labelled(flat_keypoints(a) or ()) for a in objects]
        parts.append(f"{sum(map(bool, visible))} have labelled keypoints ({sum(visible)} in all)")
    if tasks.identities:
        parts.append(f"{sum(a.get('identity') is not None for a in objects)} have an identity")
    return f" Of {len(objects)} objects, {' and '.join(parts)}."


def _refuse_masks(objects, dataset_name, tasks):
    encoded = [(d, a) for d, a in objects if isinstance(a.get("segmentation"), dict)]
    if not encoded and not any(has_mask(a) for _, a in objects):
        raise ValueError(
            f"MODEL.MASK_ON is True, but none of the {len(objects)} objects of dataset {dataset_name!r} has a "
            "segmentation. Set MODEL.MASK_ON False, or name an annotation file with masks."
        )
    if tasks.polygons_only and encoded:
        record, annotation = encoded[0]
        raise ValueError(
            f"Dataset {dataset_name!r}: {len(encoded)} of {len(objects)} objects have their mask as RLE, the first one "
            f"in {record['file_name']} (image id {record.get('image_id')}, annotation id {annotation.get('id')}). "
            "INPUT.MASK_FORMAT is polygon, which cannot take RLE; set INPUT.MASK_FORMAT bitmask, which takes both."
        )


def _refuse_keypoints(objects, dataset_name, tasks):
    all_keypoints = [flat_keypoints(a) for _, a in objects]
    found = Counter(len(keypoints) for keypoints in all_keypoints if isinstance(keypoints, (list, tuple)))
    if not any(all_keypoints):
        raise ValueError(
            f"MODEL.KEYPOINT_ON is True, but none of the {len(objects)} objects of dataset {dataset_name!r} has "
            "keypoints. Set MODEL.KEYPOINT_ON False, or name an annotation file with keypoints."
        )
    found.pop(0, None)
    (length,) = found if len(found) == 1 else (0,)
    if length and length % 3 == 0 and length != 3 * tasks.num_keypoints:
        raise ValueError(
            f"{NUM_KEYPOINTS_KEY} is {tasks.num_keypoints}, but the objects of dataset {dataset_name!r} have "
            f"{length // 3} keypoints. Set it to {length // 3}."
        )
