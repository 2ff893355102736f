"""FaceNet (Schroff et al., "FaceNet: A Unified Embedding for Face Recognition and Clustering", 2015).

B images per batch, D numbers per embedding.
"""

from collections.abc import Sequence

import torch
from torch import nn

from retinanet_ext.d2 import META_ARCH_REGISTRY, build_backbone, configurable

from .network_layers import init_centred
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

        Raises:
            ValueError: no such pooling; mean and standard deviation of different numbers of channels.
        """
        super().__init__()
        _check_settings(pool, pixel_mean, pixel_std)
        self.backbone = backbone
        self.in_feature = in_feature
        self.pool = POOLS[pool]
        self.projection = nn.Linear(backbone.output_shape()[in_feature].channels, dim)
        init_centred(self.projection)
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
            of length 1. Without images: the losses of an empty batch, which still have a graph, or an empty list.

        Raises:
            ValueError: images of different sizes or of a wrong number of channels, or in training an image without
                identity; names the file.
        """
        if not self.training:
            embeddings = self.embed(self.preprocess_image(batched_inputs)) if batched_inputs else []
            return [{"embedding": embedding} for embedding in embeddings]
        return self.losses(*self.training_embeddings(batched_inputs))

    def training_embeddings(self, batched_inputs: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings ``(B, D)`` with a graph, also without images, and identities, int64 ``(B,)``.

        Raises:
            ValueError: see :meth:`forward`.
        """
        identities = torch.tensor(_identities(batched_inputs), dtype=torch.int64, device=self.device)
        if batched_inputs:
            return self.embed(self.preprocess_image(batched_inputs)), identities
        # Other processes may have images, and exchange embeddings and gradients of all parameters with this one.
        zero = sum(parameter.sum() * 0 for parameter in self.parameters() if parameter.requires_grad)
        return zero + self.projection.weight.new_zeros(0, self.projection.out_features), identities

    def preprocess_image(self, batched_inputs: list[dict]) -> torch.Tensor:
        """Stack images ``(C, H, W)`` of one size on the device and normalise: float32 ``(B, C, H, W)``.

        Raises:
            ValueError: images of different sizes, or not as many channels as the mean; names the file.
        """
        _check_images(batched_inputs, len(self.pixel_mean))
        images = torch.stack([inputs["image"] for inputs in batched_inputs]).to(self.device, non_blocking=True)
        images = (images - self.pixel_mean) / self.pixel_std
        return images.contiguous(memory_format=torch.channels_last)

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised images ``(B, C, H, W)`` to embeddings, float32 ``(B, D)`` of length 1."""
        return l2_normalize(self.network(pixels)[0][0])

    def network(self, pixels: torch.Tensor) -> tuple[list[torch.Tensor]]:
        """Normalised images ``(B, C, H, W)`` to their projections ``(B, D)``, which have no length of 1 yet.

        They come as the only entry of a list in a tuple, the form that ``inference/fast_copy.py`` takes.
        """
        if self.compute_dtype is not None:
            pixels = pixels.to(self.compute_dtype)
        features = self.backbone(pixels)[self.in_feature]
        return ([self.projection(self.pool(features))],)

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
        # Dilated stages have the stride of the stage before them: the last map of the largest stride is the deepest.
        return max(reversed(list(shapes)), key=lambda key: shapes[key].stride or 0)
    if name not in shapes:
        raise ValueError(
            f"MODEL.EMBEDDING.IN_FEATURE is {name!r}, which the backbone does not have; legal: {', '.join(shapes)}"
        )
    return name


def _check_settings(pool: str, pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> None:
    if pool not in POOLS:
        raise ValueError(f"MODEL.EMBEDDING.POOL is {pool!r}; legal values: {', '.join(POOLS)}")
    if len(pixel_mean) != len(pixel_std):
        raise ValueError(
            f"MODEL.PIXEL_MEAN has {len(pixel_mean)} values and MODEL.PIXEL_STD {len(pixel_std)}; "
            "each needs one per channel of the images"
        )


def _check_images(batched_inputs: list[dict], num_channels: int) -> None:
    first = batched_inputs[0]["image"]
    for index, inputs in enumerate(batched_inputs):
        shape, name = tuple(inputs["image"].shape), _name(batched_inputs, index)
        if len(shape) != 3 or shape[0] != num_channels:
            raise ValueError(
                f"the image {name} has shape {shape}, but FaceNet takes (C, H, W) with {num_channels} channels, one "
                "per value of MODEL.PIXEL_MEAN; make INPUT.FORMAT ('L' has one channel) and MODEL.PIXEL_MEAN agree"
            )
        if shape != first.shape:
            raise ValueError(
                f"FaceNet takes images of one size per batch, but {_name(batched_inputs, 0)} has shape "
                f"{tuple(first.shape)} and {name} has {shape}; resize faces to one size, as INPUT.FACE.SIZE does"
            )


def _identities(batched_inputs: list[dict]) -> list[int]:
    for index, inputs in enumerate(batched_inputs):
        if "identity" not in inputs:
            raise ValueError(
                f"the image {_name(batched_inputs, index)} has no 'identity', which training needs; give the dataset a "
                "folder per identity (DATASETS.CUSTOM, FORMAT identities), or let the mapper keep the key"
            )
    return [inputs["identity"] for inputs in batched_inputs]


def _name(batched_inputs: list[dict], index: int) -> str:
    return str(batched_inputs[index].get("file_name", f"number {index} of the batch"))
