"""Small inputs for tests, valid by construction."""

import socket
from collections.abc import Iterable

import torch

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import Boxes, Instances, Keypoints, PolygonMasks


def small_config(*opts: str):
    """A RetinaNet that runs in a fraction of a second: ResNet-18, 32 channels, one convolution per subnet, 3 classes.

    Group norm, because frozen batch norm without trained statistics lets the features of a random network explode.
    """
    overrides = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", "18"]
    overrides += ["MODEL.RESNETS.NORM", "GN", "MODEL.BACKBONE.FREEZE_AT", "0"]
    overrides += ["MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.FPN.OUT_CHANNELS", "32"]
    overrides += ["MODEL.RETINANET.NUM_CONVS", "1", "MODEL.RETINANET.NUM_CLASSES", "3"]
    return load_config("configs/Base-RetinaNet.yaml", [*overrides, *opts], datasets=False)


def free_port() -> int:
    """A port of this machine that no process uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ground_truth(height: int, width: int, boxes=(), classes=()) -> Instances:
    """Instances with ``gt_boxes`` (xyxy pixels) and ``gt_classes``."""
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return instances


def batch(generator: torch.Generator, *sizes_hw: tuple[int, int], num_objects: int = 2, num_classes: int = 3) -> list:
    """Training inputs with random pixels and ``num_objects`` boxes, at least 16 pixels a side, in each image."""
    inputs = []
    for index, (height, width) in enumerate(sizes_hw):
        upper_left = torch.rand(num_objects, 2, generator=generator) * torch.tensor([width - 40, height - 40])
        size = 16 + torch.rand(num_objects, 2, generator=generator) * 24
        classes = torch.randint(num_classes, (num_objects,), generator=generator)
        inputs.append(
            {
                "file_name": f"image_{index}.png",
                "image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator),
                "instances": ground_truth(
                    height, width, torch.cat([upper_left, upper_left + size], dim=1).tolist(), classes.tolist()
                ),
            }
        )
    return inputs


def faces(generator: torch.Generator, size_hw: tuple[int, int], identities: Iterable[int], channels: int = 3) -> list:
    """Training inputs of FaceNet: random pixels of one size, one image for each identity that is given."""
    return [
        {
            "file_name": f"face_{index}.png",
            "image": torch.randint(0, 256, (channels, *size_hw), dtype=torch.uint8, generator=generator),
            "identity": identity,
        }
        for index, identity in enumerate(identities)
    ]


def with_masks_and_keypoints(generator: torch.Generator, inputs: list, num_keypoints: int) -> list:
    """The inputs with an octagon in each box as its mask, and keypoints in and near it, some of them not labelled."""
    angles = torch.arange(8) * torch.pi / 4
    circle = torch.stack([angles.cos(), angles.sin()], dim=1) * 0.5 + 0.5  # (8, 2) in 0..1
    for image in inputs:
        instances = image["instances"]
        boxes = instances.gt_boxes.tensor
        corner, size = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2]
        polygons = (corner + circle * size).flatten(1).double()
        instances.gt_masks = PolygonMasks([[polygon.numpy()] for polygon in polygons])
        points = corner + torch.rand(len(boxes), num_keypoints, 2, generator=generator) * size * 1.2
        visibility = torch.randint(3, (len(boxes), num_keypoints, 1), generator=generator)
        instances.gt_keypoints = Keypoints(torch.cat([points, visibility], dim=2))
    return inputs


# A tiny run with masks and keypoints, in one stage and in two: the file, and what makes it small.
INSTANCE_RUNS = {
    "one stage": ["configs/quick/mask_retinanet.yaml"],
    "two stages": ["configs/quick/mask_rcnn.yaml", "MODEL.ROI_BOX_HEAD.FC_DIM", "16"],
}
for _words in INSTANCE_RUNS.values():
    _words += ["MODEL.KEYPOINT_ON", "True", "MODEL.ROI_KEYPOINT_HEAD.NAME", "FCNKeypointHead"]
    _words += ["MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(8,)", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8"]


def shapes_config(shapes, output_dir, *opts: str, file: str = "configs/quick/retinanet.yaml"):
    """A tiny run on the generated shapes in the folder ``shapes`` (see the fixture of that name)."""
    custom = [
        {
            "NAME": f"{shapes.name}_{split}",
            "FORMAT": "coco",
            "JSON": str(shapes / "annotations" / f"shapes_{split}.json"),
            "IMAGES": str(shapes / split),
        }
        for split in ("train", "val")
    ]
    overrides = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.FPN.OUT_CHANNELS", "16"]
    overrides += ["MODEL.RETINANET.NUM_CONVS", "1", "INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96"]
    overrides += ["DATASETS.CUSTOM", str(custom), "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2"]
    overrides += ["DATASETS.TRAIN", str((custom[0]["NAME"],)), "DATASETS.TEST", str((custom[1]["NAME"],))]
    # float32, so that two ways of computing the same can be compared.
    overrides += ["SOLVER.AMP.ENABLED", "False", "SOLVER.BASE_LR", "0.02"]
    overrides += ["SOLVER.MAX_ITER", "4", "SOLVER.WARMUP_ITERS", "0", "OUTPUT_DIR", str(output_dir)]
    return load_config(file, [*overrides, *opts])
