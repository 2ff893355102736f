"""Counts the parameters and multiply-adds of a network, row by row, as the tables of the FaceNet paper do."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from .facenet import FaceNet


@dataclass
class RowCost:
    """Cost of one child of the backbone, or of the projection.

    Attributes:
        name: the child's name, such as ``inception_3a``.
        output_shape: of one image, ``(C, H, W)`` or ``(C,)``.
        parameters: all that are trained or frozen, biases included.
        multiply_adds: per image, one for each weight and each bias at each position, as the paper counts "FLOPS".
            Convolutions and linear layers only: norms, pooling and activations count 0.
    """

    name: str
    output_shape: tuple[int, ...] = ()
    parameters: int = 0
    multiply_adds: int = 0


def network_cost(model: FaceNet, height: int, width: int) -> list[RowCost]:
    """The cost of each row of ``model`` for one image of that size, in the order of the rows. Nothing is computed."""
    model = _without_data(model)
    channels = len(model.pixel_mean)
    rows: dict[str, RowCost] = {}
    for row, module in (*model.backbone.named_children(), ("projection", model.projection)):
        rows[row] = RowCost(row, parameters=sum(parameter.numel() for parameter in module.parameters()))
        module.register_forward_hook(_shape_hook(rows[row]))
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.register_forward_hook(_cost_hook(rows[row]))
    with torch.no_grad():
        model.embed(torch.empty(1, channels, height, width, device="meta"))
    return list(rows.values())


def total_cost(rows: Iterable[RowCost]) -> RowCost:
    """The sum of the rows, named ``total``."""
    rows = list(rows)
    return RowCost("total", (), sum(row.parameters for row in rows), sum(row.multiply_adds for row in rows))


def _without_data(model: FaceNet) -> FaceNet:
    """A copy of the model in evaluation mode whose tensors have a shape but no memory."""
    empty = {id(buffer): torch.empty_like(buffer, device="meta") for buffer in model.buffers()}
    for parameter in model.parameters():
        empty[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    # deepcopy takes what the memo holds for a copy, and so copies no weights.
    return copy.deepcopy(model, empty).eval()


def _shape_hook(row: RowCost):
    def hook(module, inputs, output):
        if isinstance(output, torch.Tensor):
            row.output_shape = tuple(output.shape[1:])

    return hook


def _cost_hook(row: RowCost):
    def hook(layer, inputs, output):
        # A maxout layer returns fewer numbers than it computes, so only positions are taken from the output.
        positions = output[0, 0].numel() if output.dim() == 4 else 1
        # Without the parameters of a norm that belongs to the convolution.
        row.multiply_adds += positions * sum(parameter.numel() for parameter in layer.parameters(recurse=False))

    return hook
