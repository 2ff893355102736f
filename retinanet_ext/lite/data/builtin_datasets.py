"""COCO's detection sets under their usual names. Importing this module registers them.

Files are expected below ``$DETECTRON2_DATASETS`` (``datasets`` if unset), as
``coco/annotations/instances_<split>.json`` (``image_info_<split>.json`` for the test sets, whose annotations are
not published) and ``coco/<split>/``. No file is read before a set is used.
"""

import os

from ..palette import generate_palette
from .catalog import DatasetCatalog
from .coco_json import register_coco_instances

COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
# COCO numbers 90 categories and annotates 80 of them as objects.
UNUSED_COCO_IDS = frozenset((12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
COCO_IDS = tuple(number for number in range(1, 91) if number not in UNUSED_COCO_IDS)

# name: (annotation file, image folder), both below the root
COCO_SPLITS = {
    "coco_2014_train": ("coco/annotations/instances_train2014.json", "coco/train2014"),
    "coco_2014_val": ("coco/annotations/instances_val2014.json", "coco/val2014"),
    "coco_2014_minival": ("coco/annotations/instances_minival2014.json", "coco/val2014"),
    "coco_2014_valminusminival": ("coco/annotations/instances_valminusminival2014.json", "coco/val2014"),
    "coco_2017_train": ("coco/annotations/instances_train2017.json", "coco/train2017"),
    "coco_2017_val": ("coco/annotations/instances_val2017.json", "coco/val2017"),
    "coco_2017_test": ("coco/annotations/image_info_test2017.json", "coco/test2017"),
    "coco_2017_test-dev": ("coco/annotations/image_info_test-dev2017.json", "coco/test2017"),
    "coco_2017_val_100": ("coco/annotations/instances_val2017_100.json", "coco/val2017"),
}


def register_all_coco(root: str) -> None:
    """Register every set of :data:`COCO_SPLITS` with its files below ``root``."""
    colors = [list(color) for color in generate_palette(len(COCO_CLASSES))]
    for name, (json_file, image_root) in COCO_SPLITS.items():
        metadata = {
            "thing_classes": list(COCO_CLASSES),
            "thing_dataset_id_to_contiguous_id": {number: i for i, number in enumerate(COCO_IDS)},
            "thing_colors": colors,
        }
        register_coco_instances(name, metadata, os.path.join(root, json_file), os.path.join(root, image_root))


if "coco_2017_train" not in DatasetCatalog:
    register_all_coco(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))
