"""Masks and keypoints of one image under the image's transforms, and what they become in ``Instances``.

Masks in a record are polygons (a list of lists ``x0, y0, x1, y1, ...``), COCO's run lengths (``{size, counts}``;
``counts`` is bytes or text if compressed, else a list), or an array ``(H, W)``. Coordinates are continuous pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch

from retinanet_ext.ops.coco_rle import decode_rle

from ..structures import BitMasks, PolygonMasks, polygons_to_bitmask
from . import transforms as T

MASK_FORMATS = ("polygon", "bitmask")


def transform_segmentation(
    segmentation: list | dict | np.ndarray, transforms: T.TransformList, image_size: tuple[int, int]
) -> list[np.ndarray] | np.ndarray:
    """A mask of a record in the transformed image of ``image_size`` (height, width).

    Returns:
        Polygons as a list of float64 arrays ``x0, y0, ...`` (a crop may leave none); any other mask as bool
        ``(height, width)``.

    Raises:
        ValueError: an unknown form, or a mask that does not have the image's size.
    """
    if isinstance(segmentation, list):
        polygons = [np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation]
        return [polygon.reshape(-1) for polygon in transforms.apply_polygons(polygons)]
    mask = _bits_of(segmentation)
    try:
        mask = transforms.apply_segmentation(mask)
    except ValueError as error:
        raise ValueError(f"a mask of {mask.shape} (height, width) does not fit its image: {error}") from error
    if tuple(mask.shape[:2]) != tuple(image_size):
        raise ValueError(
            f"a mask has the size {tuple(mask.shape[:2])} (height, width) after the transforms, but its image "
            f"{tuple(image_size)}; the mask in the record must have the size of the image as stored"
        )
    return mask.astype(bool)


def _bits_of(segmentation: dict | np.ndarray) -> np.ndarray:
    """uint8 ``(H, W)``."""
    if isinstance(segmentation, np.ndarray) and segmentation.ndim == 2:
        return (segmentation != 0).astype(np.uint8)
    if isinstance(segmentation, dict) and {"counts", "size"} <= segmentation.keys():
        return decode_rle(segmentation).view(np.uint8)
    raise ValueError(
        f"segmentation {segmentation!r:.200} ({type(segmentation).__name__}) is of no known form; legal: a list of "
        "polygons, a mapping with size and counts (COCO's run lengths), an array (H, W)"
    )


def transform_keypoint_annotations(
    keypoints: Sequence[float] | np.ndarray,
    transforms: T.Transform | Sequence[T.Transform],
    image_size: tuple[int, int],
    keypoint_hflip_indices: Sequence[int] | None = None,
) -> np.ndarray:
    """Apply the transforms of an image to the keypoints of one object.

    Args:
        keypoints: x, y, visibility of J points, one after the other; not changed.
        transforms: the transforms that were applied to the image.
        image_size: (height, width) of the transformed image.
        keypoint_hflip_indices: see ``detection_utils.create_keypoint_hflip_indices``. Used if the transforms mirror the
            image left to right an odd number of times.

    Returns:
        float64 ``(J, 3)``. A point outside the image becomes one that is not labelled; such points are 0, 0, 0.

    Raises:
        ValueError: the image was mirrored, and ``keypoint_hflip_indices`` is None or not for J points.
    """
    points = np.array(keypoints, dtype=np.float64).reshape(1, -1, 3)
    return transform_keypoints(points, as_transform_list(transforms), image_size, keypoint_hflip_indices)[0]


def transform_keypoints(
    points: np.ndarray,
    transforms: T.TransformList,
    image_size: tuple[int, int],
    keypoint_hflip_indices: Sequence[int] | None,
) -> np.ndarray:
    """Like :func:`transform_keypoint_annotations`, for N objects: float64 ``(N, J, 3)`` to a new array like it."""
    places = points[:, :, :2].reshape(-1, 2).copy()
    places = (transforms.apply_coords(places) if len(places) else places).reshape(*points.shape[:2], 2)
    height, width = image_size
    inside = ((places >= 0) & (places <= [width, height])).all(axis=2)
    labelled = inside & (points[:, :, 2] != 0)
    moved = np.where(labelled[..., None], np.concatenate([places, points[:, :, 2:]], axis=2), 0.0)
    mirrored = sum(isinstance(transform, T.HFlipTransform) for transform in transforms.transforms) % 2 == 1
    if not mirrored:
        return moved
    if keypoint_hflip_indices is None or len(keypoint_hflip_indices) != points.shape[1]:
        found = "None" if keypoint_hflip_indices is None else f"for {len(keypoint_hflip_indices)} points"
        raise ValueError(
            f"the image was mirrored, and its objects have {points.shape[1]} keypoints, so keypoint_hflip_indices must "
            f"name as many; it is {found}. create_keypoint_hflip_indices makes it from the metadata keypoint_names "
            "and keypoint_flip_map"
        )
    return moved[:, np.asarray(keypoint_hflip_indices)]


def as_transform_list(transforms: T.Transform | Sequence[T.Transform]) -> T.TransformList:
    """One transform or several as a ``TransformList``."""
    if isinstance(transforms, T.TransformList):
        return transforms
    return T.TransformList([transforms] if isinstance(transforms, T.Transform) else list(transforms))


def all_have(annotations: list[dict], key: str) -> bool:
    """Whether every annotation has ``key``; False without annotations.

    Raises:
        ValueError: only some of them have it; a field of ``Instances`` is for all objects.
    """
    lacking = [index for index, annotation in enumerate(annotations) if key not in annotation]
    if lacking and len(lacking) < len(annotations):
        raise ValueError(
            f"{len(lacking)} of the {len(annotations)} annotations of an image have no {key!r}, the first of them "
            f"annotation {lacking[0]} (from 0); give all objects of the image one, or leave these objects out"
        )
    return not lacking and bool(annotations)


def keypoint_array(annotations: list[dict]) -> np.ndarray:
    """``keypoints`` of annotations, each with the same number J of points, as float64 ``(N, J, 3)``."""
    points = [np.array(a["keypoints"], dtype=np.float64).reshape(-1, 3) for a in annotations]
    lengths = sorted({len(p) for p in points})
    if len(lengths) > 1:
        raise ValueError(f"the objects of an image have different numbers of keypoints: {lengths}")
    return np.stack(points)


def masks_to_instances(
    segmentations: list, image_size: tuple[int, int], mask_format: str = "polygon"
) -> PolygonMasks | BitMasks:
    """Masks of N objects in one image.

    Args:
        segmentations: what :func:`transform_segmentation` returns for each object, or masks of a record; at least one.
        image_size: (height, width).
        mask_format: ``polygon`` gives ``PolygonMasks`` and takes polygons only; ``bitmask`` gives ``BitMasks`` and
            takes any mask; polygons are drawn at the image's size.

    Raises:
        ValueError: another ``mask_format``, a mask that is not polygons with ``polygon``, a malformed polygon, or
            masks of different sizes.
    """
    if mask_format not in MASK_FORMATS:
        raise ValueError(f"mask_format (INPUT.MASK_FORMAT) is {mask_format!r}; legal: {', '.join(MASK_FORMATS)}")
    if mask_format == "polygon":
        others = [index for index, segmentation in enumerate(segmentations) if not isinstance(segmentation, list)]
        if others:
            raise ValueError(
                f"the mask of object {others[0]} of an image is not made of polygons, which mask_format 'polygon' "
                "needs; set INPUT.MASK_FORMAT bitmask, which takes polygons, run lengths and arrays"
            )
        return PolygonMasks(segmentations)
    masks = [
        polygons_to_bitmask(segmentation, *image_size) if isinstance(segmentation, list) else _bits_of(segmentation)
        for segmentation in segmentations
    ]
    sizes = sorted({mask.shape for mask in masks})
    if len(sizes) > 1:
        raise ValueError(f"the masks of an image of {tuple(image_size)} (height, width) have several sizes: {sizes}")
    return BitMasks(torch.from_numpy(np.stack(masks).astype(bool)))
