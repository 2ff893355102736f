"""Keypoints of the objects of one image."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch


class Keypoints:
    """J keypoints of each of N objects, as one tensor.

    Detectron2's `Keypoints.to_heatmap` is not here: the keypoint head makes its own targets.

    Attributes:
        tensor: float32, shape (N, J, 3): x, y in pixels, and visibility as in COCO: 0 not labelled, 1 labelled but
            hidden, 2 visible.
    """

    def __init__(self, keypoints: torch.Tensor | np.ndarray | list[list[float]]):
        """Takes anything of shape (N, J, 3); a float32 tensor is not copied.

        Raises:
            ValueError: another shape.
        """
        if not isinstance(keypoints, torch.Tensor):
            keypoints = torch.as_tensor(np.asarray(keypoints, dtype=np.float32))
        keypoints = keypoints.to(torch.float32)
        if keypoints.dim() != 3 or keypoints.shape[2] != 3:
            raise ValueError(f"keypoints have shape (N, J, 3): x, y, visibility; found {tuple(keypoints.shape)}")
        self.tensor = keypoints

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def to(self, *args, **kwargs) -> Keypoints:
        """The keypoints on another device."""
        return Keypoints(self.tensor.to(*args, **kwargs))

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def __getitem__(self, item) -> Keypoints:
        """Objects by integer, slice, boolean mask or indices. The result may share memory with this object.

        Raises:
            ValueError: the index does not select whole objects.
        """
        selected = self.tensor[item]
        if isinstance(item, (int, np.integer)):
            selected = selected[None]
        if selected.dim() != 3 or selected.shape[1:] != self.tensor.shape[1:]:
            raise ValueError(f"Keypoints are indexed by object only; {item!r} gives shape {tuple(selected.shape)}")
        return Keypoints(selected)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """The keypoints of each object, shape (J, 3)."""
        return iter(self.tensor)

    def __repr__(self) -> str:
        return f"Keypoints(num_instances={len(self)})"

    @staticmethod
    def cat(keypoints_list: list[Keypoints]) -> Keypoints:
        """One `Keypoints` with the objects of all, in order; all must have the same number of keypoints."""
        if not isinstance(keypoints_list, (list, tuple)) or not keypoints_list:
            raise TypeError(f"Keypoints.cat takes a list of Keypoints, with at least one; found {keypoints_list!r}")
        return Keypoints(torch.cat([keypoints.tensor for keypoints in keypoints_list]))
