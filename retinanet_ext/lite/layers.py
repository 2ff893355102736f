"""Layers that the backbone and the heads share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

GROUP_NORM_GROUPS = 32  # the number chosen in Wu & He, "Group Normalization"


@dataclass
class ShapeSpec:
    """What is known about a feature map before it is computed. None: unknown."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None
    """Input pixels per feature pixel."""


class Conv2d(nn.Conv2d):
    """A convolution followed by an optional `norm` module and an optional `activation` function.

    Maps (N, in_channels, H, W) to (N, out_channels, H', W'). The norm's parameters are named `norm.*` below the
    convolution's.
    """

    def __init__(
        self,
        *args,
        norm: nn.Module | None = None,
        activation: Callable[[torch.Tensor], torch.Tensor] | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.norm = norm
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with fixed statistics and a fixed affine transform: y = x * scale + shift.

    Its four tensors (`weight`, `bias`, `running_mean`, `running_var`, each of shape (C,)) are buffers:
    saved and moved with the module, but never trained, even in training mode.
    """

    def __init__(self, num_features: int, eps: float = 1e-5):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        # The forward pass adds eps to the variance: a layer that no checkpoint has filled then scales by exactly 1.
        self.register_buffer("running_var", torch.full((num_features,), 1.0 - eps))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, C, H, W) to the same shape, dtype and memory format."""
        if not x.requires_grad:
            # Applies float32 parameters to half-precision input without rounding them first.
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        scale, shift = (values.to(x.dtype).view(1, -1, 1, 1) for values in (scale, shift))
        # One pass over x, and autograd keeps only `scale`: F.batch_norm would keep x alive for the backward.
        return torch.addcmul(shift, x, scale)

    def extra_repr(self) -> str:
        return f"num_features={self.num_features}, eps={self.eps}"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Replaces every BatchNorm2d and SyncBatchNorm in `module` by a frozen copy.

        Returns:
            `module`, changed in place; or the frozen copy, if `module` itself is such a layer.
        """
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            frozen = cls(module.num_features, module.eps).train(module.training)
            # A frozen layer does not use this buffer, but Detectron2's checkpoints keep it there.
            frozen.register_buffer("num_batches_tracked", module.num_batches_tracked)
            frozen.to(module.running_mean.device).load_state_dict(module.state_dict(), strict=module.affine)
            return frozen
        for name, child in module.named_children():
            replacement = cls.convert_frozen_batchnorm(child)
            if replacement is not child:
                setattr(module, name, replacement)
        return module


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "FrozenBN": FrozenBatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "GN": lambda channels: nn.GroupNorm(GROUP_NORM_GROUPS, channels),
}


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """Builds a norm layer for `out_channels` channels.

    Args:
        norm: "BN", "FrozenBN", "SyncBN" (statistics over all processes; trains on CUDA only), "GN" (32
            groups), or a function of the number of channels; None or "" for no norm.

    Raises:
        ValueError: an unknown name.
    """
    if norm is None or norm == "":
        return None
    if isinstance(norm, str):
        if norm not in _NORMS:
            raise ValueError(f"unknown norm {norm!r}; legal: {', '.join(_NORMS)}, or an empty string for none")
        norm = _NORMS[norm]
    return norm(out_channels)


# The same two as in fvcore.nn, whose import scripts a loss, takes a second and prints a warning.
def fill_xavier_(module: nn.Module) -> None:
    """Caffe2's XavierFill: weights uniform in +-sqrt(3 / fan_in), bias 0."""
    nn.init.kaiming_uniform_(module.weight, a=1)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def fill_msra_(module: nn.Module) -> None:
    """Caffe2's MSRAFill: weights normal with standard deviation sqrt(2 / fan_out), bias 0."""
    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if module.bias is not None:
        nn.init.zeros_(module.bias)
