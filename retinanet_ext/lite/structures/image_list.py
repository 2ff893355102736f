"""A batch of images of different sizes in one tensor."""

from __future__ import annotations

from typing import Any

import torch


class ImageList:
    """Images padded at the right and bottom to a common size.

    Attributes:
        tensor: shape (N, H, W) or (N, C, H, W).
        image_sizes: (height, width) of every image before padding.
    """

    def __init__(self, tensor: torch.Tensor, image_sizes: list[tuple[int, int]]):
        self.tensor = tensor
        self.image_sizes = image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> torch.Tensor:
        """The image without its padding: a view of shape (H, W) or (C, H, W)."""
        height, width = self.image_sizes[idx]
        return self.tensor[idx, ..., :height, :width]

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def to(self, *args: Any, **kwargs: Any) -> ImageList:
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @staticmethod
    def from_tensors(
        tensors: list[torch.Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: dict[str, int] | None = None,
    ) -> ImageList:
        """Pads images and stacks them.

        Args:
            tensors: images of shape (C, H, W) or (H, W) that differ only in H and W. If all images are
                channels-last in memory (their channel axis has stride 1), so is the batch.
            size_divisibility: the common height and width are rounded up to multiples of this; 0 or 1: no rounding.
            pad_value: value of the padding.
            padding_constraints: requirements of a backbone: `size_divisibility`, which overrides the argument
                of that name, and `square_size`: if > 0, the common size is square with this side (pixels),
                rounded up as above.

        Raises:
            ValueError: no images, or images that differ in more than H and W, or that exceed `square_size`.
            TypeError: an image is not a tensor.
        """
        _check_stackable(tensors)
        constraints = padding_constraints or {}
        image_sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in tensors]
        height, width = (max(sizes) for sizes in zip(*image_sizes, strict=True))
        square = constraints.get("square_size", 0)
        if square > 0:
            if max(height, width) > square:
                raise ValueError(f"an image of size {(height, width)} does not fit into square_size {square}")
            height = width = square
        step = max(constraints.get("size_divisibility", size_divisibility), 1)
        height, width = -(-height // step) * step, -(-width // step) * step
        return ImageList(_pad_and_stack(tensors, height, width, pad_value), image_sizes)


def _check_stackable(tensors: list[torch.Tensor]) -> None:
    if len(tensors) == 0:
        raise ValueError("ImageList.from_tensors needs at least one image, found none")
    for index, image in enumerate(tensors):
        if not isinstance(image, torch.Tensor):
            raise TypeError(f"image {index} must be a tensor, found {type(image).__name__}")
        if image.dim() not in (2, 3) or image.shape[:-2] != tensors[0].shape[:-2]:
            raise ValueError(
                f"images must all be (H, W), or (C, H, W) with the same C; image {index} has shape "
                f"{tuple(image.shape)}, image 0 has {tuple(tensors[0].shape)}"
            )


def _pad_and_stack(images: list[torch.Tensor], height: int, width: int, pad_value: float) -> torch.Tensor:
    first = images[0]
    channels_last = first.dim() == 3 and all(image.stride(0) == 1 for image in images)
    batch = torch.empty(
        (len(images), *first.shape[:-2], height, width),
        dtype=first.dtype,
        device=first.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
    for target, image in zip(batch, images, strict=True):
        h, w = image.shape[-2:]
        target[..., :h, :w] = image
        # Fill only the padding: filling the whole batch first would write its pixels twice.
        target[..., h:, :] = pad_value
        target[..., :h, w:] = pad_value
    return batch
