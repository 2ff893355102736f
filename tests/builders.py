"""Small inputs for tests, valid by construction."""

import socket

import torch

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import Boxes, Instances


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
