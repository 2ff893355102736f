"""The embedding head: from the features of RoIs to one embedding each, trained on the identities of their objects.

It runs, and its loss of 0 reaches every parameter, without any RoI or known identity too: the processes of a job then
do the same in every step.
"""

from collections.abc import Sequence

import torch
from torch import nn

from retinanet_ext.d2 import Conv2d, Instances, ShapeSpec, configurable, get_norm
from retinanet_ext.embedding.pooling import POOLS, l2_normalize
from retinanet_ext.embedding.training_loss import build_training_loss
from retinanet_ext.registry import Registry

from .shared_count import counts_are_shared

ROI_EMBEDDING_HEAD_REGISTRY = Registry("ROI_EMBEDDING_HEAD", "MODEL.ROI_EMBEDDING_HEAD.NAME")
"""Classes ``f(cfg, input_shape) -> nn.Module``, called as :class:`ConvEmbeddingHead` is."""


class ConvEmbeddingHead(nn.Module):
    """3x3 convolutions ``conv1``, ``conv2``, ..., each with ReLU; pooling; a linear ``projection``; length 1."""

    @configurable
    def __init__(
        self,
        *,
        input_shape: ShapeSpec,
        dim: int,
        loss: nn.Module,
        conv_dims: Sequence[int] = (256,) * 4,
        conv_norm: str = "",
        pool: str = "avg",
        loss_weight: float = 1.0,
    ):
        """
        Args:
            input_shape: channels of the features of a RoI, as MODEL.ROI_EMBEDDING_HEAD.POOLER_TYPE pools them.
            dim: E, numbers per embedding.
            loss: see ``TrainingLoss``.
            conv_dims: output channels of the convolutions.
            conv_norm: norm after each convolution, see ``get_norm``; without one, the convolution has a bias.
            pool: pooling over the positions, a name in ``POOLS``.
            loss_weight: factor of the loss.
        """
        super().__init__()
        self.num_conv, self.loss_weight = len(conv_dims), loss_weight
        in_channels = input_shape.channels
        for number, out_channels in enumerate(conv_dims, start=1):
            layer = Conv2d(
                in_channels,
                out_channels,
                kernel_size=3,
                padding=1,
                bias=not conv_norm,
                norm=get_norm(conv_norm, out_channels),
                # In place is safe: no layer before it needs its output for the gradient.
                activation=nn.ReLU(inplace=True),
            )
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            self.add_module(f"conv{number}", layer)
            in_channels = out_channels
        self.pool = POOLS[pool]
        self.projection = nn.Linear(in_channels, dim)
        self.loss = loss

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        head, embedding = cfg.MODEL.ROI_EMBEDDING_HEAD, cfg.MODEL.EMBEDDING
        return {
            "input_shape": input_shape,
            "dim": embedding.DIM,
            "loss": build_training_loss(cfg),
            "conv_dims": [head.CONV_DIM] * head.NUM_CONV,
            "conv_norm": head.NORM,
            "pool": embedding.POOL,
            "loss_weight": cfg.MODEL.ROI_EMBEDDING_HEAD.LOSS_WEIGHT,
        }

    def forward(self, x: torch.Tensor, instances: list[Instances]) -> dict[str, torch.Tensor] | list[Instances]:
        """
        Args:
            x: features of all RoIs, ``(M, C, h, w)``, in the order of the images.
            instances: the RoIs of each image; in training with ``gt_identities``, int64 ``(M_i,)``, all known.

        Returns:
            In training ``{"loss_embedding": scalar}``. Else the instances themselves, with new ``embeddings``, float32
            ``(M_i, E)`` of length 1.
        """
        embeddings = self.embed(x)
        if self.training:
            return {"loss_embedding": self._loss(embeddings, instances)}
        for image, rows in zip(instances, embeddings.split([len(image) for image in instances]), strict=True):
            image.embeddings = rows
        return instances

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """Embeddings, float32 ``(M, E)`` of length 1, of features ``(M, C, h, w)``."""
        x = x.contiguous(memory_format=torch.channels_last)
        for number in range(1, self.num_conv + 1):
            x = getattr(self, f"conv{number}")(x)
        # In float32: the triplets' distances are differences of numbers that are nearly equal.
        with torch.autocast(x.device.type, enabled=False):
            return l2_normalize(self.projection(self.pool(x.float()).to(self.projection.weight.dtype)))

    def _loss(self, embeddings: torch.Tensor, instances: Sequence[Instances]) -> torch.Tensor:
        no_identities = torch.zeros(0, dtype=torch.int64, device=embeddings.device)
        identities = torch.cat([no_identities, *(image.gt_identities for image in instances)])
        losses = self.loss(embeddings, identities, joint=counts_are_shared())
        # The graph has every parameter, whatever the loss does with few embeddings or with none.
        zero = sum((parameter.sum() for parameter in self.loss.parameters()), embeddings.sum()) * 0.0
        return sum(losses.values(), zero) * self.loss_weight


ROI_EMBEDDING_HEAD_REGISTRY.register(ConvEmbeddingHead)


def build_embedding_head(cfg, input_shape: ShapeSpec) -> nn.Module:
    """The head that MODEL.ROI_EMBEDDING_HEAD.NAME names, for RoIs of ``input_shape``.

    Raises:
        KeyError: no such head, or no such loss; the message lists the registered names.
    """
    return ROI_EMBEDDING_HEAD_REGISTRY.get(cfg.MODEL.ROI_EMBEDDING_HEAD.NAME)(cfg, input_shape)
