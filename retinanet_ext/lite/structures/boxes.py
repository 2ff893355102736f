"""Axis-aligned boxes. Coordinates are continuous pixels: (0, 0) is the corner of the image, and a box that
covers the whole image is (0, 0, width, height)."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

import numpy as np
import torch


class BoxMode(IntEnum):
    """What the four (or five) numbers of a box mean. The values are stored in dataset records."""

    XYXY_ABS = 0
    """x0, y0, x1, y1 in pixels."""
    XYWH_ABS = 1
    """x0, y0, width, height in pixels, as in COCO's JSON."""
    XYXY_REL = 2
    """As XYXY_ABS, but in fractions of the image size. `convert` does not support it."""
    XYWH_REL = 3
    """As XYWH_ABS, but in fractions of the image size. `convert` does not support it."""
    XYWHA_ABS = 4
    """Rotated box. `convert` does not support it."""

    @staticmethod
    def convert(box, from_mode: BoxMode, to_mode: BoxMode):
        """Rewrites boxes from one mode to another, never in place.

        Args:
            box: a list or tuple of 4 numbers, or an array or tensor of shape (..., 4).
            from_mode, to_mode: XYXY_ABS or XYWH_ABS.

        Returns:
            The same type as `box`; `box` itself if the two modes are equal. The numbers of a list or tuple go
            through float32, as they do in Detectron2, unless all of them are integers.

        Raises:
            ValueError: another mode, or a box without exactly 4 numbers.
        """
        if from_mode == to_mode:
            return box
        convertible = (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        if from_mode not in convertible or to_mode not in convertible:
            raise ValueError(f"cannot convert a box from {from_mode!r} to {to_mode!r}; legal are XYXY_ABS and XYWH_ABS")
        if isinstance(box, (list, tuple)):
            corners_or_size = torch.tensor(box)
        else:
            corners_or_size = box.clone() if isinstance(box, torch.Tensor) else np.array(box)
        if corners_or_size.shape[-1:] != (4,) or isinstance(box, (list, tuple)) and len(box) != 4:
            raise ValueError(f"a box has 4 numbers; found shape {tuple(corners_or_size.shape)} in {box!r}")
        if to_mode == BoxMode.XYXY_ABS:
            corners_or_size[..., 2:] += corners_or_size[..., :2]
        else:
            corners_or_size[..., 2:] -= corners_or_size[..., :2]
        return type(box)(corners_or_size.tolist()) if isinstance(box, (list, tuple)) else corners_or_size


class Boxes:
    """N boxes as one float32 tensor.

    Attributes:
        tensor: float32, shape (N, 4), rows x0, y0, x1, y1. Without boxes the shape is (0, 4).
    """

    def __init__(self, tensor):
        """Takes anything of shape (N, 4), or anything empty; a float32 tensor is not copied.

        Raises:
            ValueError: another shape.
        """
        if not isinstance(tensor, torch.Tensor):
            tensor = torch.as_tensor(np.asarray(tensor), dtype=torch.float32)
        tensor = tensor.to(torch.float32)
        if tensor.numel() == 0:
            tensor = tensor.reshape(0, 4)
        if tensor.dim() != 2 or tensor.shape[1] != 4:
            raise ValueError(f"boxes have shape (N, 4): x0, y0, x1, y1; found {tuple(tensor.shape)}")
        self.tensor = tensor

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def to(self, device) -> Boxes:
        """The boxes on another device."""
        return Boxes(self.tensor.to(device=device))

    def clone(self) -> Boxes:
        return Boxes(self.tensor.clone())

    def area(self) -> torch.Tensor:
        """Areas in square pixels, shape (N,). If both sides of a box are negative, its area is positive."""
        return (self.tensor[:, 2] - self.tensor[:, 0]) * (self.tensor[:, 3] - self.tensor[:, 1])

    def clip(self, box_size: tuple[int, int]) -> None:
        """Clamps all coordinates to an image of size (height, width), in place.

        Raises:
            ValueError: a coordinate is NaN or infinite; clipping would hide it.
        """
        if not torch.isfinite(self.tensor).all():
            rows = (~torch.isfinite(self.tensor).all(dim=1)).nonzero().flatten().tolist()
            raise ValueError(f"boxes {rows[:10]} of {len(self)} have a NaN or infinite coordinate")
        height, width = box_size
        x = self.tensor[:, 0::2].clamp(min=0, max=width)
        y = self.tensor[:, 1::2].clamp(min=0, max=height)
        # A new tensor, because writing to the old one could change the caller's data.
        self.tensor = torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), dim=1)

    def nonempty(self, threshold: float = 0.0) -> torch.Tensor:
        """bool (N,): width and height are both greater than `threshold` pixels."""
        return ((self.tensor[:, 2:] - self.tensor[:, :2]) > threshold).all(dim=1)

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> torch.Tensor:
        """bool (N,): the box lies within an image of size (height, width), or exceeds it by less than
        `boundary_threshold` pixels on the right and bottom, and by at most that much on the left and top."""
        height, width = box_size
        x0, y0, x1, y1 = self.tensor.unbind(dim=1)
        top_left = (x0 >= -boundary_threshold) & (y0 >= -boundary_threshold)
        return top_left & (x1 < width + boundary_threshold) & (y1 < height + boundary_threshold)

    def get_centers(self) -> torch.Tensor:
        """Centres, shape (N, 2): x, y."""
        return (self.tensor[:, :2] + self.tensor[:, 2:]) / 2

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiplies all x by `scale_x` and all y by `scale_y`, in place."""
        self.tensor[:, 0::2] *= scale_x
        self.tensor[:, 1::2] *= scale_y

    @classmethod
    def cat(cls, boxes_list: list[Boxes]) -> Boxes:
        """One `Boxes` with the rows of all, in order. An empty list gives an empty `Boxes`."""
        if not isinstance(boxes_list, (list, tuple)) or not all(isinstance(b, Boxes) for b in boxes_list):
            raise TypeError(f"Boxes.cat takes a list of Boxes, found {boxes_list!r}")
        return cls(torch.cat([b.tensor for b in boxes_list]) if boxes_list else torch.empty(0, 4))

    def __getitem__(self, item) -> Boxes:
        """Rows by integer, slice, boolean mask or indices. The result may share memory with this object.

        Raises:
            ValueError: the index does not select whole rows.
        """
        selected = self.tensor[item]
        if isinstance(item, (int, np.integer)):
            selected = selected[None]
        if selected.dim() != 2 or selected.shape[1] != 4:
            raise ValueError(f"Boxes are indexed by row only; {item!r} gives shape {tuple(selected.shape)}")
        return Boxes(selected)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Rows, each a tensor of shape (4,)."""
        return iter(self.tensor)

    def __repr__(self) -> str:
        return f"Boxes({self.tensor})"
