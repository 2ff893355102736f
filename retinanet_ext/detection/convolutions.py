"""Convolutions that a model changes in place: frozen batch norms are folded, and a defect of PyTorch is avoided.

A batch norm with fixed statistics is ``y = x * scale + shift`` for each channel, so ``norm(conv(x, w)) =
conv(x, w * scale) + shift``: a pass over the weights replaces a pass over the whole map, and in training also a pass
over the map's gradient.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # of BatchNorm2d, and of SyncBatchNorm too

from retinanet_ext.d2 import Conv2d, FrozenBatchNorm2d


def fold_frozen_norms(module: nn.Module) -> None:
    """Change, in place, every convolution of ``module`` that a frozen batch norm follows to compute both at once.

    Parameters, buffers and their names stay the same, and so do results and gradients, up to rounding.
    """
    for conv in module.modules():
        # Subclasses are left alone: they may compute something else.
        if type(conv) is Conv2d and isinstance(conv.norm, FrozenBatchNorm2d) and conv.bias is None:
            conv.__class__ = _FoldedConv2d


@torch.no_grad()
def fuse_norms(module: nn.Module) -> None:
    """Merge the batch norms that follow convolutions of ``module`` into the weights and biases, in place.

    For inference: the current running statistics are used, and the norms are removed.
    """
    # Change the convolutions instead of replacing them: Detectron2's FPN also holds some of them in plain lists.
    for conv in module.modules():
        if isinstance(conv, Conv2d) and isinstance(conv.norm, (FrozenBatchNorm2d, _BatchNorm)):
            scale, shift = scale_and_shift(conv.norm)
            bias = shift if conv.bias is None else shift + conv.bias * scale
            conv.weight = nn.Parameter(_scaled(conv.weight, scale, conv.weight.dtype), requires_grad=False)
            conv.bias = nn.Parameter(bias, requires_grad=False)
            conv.norm = None
            if isinstance(conv, _FoldedConv2d):
                conv.__class__ = Conv2d


def scale_and_shift(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift of each channel, ``(C,)`` each, in a batch norm with fixed statistics."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


class _FoldedConv2d(Conv2d):
    """The class that :func:`fold_frozen_norms` gives to an existing convolution."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale, shift = scale_and_shift(self.norm)
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        if torch.jit.is_tracing():
            # A trace can be saved, and its operations counted, only if they are operators of PyTorch.
            x = F.conv2d(x, _scaled(self.weight, scale, x.dtype), shift.to(x.dtype), *geometry)
        else:
            x = _ScaledConvolution.apply(x, self.weight, scale, shift, geometry)
        return x if self.activation is None else self.activation(x)


class _ScaledConvolution(torch.autograd.Function):
    """``conv(x, weight * scale) + shift`` for a constant scale and shift.

    Autograd alone would keep all scaled weights until the backward pass, a second copy of the backbone's weights; here
    they are computed again.
    """

    @staticmethod
    def forward(ctx, x, weight, scale, shift, geometry):
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        ctx.input_dtype, ctx.geometry = x.dtype, geometry
        x = x.to(dtype)
        ctx.save_for_backward(x, weight, scale)
        with torch.autocast(device, enabled=False):
            return F.conv2d(x, _scaled(weight, scale, dtype), shift.to(dtype), *geometry)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        wants_input, wants_weight = ctx.needs_input_grad[:2]
        stride, padding, dilation, groups = ctx.geometry
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, _scaled(weight, scale, x.dtype), None, stride, padding, dilation, False, [0, 0], groups,
            [wants_input, wants_weight, False],
        )  # fmt: skip
        if wants_input:
            grad_x = grad_x.to(ctx.input_dtype)
        if wants_weight:
            grad_weight = grad_weight.to(weight.dtype).mul_(scale.view(-1, 1, 1, 1))
        return grad_x, grad_weight, None, None, None


def _scaled(weight: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (weight * scale.view(-1, 1, 1, 1)).to(dtype)


def avoid_wrong_gradients_of_narrow_maps(module: nn.Module) -> None:
    """Change, in place, every plain 3x3 convolution of ``module`` with stride 2 and padding 1.

    In training on a CPU, it then computes maps that are one column wide from the weight's middle column alone.
    Parameters and their names stay the same, and so do results and gradients.

    In bfloat16 on a CPU with AVX-512, PyTorch's gradient of such a weight is wrong for such maps: the first and the
    last column of the weight, which see only padding, keep what was in their memory before instead of zeros (torch
    2.15). Images up to 64 pixels wide meet this in P6 and P7. See docs/engines.md.
    """
    for conv in module.modules():
        # Subclasses are left alone: they may compute something else.
        if type(conv) is nn.Conv2d and conv.padding_mode == "zeros":
            geometry = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
            if geometry == ((3, 3), (2, 2), (1, 1), (1, 1), 1):
                conv.__class__ = _NarrowMapConv2d


class _NarrowMapConv2d(nn.Conv2d):
    """The class that :func:`avoid_wrong_gradients_of_narrow_maps` gives to an existing convolution."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.weight.requires_grad and x.device.type == "cpu" and x.shape[-1] == 1 and not torch.jit.is_tracing():
            return F.conv2d(x, self.weight[..., 1:2], self.bias, stride=(2, 1), padding=(1, 0))
        return super().forward(x)
