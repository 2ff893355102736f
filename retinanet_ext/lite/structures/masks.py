"""Instance masks, as polygons or as bits. Coordinates are continuous pixels: pixel i covers [i, i + 1)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pycocotools.mask as mask_util
import torch

from .boxes import Boxes

MIN_POLYGON_COORDINATES = 6  # x and y of a triangle
MIN_BOX_SIDE = 0.1  # pixels; a box without width or height would otherwise scale its polygons to infinity


def polygons_to_bitmask(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """The union of the polygons, drawn by pycocotools.

    Args:
        polygons: each ``x0, y0, x1, y1, ...`` in pixels, at least three points. An empty list gives an empty mask.
        height, width: size of the mask in pixels.

    Returns:
        bool ``(height, width)``.
    """
    return _rasterize([polygons], height, width)[0]


def _rasterize(objects: Sequence[Sequence[np.ndarray]], height: int, width: int) -> np.ndarray:
    """One mask for each object's list of polygons: bool ``(N, height, width)``."""
    masks = np.zeros((len(objects), height, width), dtype=bool)
    drawn = [index for index, polygons in enumerate(objects) if len(polygons)]
    if not drawn:
        return masks
    # One call for all polygons: calls cost more than drawing.
    encoded = iter(mask_util.frPyObjects([p for index in drawn for p in objects[index]], height, width))
    joined = []
    for index in drawn:
        parts = list(itertools.islice(encoded, len(objects[index])))
        joined.append(parts[0] if len(parts) == 1 else mask_util.merge(parts))
    masks[drawn] = mask_util.decode(joined).transpose(2, 0, 1)
    return masks


