"""Embeddings and their loss on the engine that RETINANET_EXT_ENGINE names: ``... embedding_worker FOLDER``."""

import sys
from pathlib import Path

import torch

from retinanet_ext import d2
from retinanet_ext.checkpoint.weights import load_weights
from retinanet_ext.inference.fingerprint import fingerprint
from tests.instance.test_embedding_branch import ALL, build, identified, train

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    model = build(*ALL)
    load_weights(model, str(folder / "model.pth"), strict=True)
    digits = fingerprint(model)
    inputs = identified((96, 128), (112, 80))
    loss = train(model, inputs)["loss_embedding"].detach()
    with torch.no_grad():
        found = [output["instances"].embeddings for output in model.eval()(inputs)]
    torch.save({"fingerprint": digits, "loss": loss, "embeddings": torch.cat(found)}, folder / f"{d2.ENGINE}.pth")
