"""Layers of the networks in the FaceNet paper. N images, C channels, maps of H x W positions."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from retinanet_ext.d2 import Conv2d, get_norm

LRN_SIZE, LRN_ALPHA, LRN_BETA = 5, 1e-4, 0.75
MAX_GROUPS = 32  # Wu & He, "Group Normalization"
L2_POOL_EPSILON = 1e-12
# What a ReLU leaves of the variance of a centred normal number is 1/2 of this; a maximum of two leaves this.
RECTIFIED_VARIANCE = 1 - 1 / math.pi


def convolution(in_channels: int, out_channels: int, kernel_size: int, norm: str, stride: int = 1) -> Conv2d:
    """A convolution, a norm and a ReLU: ``(N, in_channels, H, W)`` to ``(N, out_channels, H / stride, W / stride)``.

    The size is rounded up. For the initial weights see :func:`init_centred`; they keep the variance of a map.

    Args:
        kernel_size: odd.
        norm: as ``MODEL.FACENET.NORM``; if empty, the convolution has a bias.
    """
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=not norm,
        norm=get_norm(_group_norm if norm == "GN" else norm, out_channels),
        activation=F.relu_,
    )
    init_centred(conv, 2 / RECTIFIED_VARIANCE)
    return conv


def _group_norm(channels: int) -> nn.GroupNorm:
    # Some layers have 16 or 48 channels, which 32 groups do not divide.
    return nn.GroupNorm(math.gcd(MAX_GROUPS, channels), channels)


def max_pool(maps: torch.Tensor, stride: int = 2) -> torch.Tensor:
    """The maximum over 3x3 positions: ``(N, C, H, W)`` to ``(N, C, H / stride, W / stride)``, rounded up."""
    return F.max_pool2d(maps, kernel_size=3, stride=stride, padding=1)


def l2_pool(maps: torch.Tensor, stride: int = 1) -> torch.Tensor:
    """The root of the mean square over 3x3 positions, ``(N, C, H, W)`` to ``(N, C, H / stride, W / stride)``.

    The paper names L2 pooling without a formula. The mean, unlike the sum, keeps the scale of a map; it is taken over
    the positions inside the map, so that a constant map stays constant up to its border. 1e-12 is added before the
    root, so that the gradient is finite where the map is 0. Computed in float32 or better.
    """
    wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
    mean = F.avg_pool2d(wide.square(), kernel_size=3, stride=stride, padding=1, count_include_pad=False)
    return (mean + L2_POOL_EPSILON).sqrt().to(maps.dtype)


def local_response_norm(maps: torch.Tensor) -> torch.Tensor:
    """Local response normalisation over channels (Krizhevsky et al., 2012) of ``(N, C, H, W)``, same shape and dtype.

    ``y[c] = x[c] / (1 + 1e-4 * m[c])^0.75``, where ``m[c]`` is the mean of ``x^2`` over channels c-2 to c+2; channels
    outside 0..C-1 count as 0. This is ``torch.nn.LocalResponseNorm(5)``, several times as fast on a CPU in
    channels-last. Computed in float32 or better.
    """
    wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
    out = _LocalResponseNorm.apply(wide) if wide.requires_grad else _normalized(wide, _denominator(wide))
    return out.to(maps.dtype)


class _LocalResponseNorm(torch.autograd.Function):
    """``y = x * d^-b`` with ``d = 1 + a * window_sum(x^2)``, so ``dx = g * d^-b - 2ab * x * window_sum(g * y / d)``."""

    @staticmethod
    def forward(ctx, maps):
        denominator = _denominator(maps)
        ctx.save_for_backward(maps, denominator)
        return _normalized(maps, denominator)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        maps, denominator = ctx.saved_tensors
        direct = _normalized(grad, denominator)
        through = _window_sum((direct * maps).div_(denominator)).mul_(maps)
        return direct.sub_(through, alpha=2 * LRN_BETA * LRN_ALPHA / LRN_SIZE)


def _denominator(maps: torch.Tensor) -> torch.Tensor:
    return _window_sum(maps.square()).mul_(LRN_ALPHA / LRN_SIZE).add_(1)


def _normalized(maps: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    root = denominator.rsqrt()
    return root.sqrt().mul_(root).mul_(maps)  # d^-0.25 * d^-0.5: faster than a power


def _window_sum(maps: torch.Tensor) -> torch.Tensor:
    """Sums over five neighbouring channels, ``(N, C, H, W)``."""
    channels = maps.shape[1]
    padded = F.pad(maps, (0, 0, 0, 0, LRN_SIZE // 2, LRN_SIZE // 2))
    pairs = padded[:, :-1] + padded[:, 1:]
    return (pairs[:, :channels] + pairs[:, 2 : channels + 2]).add_(padded[:, 4:])


class MaxoutLinear(nn.Linear):
    """Maxout (Goodfellow et al., 2013): each output is the largest of several linear functions of the input.

    Maps ``(N, in_features)`` to ``(N, num_outputs)``. The weight is ``(pieces * num_outputs, in_features)``, piece by
    piece. For the initial weights see :func:`init_centred`; with two pieces they keep the variance.
    """

    def __init__(self, in_features: int, num_outputs: int, pieces: int = 2):
        super().__init__(in_features, pieces * num_outputs)
        self.num_outputs = num_outputs
        self.pieces = pieces
        init_centred(self, 1 / RECTIFIED_VARIANCE)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return super().forward(vectors).unflatten(1, (self.pieces, self.num_outputs)).amax(dim=1)


def init_centred(layer: nn.Conv2d | nn.Linear, gain: float = 1.0) -> None:
    """Draw initial weights of variance ``gain / fan_in`` whose sum is 0 in each filter, in place; biases become 0.

    Rectified maps are positive, and so have a large part in common for all images. Plain normal weights (He et al.)
    carry it on, so that without norms the embeddings of all faces begin within 0.01 of each other, a start from which
    triplets hardly learn. Filters without a sum ignore the common part: distances then begin near 0.6. As only the
    variance around the mean gets through, ``gain`` is larger than He's 2 in the proportion to which a ReLU keeps it.
    """
    nn.init.normal_(layer.weight, std=math.sqrt(gain / layer.weight[0].numel()))
    with torch.no_grad():
        layer.weight -= layer.weight.mean(dim=tuple(range(1, layer.weight.dim())), keepdim=True)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def flattened_map(maps: torch.Tensor, size: tuple[int, int], images: torch.Tensor) -> torch.Tensor:
    """The map ``(N, C, H, W)`` as ``(N, C * H * W)``, for a fully connected layer that was built for one map size.

    Args:
        size: H and W that the layer takes.
        images: the network's input, ``(N, channels, height, width)``; ``maps`` has stride 32.

    Raises:
        ValueError: the map has another size.
    """
    if maps.shape[-2:] != size:
        found = "x".join(map(str, images.shape[-2:]))
        height, width = (f"{32 * extent - 31} to {32 * extent}" for extent in size)
        raise ValueError(
            f"the network's fully connected layers take images of height {height} and width {width}, but found "
            f"{found}; set INPUT.FACE.SIZE, or take a network without such layers (NN2, NN4, ResNet) in "
            "MODEL.BACKBONE.NAME"
        )
    return maps.flatten(start_dim=1)