class BitMasks:
    """N masks as one tensor.

    Attributes:
        tensor: bool, shape (N, H, W).
    """

    def __init__(self, tensor: torch.Tensor | np.ndarray):
        """Takes anything of shape (N, H, W); not zero means inside. A bool tensor is not copied.

        Raises:
            ValueError: another shape.
        """
        tensor = torch.as_tensor(tensor).to(torch.bool)
        if tensor.dim() != 3:
            raise ValueError(f"bit masks have shape (N, H, W); found {tuple(tensor.shape)}")
        self.image_size = tuple(tensor.shape[1:])
        self.tensor = tensor

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def to(self, *args, **kwargs) -> BitMasks:
        """The masks on another device."""
        return BitMasks(self.tensor.to(*args, **kwargs))

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __getitem__(self, item) -> BitMasks:
        """Masks by integer, slice, boolean mask or indices. The result may share memory with this object.

        Raises:
            ValueError: the index does not select whole masks.
        """
        selected = self.tensor[item]
        if isinstance(item, (int, np.integer)):
            selected = selected[None]
        if selected.dim() != 3 or selected.shape[1:] != self.tensor.shape[1:]:
            raise ValueError(f"BitMasks are indexed by object only; {item!r} gives shape {tuple(selected.shape)}")
        return BitMasks(selected)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Masks, each a bool tensor of shape (H, W)."""
        return iter(self.tensor)

    def __repr__(self) -> str:
        return f"BitMasks(num_instances={len(self)})"

    def nonempty(self) -> torch.Tensor:
        """bool (N,): the mask has at least one pixel."""
        return self.tensor.flatten(1).any(dim=1)

    @staticmethod
    def from_polygon_masks(polygon_masks: PolygonMasks | list[list[np.ndarray]], height: int, width: int) -> BitMasks:
        """Draws the polygons of N objects; (height, width) is the size of the masks in pixels."""
        objects = polygon_masks.polygons if isinstance(polygon_masks, PolygonMasks) else polygon_masks
        return BitMasks(torch.from_numpy(_rasterize(objects, height, width)))

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """Cuts out of each mask its box, and resizes the cut to a square.

        Each output bit tells whether at least half of its cell is inside the mask: RoIAlign (half-pixel rule, as many
        sample points as a cell has pixels), then a threshold at 0.5.

        Args:
            boxes: float (N, 4), XYXY in pixels, one for each mask, on the device of the masks.
            mask_size: side of the square.

        Returns:
            bool (N, mask_size, mask_size).

        Raises:
            ValueError: the number of boxes differs from that of the masks.
        """
        _check_count(boxes, self)
        numbers = torch.arange(len(boxes), dtype=boxes.dtype, device=boxes.device)[:, None]
        # Importing torchvision takes about as long as importing torch. Training on boxes does not need it.
        from torchvision.ops import roi_align

        values = roi_align(
            self.tensor[:, None].to(torch.float32), torch.cat([numbers, boxes], dim=1), mask_size, aligned=True
        )
        return values[:, 0] >= 0.5

    def get_bounding_boxes(self) -> Boxes:
        """The tight box of each mask, covering whole pixels; (0, 0, 0, 0) for an empty mask."""
        boxes = torch.zeros(len(self), 4, dtype=torch.float32)
        some = self.nonempty().cpu()
        for axis, in_use in enumerate((self.tensor.any(dim=1).cpu(), self.tensor.any(dim=2).cpu())):
            bits = in_use.to(torch.uint8)
            boxes[some, axis] = bits[some].argmax(dim=1).float()
            boxes[some, axis + 2] = (bits.shape[1] - bits[some].flip(1).argmax(dim=1)).float()
        return Boxes(boxes)

    @staticmethod
    def cat(bitmasks_list: list[BitMasks]) -> BitMasks:
        """One `BitMasks` with the masks of all, in order; all must have the same height and width."""
        _check_list(bitmasks_list, BitMasks)
        return BitMasks(torch.cat([masks.tensor for masks in bitmasks_list]))


class PolygonMasks:
    """N masks, each the union of its polygons. They stay in the memory of the CPU.

    Attributes:
        polygons: for each object a list of float64 arrays ``x0, y0, x1, y1, ...`` in pixels.
    """

    def __init__(self, polygons: list[list[torch.Tensor | np.ndarray | list[float]]]):
        """
        Args:
            polygons: for each object a list of polygons, each with an even number of coordinates, at least 6. An
                object without polygons has an empty mask.

        Raises:
            ValueError: not a list of lists, or a malformed polygon.
        """
        if not isinstance(polygons, list) or not all(isinstance(polygon_list, list) for polygon_list in polygons):
            raise ValueError(
                "PolygonMasks take a list with a list of polygons for each object; found "
                + (f"a {type(polygons).__name__}" if not isinstance(polygons, list) else f"{polygons!r:.200}")
            )
        self.polygons = [[_polygon(p, index) for p in polygon_list] for index, polygon_list in enumerate(polygons)]

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def to(self, *args, **kwargs) -> PolygonMasks:
        """This object itself: polygons have no device."""
        return self

    def __len__(self) -> int:
        return len(self.polygons)

    def __getitem__(self, item) -> PolygonMasks:
        """Objects by integer, slice, boolean mask or indices. The result shares the polygons with this object.

        Raises:
            ValueError: an index of more than one dimension, or of floats.
        """
        return self._of([self.polygons[index] for index in _row_indices(item, len(self))])

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        """The polygons of each object."""
        return iter(self.polygons)

    def __repr__(self) -> str:
        return f"PolygonMasks(num_instances={len(self)})"

    @classmethod
    def _of(cls, checked_polygons: list[list[np.ndarray]]) -> PolygonMasks:
        masks = cls([])
        masks.polygons = checked_polygons
        return masks

    def nonempty(self) -> torch.Tensor:
        """bool (N,): the object has at least one polygon."""
        return torch.tensor([len(polygon_list) > 0 for polygon_list in self.polygons], dtype=torch.bool)

    def get_bounding_boxes(self) -> Boxes:
        """The tight box of each object. Without polygons its corners are swapped: infinity and 0."""
        boxes = np.zeros((len(self), 4), dtype=np.float32)
        for row, polygon_list in zip(boxes, self.polygons):
            points = np.concatenate([np.empty((0, 2)), *(polygon.reshape(-1, 2) for polygon in polygon_list)])
            row[:2] = points.min(axis=0, initial=np.inf)
            row[2:] = points.max(axis=0, initial=0)
        return Boxes(torch.from_numpy(boxes))

    def area(self) -> torch.Tensor:
        """Sum of the areas of each object's polygons, float64 (N,), in square pixels. Overlap counts twice."""
        return torch.tensor([sum(map(_polygon_area, polygons)) for polygons in self.polygons], dtype=torch.float64)

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """Draws each object as seen through its box, scaled to a square.

        Args:
            boxes: float (N, 4), XYXY in pixels, one for each object, on any device.
            mask_size: side of the square.

        Returns:
            bool (N, mask_size, mask_size), on the device of the boxes.

        Raises:
            ValueError: the number of boxes differs from that of the objects.
        """
        _check_count(boxes, self)
        corners = boxes.detach().cpu().numpy()
        # In the precision of the boxes, as in Detectron2: another precision can move a corner over a pixel's border.
        scales = mask_size / np.maximum(corners[:, 2:] - corners[:, :2], MIN_BOX_SIDE)
        scaled = [
            [((polygon.reshape(-1, 2) - corner) * scale).reshape(-1) for polygon in polygon_list]
            for polygon_list, corner, scale in zip(self.polygons, corners[:, :2], scales)
        ]
        return torch.from_numpy(_rasterize(scaled, mask_size, mask_size)).to(boxes.device)

    @classmethod
    def cat(cls, polymasks_list: list[PolygonMasks]) -> PolygonMasks:
        """One `PolygonMasks` with the objects of all, in order."""
        _check_list(polymasks_list, PolygonMasks)
        return cls._of([polygon_list for masks in polymasks_list for polygon_list in masks.polygons])


