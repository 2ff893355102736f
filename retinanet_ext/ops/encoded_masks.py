"""The masks of an image as run lengths: COCO's compressed RLE, which takes kilobytes where pixels take megabytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_masks

from .coco_rle import decode_rle, encode_mask


class EncodedMasks:
    """M masks of one image of H x W pixels, kept as RLE and decoded where pixels are asked for.

    It can be a field of `Instances`. Code that expects a bool tensor ``(M, H, W)`` and goes over the masks one by one,
    or turns them into an array, works with it too, such as Detectron2's COCO evaluator and visualizer.

    Attributes:
        rles: for each mask ``{"size": [H, W], "counts": bytes}``, COCO's compressed RLE.
        image_size: (H, W) in pixels.
    """

    def __init__(self, rles: Sequence[dict[str, Any]], image_size: tuple[int, int]):
        """
        Raises:
            ValueError: an RLE of another size, or one that is not compressed.
        """
        self.image_size = (int(image_size[0]), int(image_size[1]))
        for index, rle in enumerate(rles):
            if tuple(rle["size"]) != self.image_size:
                raise ValueError(
                    f"rles[{index}] has size {list(rle['size'])} (height, width), but the image has "
                    f"{list(self.image_size)}; encode the mask at the image's size"
                )
            if not isinstance(rle["counts"], bytes):
                raise ValueError(
                    f"rles[{index}]['counts'] is of type {type(rle['counts']).__name__}, but must be the bytes of a "
                    "compressed RLE; encode text with .encode(), and a list with pycocotools.mask.frPyObjects"
                )
        # Detectron2's visualizer compares the size with a list.
        self.rles = [{"size": list(self.image_size), "counts": rle["counts"]} for rle in rles]

    @classmethod
    def of(cls, masks: EncodedMasks | Iterable[torch.Tensor], image_size: tuple[int, int]) -> EncodedMasks:
        """Masks ``(M, H, W)``, bool on any device, as run lengths, encoded one by one; encoded masks as they are."""
        return masks if isinstance(masks, EncodedMasks) else cls([encode_mask(mask) for mask in masks], image_size)

    def __len__(self) -> int:
        return len(self.rles)

    def __getitem__(self, item: int | slice | Sequence[int] | torch.Tensor | np.ndarray) -> EncodedMasks:
        """The chosen masks. A bool index ``(M,)`` or int indices ``(P,)`` choose several, an integer chooses one.

        Raises:
            IndexError: an index out of range, or a bool index of another length.
        """
        if isinstance(item, slice):
            return EncodedMasks(self.rles[item], self.image_size)
        indices = np.asarray(item.cpu() if isinstance(item, torch.Tensor) else item)
        if indices.dtype == bool:
            if indices.shape != (len(self),):
                raise IndexError(f"a bool index of shape {indices.shape} for {len(self)} masks; it needs one per mask")
            indices = np.flatnonzero(indices)
        return EncodedMasks([self.rles[int(index)] for index in indices.reshape(-1)], self.image_size)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Decodes one mask after the other: bool ``(H, W)``."""
        for rle in self.rles:
            yield torch.from_numpy(decode_rle(rle))

    @property
    def tensor(self) -> torch.Tensor:
        """All masks decoded: bool ``(M, H, W)`` on the CPU."""
        decoded = torch.zeros(len(self), *self.image_size, dtype=torch.bool)
        for row, mask in zip(decoded, self, strict=True):
            row.copy_(mask)
        return decoded

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        # NumPy asks for copy=False where a view would do. Decoding always makes a new array.
        return self.tensor.numpy().astype(dtype or bool, copy=False)

    def any(self, dim: int = 0) -> torch.Tensor:
        """The union of all masks, bool ``(H, W)``; ``dim`` must be 0, the masks."""
        if dim != 0:
            raise ValueError(f"EncodedMasks.any() has dim={dim}; only dim=0, over the masks, is known: use .tensor")
        union = EncodedMasks([coco_masks.merge(self.rles)] if self.rles else [], self.image_size)
        return union.tensor.any(dim=0)

    def areas(self) -> torch.Tensor:
        """Number of pixels of each mask: int64 ``(M,)``."""
        # One by one: with NumPy 2, pycocotools fails on a list of more than 255 masks.
        return torch.tensor([int(coco_masks.area(rle)) for rle in self.rles], dtype=torch.int64)

    def nonempty(self) -> torch.Tensor:
        """Whether each mask has a pixel: bool ``(M,)``."""
        return self.areas() > 0

    def to(self, *args: Any, **kwargs: Any) -> EncodedMasks:
        """Itself: run lengths live on the CPU. Exists because `Instances.to` moves its fields."""
        return self

    def cpu(self) -> EncodedMasks:
        """Itself: run lengths live on the CPU."""
        return self

    @staticmethod
    def cat(masks: Sequence[EncodedMasks]) -> EncodedMasks:
        """The masks of all, in order.

        Raises:
            ValueError: an empty list, or different image sizes.
        """
        sizes = sorted({part.image_size for part in masks})
        if len(sizes) != 1:
            raise ValueError(f"EncodedMasks.cat needs masks of one image size, found {sizes or 'an empty list'}")
        return EncodedMasks([rle for part in masks for rle in part.rles], sizes[0])

    def __repr__(self) -> str:
        return f"EncodedMasks(num_masks={len(self)}, image_size={self.image_size})"
