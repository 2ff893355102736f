"""Trains or evaluates on coco_mini on the engine that RETINANET_EXT_ENGINE names, for ``test_exchange.py``.

python -m tests.contract.exchange_worker train|detect DATA FOLDER
"""

import sys
from pathlib import Path

import torch

from retinanet_ext import d2
from retinanet_ext.checkpoint.weights import load_weights
from retinanet_ext.config.loading import load_config
from retinanet_ext.training.trainer import Trainer

NUM_IMAGES = 8


def config(data: Path, folder: Path):
    custom = [
        {
            "NAME": f"exchange_{split}",
            "FORMAT": "coco",
            "JSON": str(data / "coco_mini" / "annotations" / f"instances_{split}2017.json"),
            "IMAGES": str(data / "coco_mini" / f"{split}2017"),
        }
        for split in ("train", "val")
    ]
    opts = ["DATASETS.CUSTOM", str(custom), "DATASETS.TRAIN", "('exchange_train',)"]
    opts += ["DATASETS.TEST", "('exchange_val',)", "MODEL.FPN.OUT_CHANNELS", "32"]
    opts += ["INPUT.MIN_SIZE_TRAIN", "(128,)", "INPUT.MIN_SIZE_TEST", "128", "SOLVER.IMS_PER_BATCH", "4"]
    opts += ["SOLVER.MAX_ITER", "8", "SOLVER.WARMUP_ITERS", "0", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.001"]
    opts += ["TEST.BEST_METRIC", "", "SOLVER.AMP.ENABLED", "False", "SOLVER.BASE_LR", "0.02"]
    opts += ["OUTPUT_DIR", str(folder)]
    return load_config("configs/quick/retinanet.yaml", opts)


def train(cfg) -> None:
    torch.manual_seed(0)
    cfg.DATASETS.TEST = ()
    Trainer(cfg).train()


def detect(cfg, folder: Path) -> None:
    model = Trainer.build_model(cfg).eval()
    load_weights(model, str(folder / "model_final.pth"))
    loader = iter(Trainer.build_test_loader(cfg, "exchange_val"))
    found = []
    with torch.no_grad():
        for _ in range(NUM_IMAGES):
            inputs = next(loader)
            instances = model(inputs)[0]["instances"]
            found.append(
                {
                    "file": Path(inputs[0]["file_name"]).name,
                    "boxes": instances.pred_boxes.tensor,
                    "scores": instances.scores,
                    "classes": instances.pred_classes,
                }
            )
    torch.save(found, folder / f"{d2.ENGINE}.pth")


if __name__ == "__main__":
    verb, data, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    cfg = config(data, folder)
    train(cfg) if verb == "train" else detect(cfg, folder)
