"""COCO's run lengths (RLE) of one mask: from pixels, from a list of runs, to pixels, to JSON.

An RLE is ``{"size": [H, W], "counts": ...}``. The counts are compressed (bytes, or the same as text), or a list of
lengths of runs along the columns. Nothing is checked here: pycocotools may crash on malformed counts.
"""

from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_masks

Rle = dict[str, Any]


def encode_mask(mask: torch.Tensor | np.ndarray) -> Rle:
    """The compressed RLE of a mask ``(H, W)``, bool or 0 and 1, on any device."""
    pixels = mask.cpu().numpy() if isinstance(mask, torch.Tensor) else mask
    return coco_masks.encode(np.asfortranarray(pixels, dtype=np.uint8))


def compress_rle(rle: Rle) -> Rle:
    """The RLE with compressed counts; the RLE itself if its counts are."""
    if isinstance(rle["counts"], (bytes, str)):
        return rle
    return coco_masks.frPyObjects({"size": list(rle["size"]), "counts": list(rle["counts"])}, *rle["size"])


def decode_rle(rle: Rle) -> np.ndarray:
    """The mask as a new array, bool ``(H, W)``, in C order."""
    return np.ascontiguousarray(coco_masks.decode(compress_rle(rle))).view(bool)


def rle_for_json(rle: Rle) -> Rle:
    """A copy that JSON can hold: counts in bytes become text."""
    counts = rle["counts"]
    return {"size": list(rle["size"]), "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
