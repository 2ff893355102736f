"""Tiny COCO files with one fault, for the tests of the checks of masks and keypoints."""

import importlib
import json

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from retinanet_ext import d2
from retinanet_ext.config.keys import add_retinanet_ext_config
from retinanet_ext.data.checked_records import load_checked_dicts
from retinanet_ext.data.registration import register_custom_datasets

WIDTH, HEIGHT = 40, 30
BOX = [5, 5, 15, 10]
POLYGON = [[5, 5, 20, 5, 20, 15, 5, 15]]
KEYPOINTS = [6, 6, 2, 10, 10, 1, 0, 0, 0]


def rle(x0=5, y0=5, x1=20, y1=15, size=(HEIGHT, WIDTH), compressed=True):
    """A filled rectangle; by default that of BOX."""
    mask = np.zeros(size, np.uint8)
    mask[y0:y1, x0:x1] = 1
    if compressed:
        encoded = mask_util.encode(np.asfortranarray(mask))
        return {"size": list(size), "counts": encoded["counts"].decode()}
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat])))
    return {"size": list(size), "counts": np.diff([0, *edges, flat.size]).tolist()}


def annotation(number, **fields):
    return {"id": number, "image_id": 1, "category_id": 3, "bbox": BOX, "iscrowd": 0, "area": 150, **fields}


def write(folder, annotations, name="data", keypoints=None):
    """Write NAME.json with two images; every annotation lies in the first unless it says otherwise."""
    images = [{"id": k, "file_name": f"{k}.png", "width": WIDTH, "height": HEIGHT} for k in (1, 2)]
    for image in images:
        Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(folder / image["file_name"])
    category = {"id": 3, "name": "cat", **({"keypoints": keypoints} if keypoints else {})}
    content = {"images": images, "annotations": annotations, "categories": [category]}
    (folder / f"{name}.json").write_text(json.dumps(content))
    return str(folder / f"{name}.json")


def register(folder, way, name="data"):
    """Register NAME.json under its name: by the config, or as Detectron2's users do."""
    if way == "config":
        cfg = config(folder)
        cfg.DATASETS.CUSTOM = [
            {"NAME": name, "FORMAT": "coco", "JSON": str(folder / f"{name}.json"), "IMAGES": str(folder)}
        ]
        register_custom_datasets(cfg)
        return
    module = "retinanet_ext.lite.data.coco_json" if d2.ENGINE == "lite" else "detectron2.data.datasets"
    register_function = importlib.import_module(module).register_coco_instances
    register_function(name, {}, str(folder / f"{name}.json"), str(folder))


def config(folder, policy="error", masks=False, keypoints=0, mask_format="polygon", train=("data",), test=()):
    cfg = d2.get_cfg()
    add_retinanet_ext_config(cfg)
    cfg.OUTPUT_DIR = str(folder / "out")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = tuple(train), tuple(test)
    cfg.DATASETS.ON_BAD_ANNOTATION = policy
    cfg.MODEL.RETINANET.NUM_CLASSES = 1
    cfg.MODEL.MASK_ON, cfg.MODEL.KEYPOINT_ON = masks, bool(keypoints)
    cfg.INPUT.MASK_FORMAT = mask_format
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = keypoints or 17
    return cfg


def load(cfg):
    """The annotations of the first image after the checks."""
    records = load_checked_dicts(cfg, ["data"], filter_empty=False)
    return records[0]["annotations"]