def _polygon(polygon, object_index: int) -> np.ndarray:
    array = np.asarray(polygon.cpu() if isinstance(polygon, torch.Tensor) else polygon, dtype=np.float64)
    if array.ndim != 1 or array.size % 2 or array.size < MIN_POLYGON_COORDINATES:
        raise ValueError(
            f"object {object_index}: a polygon is a flat list x0, y0, x1, y1, ... of at least "
            f"{MIN_POLYGON_COORDINATES} numbers; found shape {array.shape}. Remove it, or give it three points"
        )
    return array


def _polygon_area(polygon: np.ndarray) -> float:
    x, y = polygon.reshape(-1, 2).T
    return 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))


def _row_indices(item, length: int) -> list[int]:
    if isinstance(item, (int, np.integer)):
        return [int(item)]
    if isinstance(item, slice):
        return list(range(length))[item]
    rows = item.cpu().numpy() if isinstance(item, torch.Tensor) else np.asarray(item)
    if rows.ndim == 1 and rows.dtype == bool and len(rows) == length:
        return rows.nonzero()[0].tolist()
    if rows.ndim == 1 and (rows.size == 0 or np.issubdtype(rows.dtype, np.integer)):
        return rows.tolist()
    raise ValueError(
        f"objects are selected by an integer, a slice, {length} bools or a list of integers; found shape "
        f"{rows.shape} of {rows.dtype}"
    )


def _check_count(boxes: torch.Tensor, masks) -> None:
    if boxes.shape != (len(masks), 4):
        raise ValueError(f"{len(masks)} masks need boxes of shape ({len(masks)}, 4), found {tuple(boxes.shape)}")


def _check_list(values, kind: type) -> None:
    if not isinstance(values, (list, tuple)) or not values or not all(isinstance(value, kind) for value in values):
        raise TypeError(f"{kind.__name__}.cat takes a list of {kind.__name__}, with at least one; found {values!r}")
