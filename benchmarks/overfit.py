"""Learn eight named images of COCO by heart: masks or keypoints, in one stage or in two, from scratch, in minutes.

A model, loss or transform that is wrong in one place does not reach the averages that this reaches. ``--data`` is a
folder with COCO's layout that holds these images of train2017 and the two annotation files.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from retinanet_ext.config.loading import load_config
from retinanet_ext.training.trainer import Trainer

CONFIGS = {"one": "quick/mask_retinanet.yaml", "two": "quick/mask_rcnn.yaml"}
# For masks: two to five objects of at least 40 pixels in an image; for keypoints: people with 9 or more of the 17.
IMAGES = {
    "masks": ("instances", [84533, 37666, 420862, 172123, 353072, 432430, 281789, 213148]),
    "keypoints": ("person_keypoints", [535506, 84533, 234748, 30752, 442450, 69468, 37666, 183872]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with annotations/ and train2017/")
    parser.add_argument("--task", choices=IMAGES, default="masks")
    parser.add_argument("--stages", choices=CONFIGS, default="one")
    parser.add_argument("--output", type=Path, default=Path("output/overfit"))
    parser.add_argument("--iterations", type=int, default=400)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    cfg = load_config(CONFIGS[arguments.stages], options(arguments, write_subset(arguments)))
    (arguments.output / "config.yaml").write_text(cfg.dump())  # `retinanet-ext predict` reads it
    torch.manual_seed(1)
    start = time.perf_counter()
    trainer = Trainer(cfg)
    trainer.train()
    print(f"{arguments.task}, stages: {arguments.stages}, {(time.perf_counter() - start) / 60:.1f} minutes")
    for task, metrics in Trainer.test(cfg, trainer.model).items():
        print(f"{task}: " + ", ".join(f"{name} {metrics[name]:.1f}" for name in ("AP", "AP50", "AP75")))


def write_subset(arguments: argparse.Namespace) -> Path:
    """The annotation file of the eight images."""
    kind, chosen = IMAGES[arguments.task]
    content = json.loads((arguments.data / "annotations" / f"{kind}_train2017.json").read_text())
    content["images"] = [image for image in content["images"] if image["id"] in chosen]
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in chosen]
    missing = set(chosen) - {image["id"] for image in content["images"]}
    if missing:
        raise SystemExit(f"{arguments.data} lacks the images {sorted(missing)} of train2017")
    path = arguments.output / "eight.json"
    path.write_text(json.dumps(content))
    return path


def options(arguments: argparse.Namespace, annotations: Path) -> list[str]:
    """Overrides of the quick configs: these data, 192 pixels, group norm, because the batch is always the same."""
    images = str(arguments.data / "train2017")
    custom = {"NAME": "eight", "FORMAT": "coco", "JSON": str(annotations.absolute()), "IMAGES": images}
    words = ["DATASETS.CUSTOM", str([custom]), "DATASETS.TRAIN", "('eight',)", "DATASETS.TEST", "('eight',)"]
    words += ["DATASETS.ON_BAD_ANNOTATION", "drop", "INPUT.RANDOM_FLIP", "none"]
    words += ["INPUT.MIN_SIZE_TRAIN", "(192,)", "INPUT.MIN_SIZE_TEST", "192", "MODEL.FPN.OUT_CHANNELS", "64"]
    words += ["MODEL.RESNETS.NORM", "GN", "MODEL.FPN.NORM", "GN", "MODEL.ROI_MASK_HEAD.NORM", "GN"]
    words += ["MODEL.RETINANET.NORM", "GN"] if arguments.stages == "one" else []
    words += ["SOLVER.IMS_PER_BATCH", "8", "SOLVER.BASE_LR", "0.04", "SOLVER.WARMUP_ITERS", "20"]
    words += ["SOLVER.MAX_ITER", str(arguments.iterations), "SEED", "1", "OUTPUT_DIR", str(arguments.output)]
    if arguments.task == "keypoints":
        words += ["MODEL.MASK_ON", "False", "MODEL.KEYPOINT_ON", "True"]
        words += ["MODEL.ROI_KEYPOINT_HEAD.NAME", "FCNKeypointHead"]
        words += ["MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(64, 64, 64, 64)"]
        words += ["MODEL.ROI_KEYPOINT_HEAD.POOLER_SAMPLING_RATIO", "2"]
    return words


if __name__ == "__main__":
    main()
