"""Data of the embedded engine.

In reading order:

- ``catalog.py``: data sets by name: their records and metadata
- ``builtin_datasets.py``: registers COCO under its usual names
- ``coco_json.py``: reads records from a COCO annotation file
- ``dataset_mapper.py``: turns a record into the input of a detector
- ``detection_utils.py``: the steps of a mapper
- ``instance_annotations.py``: masks and keypoints of a record under the transforms of its image
- ``transforms``: augmentation
- ``samplers.py``: the order in which records are drawn
- ``train_loader.py``: turns records into the batches of a training run
- ``loaders.py``: builds the loaders that a config describes
- ``tta_mapper.py``: the inputs of test-time augmentation
"""

from . import builtin_datasets as _builtin  # noqa: F401  (registers the built-in datasets)
from . import detection_utils, transforms
from .catalog import DatasetCatalog, Metadata, MetadataCatalog
from .coco_json import load_coco_json, register_coco_instances
from .dataset_mapper import DatasetMapper
from .loaders import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from .samplers import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler
from .train_loader import trivial_batch_collator

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
