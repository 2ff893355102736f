"""COCO's detection and keypoint sets under their usual names. Importing this module registers them.

Files are expected below ``$DETECTRON2_DATASETS`` (``datasets`` if unset), as
``coco/annotations/instances_<split>.json`` (``image_info_<split>.json`` for the test sets, whose annotations are
not published), ``person_keypoints_<split>.json`` beside them, and ``coco/<split>/``. No file is read before a set is
used.
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


COCO_KEYPOINT_NAMES = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
# Pairs of numbers in COCO_KEYPOINT_NAMES (from 0) between which a line is drawn.
COCO_SKELETON = (
    (3, 1), (4, 2), (1, 0), (0, 2), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10), (11, 12), (11, 13), (12, 14), (13, 15),
    (14, 16),
)  # fmt: skip
COCO_KEYPOINT_SPLITS = {
    f"keypoints_{name}": (json_file.replace("instances_", "person_keypoints_"), image_root)
    for name, (json_file, image_root) in COCO_SPLITS.items()
    if "instances_" in json_file
}


def register_all_coco(root: str) -> None:
    """Register all sets of :data:`COCO_SPLITS` and :data:`COCO_KEYPOINT_SPLITS`, with their files below ``root``."""
    colors = [list(color) for color in generate_palette(len(COCO_CLASSES))]
    for name, (json_file, image_root) in COCO_SPLITS.items():
        metadata = {
            "thing_classes": list(COCO_CLASSES),
            "thing_dataset_id_to_contiguous_id": {number: i for i, number in enumerate(COCO_IDS)},
            "thing_colors": colors,
        }
        register_coco_instances(name, metadata, os.path.join(root, json_file), os.path.join(root, image_root))
    for name, (json_file, image_root) in COCO_KEYPOINT_SPLITS.items():
        metadata = _person_keypoints()
        register_coco_instances(name, metadata, os.path.join(root, json_file), os.path.join(root, image_root))


def _person_keypoints() -> dict:
    names = COCO_KEYPOINT_NAMES
    colors = generate_palette(len(COCO_SKELETON))
    return {
        "thing_classes": ["person"],
        "keypoint_names": names,
        "keypoint_flip_map": tuple((n, n.replace("left", "right")) for n in names if n.startswith("left")),
        "keypoint_connection_rules": [(names[a], names[b], tuple(c)) for (a, b), c in zip(COCO_SKELETON, colors)],
    }


if "coco_2017_train" not in DatasetCatalog:
    register_all_coco(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))
