"""Data of the embedded engine: catalogs, COCO reader, augmentation, mapper, samplers, loaders."""

from . import builtin as _builtin  # noqa: F401  (registers the built-in datasets)
from . import detection_utils, transforms
from .build import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
    trivial_batch_collator,
)
from .catalog import DatasetCatalog, Metadata, MetadataCatalog
from .coco import load_coco_json, register_coco_instances
from .mapper import DatasetMapper
from .samplers import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler

__all__ = [
    "DatasetCatalog",
    "DatasetMapper",
    "InferenceSampler",
    "Metadata",
    "MetadataCatalog",
    "RepeatFactorTrainingSampler",
    "TrainingSampler",
    "build_detection_test_loader",
    "build_detection_train_loader",
    "detection_utils",
    "get_detection_dataset_dicts",
    "load_coco_json",
    "register_coco_instances",
    "transforms",
    "trivial_batch_collator",
]
