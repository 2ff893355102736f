"""FaceNet (Schroff et al., "FaceNet: A Unified Embedding for Face Recognition and Clustering", 2015).

B images per batch, D numbers per embedding.
"""

from collections.abc import Sequence

import torch
from torch import nn

from retinanet_ext.d2 import META_ARCH_REGISTRY, build_backbone, configurable

from .pooling import POOLS, l2_normalize
from .training_loss import build_training_loss


@META_ARCH_REGISTRY.register()
class FaceNet(nn.Module):
    """A network, pooling over positions, a linear projection, L2 normalisation (paper, figure 2)."""

    # Why a batch cannot be trained in micro-batches; see `TrainStep`.
    needs_whole_batch = "its loss compares every image with all others of the batch"

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        in_feature: str,
        pool: str,
        dim: int,
        loss: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ):
        """
        Args:
            backbone: maps images ``(B, C, H, W)`` to a dict of feature maps; see Detectron2's ``Backbone``.
            in_feature: name of the feature map that is pooled.
            pool: a name in ``POOLS``.
            dim: D.
            loss: maps embeddings ``(B, D)`` and identities ``(B,)`` to a dict of scalar losses; see ``TrainingLoss``.
            pixel_mean, pixel_std: per channel of the images, in units of 0..255.
        """
        super().__init__()
        self.backbone = backbone
        self.in_feature = in_feature
        self.pool = POOLS[pool]
        self.projection = nn.Linear(backbone.output_shape()[in_feature].channels, dim)
        self.loss = loss
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        # Dtype the network computes in, if not the images'; see `inference/fast_copy.py`.
        self.compute_dtype: torch.dtype | None = None
        self.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, cfg):
        embedding = cfg.MODEL.EMBEDDING
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "in_feature": _in_feature(embedding.IN_FEATURE, backbone.output_shape()),
            "pool": embedding.POOL,
            "dim": embedding.DIM,
            "loss": build_training_loss(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]):
        """
        Args:
            batched_inputs: one dict per image: ``image``, a ``(C, H, W)`` tensor of the same size for all, 0..255; in
                training ``identity``, an int.

        Returns:
            In training a dict of scalar losses; at inference one dict per image with ``embedding``, float32 ``(D,)``
            of length 1.
        """
        if not batched_inputs and not self.training:
            return []
        embeddings = self.embed(self.preprocess_image(batched_inputs))
        if not self.training:
            return [{"embedding": embedding} for embedding in embeddings]
        identities = torch.tensor([inputs["identity"] for inputs in batched_inputs], device=self.device)
        return self.losses(embeddings, identities)

    def preprocess_image(self, batched_inputs: list[dict]) -> torch.Tensor:
        """Stack images ``(C, H, W)`` of one size on the device and normalise: float32 ``(B, C, H, W)``."""
        images = torch.stack([inputs["image"] for inputs in batched_inputs]).to(self.device, non_blocking=True)
        images = (images - self.pixel_mean) / self.pixel_std
        return images.contiguous(memory_format=torch.channels_last)

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised images ``(B, C, H, W)`` to embeddings, float32 ``(B, D)`` of length 1."""
        if self.compute_dtype is not None:
            pixels = pixels.to(self.compute_dtype)
        features = self.backbone(pixels)[self.in_feature]
        return l2_normalize(self.projection(self.pool(features)))

    def losses(self, embeddings: torch.Tensor, identities: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Args:
            embeddings: ``(B, D)`` of length 1.
            identities: int64 ``(B,)``.

        Returns:
            Scalar losses of the joint batch of all processes, the same on every process.
        """
        return self.loss(embeddings, identities)


def _in_feature(name: str, shapes: dict) -> str:
    if not name:
        return max(shapes, key=lambda key: shapes[key].stride or 0)
    if name not in shapes:
        raise ValueError(
            f"MODEL.EMBEDDING.IN_FEATURE is {name!r}, which the backbone does not have; legal: {', '.join(shapes)}"
        )
    return name
