"""Writes weights and embeddings of FaceNet on the engine that RETINANET_EXT_ENGINE names.

For ``test_embedding_exchange.py``: python -m tests.contract.embedding_worker FOLDER
"""

import sys
from pathlib import Path

import torch

from retinanet_ext import d2
from retinanet_ext.checkpoint.weights import load_weights
from retinanet_ext.config.loading import load_config
from tests.builders import faces

FORMS = {
    "nn4": ["MODEL.BACKBONE.NAME", "build_facenet_nn4_backbone"],
    "nn4_bn": ["MODEL.BACKBONE.NAME", "build_facenet_nn4_backbone", "MODEL.FACENET.NORM", "BN"],
    "nns2_gn": ["MODEL.BACKBONE.NAME", "build_facenet_nns2_backbone", "MODEL.FACENET.NORM", "GN"],
    "r18": [
        "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.OUT_FEATURES",
        "['res5']", "MODEL.RESNETS.NORM", "BN", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.BACKBONE.FREEZE_AT",
        "0",
    ],
}  # fmt: skip
SIZES = {"nns2_gn": (140, 116)}


def write(name: str, folder: Path) -> None:
    """The initial weights; and the embeddings and losses with weights from a checkpoint that all share."""
    cfg = load_config(None, ["MODEL.META_ARCHITECTURE", "FaceNet", "MODEL.DEVICE", "cpu", *FORMS[name]], datasets=False)
    torch.manual_seed(0)
    model = d2.build_model(cfg)
    initial = {key: value.clone() for key, value in model.state_dict().items()}
    checkpoint = folder / f"{name}_shared.pth"
    if not checkpoint.exists():
        torch.manual_seed(1)
        torch.save({"model": d2.build_model(cfg).state_dict()}, checkpoint)
    load_weights(model, str(checkpoint))
    inputs = faces(torch.Generator().manual_seed(0), SIZES.get(name, (64, 64)), (0, 0, 1, 1))
    outputs = [output["embedding"] for output in model.eval()(inputs)]
    with d2.EventStorage():
        losses = model.train()(inputs)
    written = {"initial": initial, "embeddings": torch.stack(outputs).detach(), "losses": losses}
    torch.save(written, folder / f"{name}_{d2.ENGINE}.pth")


if __name__ == "__main__":
    for form in FORMS:
        write(form, Path(sys.argv[1]))
