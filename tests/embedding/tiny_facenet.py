"""A FaceNet of two convolutions, and batches for it: each identity has a random picture, each image adds noise."""

import torch
from torch import nn

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import BACKBONE_REGISTRY, FPN, ShapeSpec

IDENTITIES, IMAGES, SIZE = 5, 3, 12


# Detectron2 builds subclasses of its Backbone only; FPN is one.
class TwoConvolutions(FPN.__bases__[0]):
    """Maps images ``(B, 3, H, W)`` to ``{"out": (B, 8, H / 2, W / 2)}``."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, images):
        return {"out": self.second(self.first(images).relu())}

    def output_shape(self):
        return {"out": ShapeSpec(channels=8, stride=2)}


@BACKBONE_REGISTRY.register()
def build_two_convolutions(cfg, input_shape):
    return TwoConvolutions()


def tiny_config(*opts):
    overrides = ["MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "FaceNet", "MODEL.EMBEDDING.DIM", "8"]
    overrides += ["MODEL.BACKBONE.NAME", "build_two_convolutions", "MODEL.EMBEDDING.NUM_IDENTITIES", str(IDENTITIES)]
    return load_config(None, [*overrides, *opts], datasets=False)


def tiny_batches(count: int, identities: int = IDENTITIES, images: int = IMAGES, seed: int = 0) -> list[list[dict]]:
    """``count`` batches of ``images`` images of each identity."""
    generator = torch.Generator().manual_seed(seed)
    faces = torch.randint(0, 256, (identities, 3, SIZE, SIZE), generator=generator).float()
    batches = []
    for _ in range(count):
        batch = []
        for identity in range(identities):
            for _ in range(images):
                noise = 40 * torch.randn(3, SIZE, SIZE, generator=generator)
                image = (faces[identity] + noise).clamp(0, 255).to(torch.uint8)
                batch.append({"file_name": f"{len(batch)}.png", "image": image, "identity": identity})
        batches.append(batch)
    return batches
