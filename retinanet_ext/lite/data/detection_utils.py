"""Steps of a mapper: read an image, check it against its record, transform annotations, build ``Instances``."""

import logging
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from PIL import Image

from ..structures import Boxes, BoxMode, Instances, Keypoints
from . import transforms as T
from .catalog import MetadataCatalog
from .instance_annotations import (
    all_have,
    as_transform_list,
    keypoint_array,
    masks_to_instances,
    transform_keypoint_annotations,
    transform_segmentation,
)

logger = logging.getLogger(__name__)

FLIPS = ("horizontal", "vertical", "none")
IMAGE_FORMATS = ("BGR", "RGB", "L")
DEEP_MODES = ("I", "F")  # Pillow's modes with more than 8 bits per channel: I, I;16, I;16B, ..., F

_EXIF_ORIENTATION = 0x0112
# EXIF orientation -> the operation that undoes it; orientation 1 is upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class SizeMismatchError(ValueError):
    """An image does not have the size that its record states."""


def _turn_upright(image: Image.Image, file_name: str) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception as error:
        logger.warning("%s: EXIF data cannot be read, orientation ignored: %s", file_name, error)
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def read_image(file_name: str, format: str | None = None) -> np.ndarray:
    """Read an image file, turned upright by its EXIF orientation.

    Args:
        file_name: path of the file.
        format: ``BGR``, ``RGB``, ``L`` (grey), or None for the file's own mode. Grey images get three equal
            channels in ``BGR`` and ``RGB``.

    Returns:
        uint8 ``(H, W, 3)``, or ``(H, W, 1)`` for ``L``; for None, the array that Pillow makes of the file.

    Raises:
        FileNotFoundError: no such file.
        OSError: the file is not a readable image.
        ValueError: unknown ``format``, or a conversion that would clip channels of more than 8 bits.
    """
    if format is not None and format not in IMAGE_FORMATS:
        raise ValueError(f"image format {format!r} is not known; legal values: {', '.join(IMAGE_FORMATS)}")
    with open(file_name, "rb") as file:
        try:
            image = Image.open(file)
            image.load()
        except Exception as error:  # Pillow raises SyntaxError, ValueError, ... besides OSError on damaged files
            raise OSError(f"{file_name} cannot be read as an image: {error}") from error
        # After loading, which turns a TIFF upright and removes the orientation from its EXIF data.
        image = _turn_upright(image, file_name)
    if format is None:
        return np.array(image)
    if image.mode.split(";")[0] in DEEP_MODES:
        raise ValueError(
            f"{file_name} has more than 8 bits per channel (Pillow mode {image.mode}); conversion to {format} "
            "would clip it. Convert the file to 8 bits, with the scaling that fits the data"
        )
    mode = "L" if format == "L" else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    # Pillow writes the channels in the order of `format`. A bytearray makes the array writable.
    pixels = np.frombuffer(bytearray(image.tobytes("raw", format)), dtype=np.uint8)
    return pixels.reshape(image.height, image.width, len(format))


def convert_image_to_rgb(image: np.ndarray | torch.Tensor, format: str) -> np.ndarray:
    """Turn an image in ``format`` into RGB for display.

    Args:
        image: ``(H, W, C)`` array or tensor, 0..255.
        format: ``BGR``, ``RGB`` or ``L``.

    Returns:
        uint8 ``(H, W, 3)``.
    """
    if format not in IMAGE_FORMATS:
        raise ValueError(f"image format {format!r} is not known; legal values: {', '.join(IMAGE_FORMATS)}")
    array = image.cpu().detach().numpy() if isinstance(image, torch.Tensor) else image
    if format == "BGR":
        array = array[:, :, ::-1]
    elif format == "L":
        array = np.repeat(array[:, :, :1], 3, axis=2)
    return np.ascontiguousarray(array).astype(np.uint8, copy=False)


def check_image_size(dataset_dict: dict, image: np.ndarray) -> None:
    """Compare the size of an image ``(H, W, C)`` with ``width`` and ``height`` of its record; set them if missing.

    Raises:
        SizeMismatchError: the sizes differ.
    """
    height, width = image.shape[:2]
    expected_width = dataset_dict.setdefault("width", width)
    expected_height = dataset_dict.setdefault("height", height)
    if (width, height) == (expected_width, expected_height):
        return
    hint = ""
    if (height, width) == (expected_width, expected_height):
        hint = " The two are swapped: the annotations may be for the image as stored, before its EXIF rotation."
    raise SizeMismatchError(
        f"{dataset_dict.get('file_name', 'image')}: the image is {width}x{height} (width x height), "
        f"its record says {expected_width}x{expected_height}.{hint} Correct the width and height in the annotations"
    )


def image_to_tensor(image: np.ndarray) -> torch.Tensor:
    """Contiguous copy ``(C, H, W)`` of an image ``(H, W, C)``."""
    if image.dtype != np.uint8 or image.shape[2] != 3:
        return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))
    # OpenCV is ten times faster than NumPy here, but does not accept the negative strides of a flipped image.
    image = cv2.flip(image[:, ::-1], 1) if image.strides[1] < 0 else image
    planes = np.empty((3, *image.shape[:2]), dtype=np.uint8)
    cv2.split(np.ascontiguousarray(image), list(planes))
    return torch.from_numpy(planes)


def boxes_of_annotations(annotations: list[dict]) -> np.ndarray:
    """Boxes of any ``bbox_mode`` as float64 ``(N, 4)``: ``x0, y0, x1, y1`` in pixels."""
    boxes = [BoxMode.convert(list(map(float, a["bbox"])), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def transform_instance_annotations(
    annotation: dict,
    transforms: T.Transform | Sequence[T.Transform],
    image_size: tuple[int, int],
    *,
    keypoint_hflip_indices: Sequence[int] | None = None,
) -> dict:
    """Apply the transforms of an image to one of its annotations.

    Args:
        annotation: one annotation of a record; not changed.
        transforms: the transforms that were applied to the image.
        image_size: (height, width) of the transformed image.
        keypoint_hflip_indices: see :func:`create_keypoint_hflip_indices`; needed if the image was mirrored and the
            annotation has keypoints.

    Returns:
        A copy with ``bbox`` as absolute ``x0, y0, x1, y1`` (float64 ``(4,)``, clipped to the image) and a matching
        ``bbox_mode``; if it has them, ``segmentation`` as a list of polygons, float64 arrays, or as a bool array
        ``image_size``, and ``keypoints``, float64 ``(J, 3)``.

    Raises:
        ValueError: the segmentation is of no known form, or its mask does not have the image's size; see also
            :func:`transform_keypoint_annotations`.
    """
    transforms = as_transform_list(transforms)
    new = dict(annotation)
    box = BoxMode.convert(list(map(float, annotation["bbox"])), annotation["bbox_mode"], BoxMode.XYXY_ABS)
    box = transforms.apply_box(np.array([box], dtype=np.float64))[0]
    height, width = image_size
    new["bbox"] = np.clip(box, 0, [width, height, width, height])
    new["bbox_mode"] = BoxMode.XYXY_ABS
    if "segmentation" in annotation:
        new["segmentation"] = transform_segmentation(annotation["segmentation"], transforms, image_size)
    if "keypoints" in annotation:
        new["keypoints"] = transform_keypoint_annotations(
            annotation["keypoints"], transforms, image_size, keypoint_hflip_indices
        )
    return new


def annotations_to_instances(annos: list[dict], image_size: tuple[int, int], mask_format: str = "polygon") -> Instances:
    """Ground truth of one image.

    Args:
        annos: annotations as :func:`transform_instance_annotations` returns them, with ``bbox``, ``bbox_mode`` and
            ``category_id``, and all or none with ``segmentation`` and ``keypoints``; may be empty.
        image_size: (height, width).
        mask_format: ``polygon`` gives ``PolygonMasks``, ``bitmask`` gives ``BitMasks``; see
            :func:`.instance_annotations.masks_to_instances`.

    Returns:
        ``Instances`` with ``gt_boxes`` (``Boxes``, xyxy in pixels) and ``gt_classes`` (int64 ``(N,)``), and if the
        annotations have them ``gt_masks`` and ``gt_keypoints`` (``Keypoints``).
    """
    instances = Instances(image_size)
    instances.gt_boxes = Boxes(torch.from_numpy(boxes_of_annotations(annos)).float())
    instances.gt_classes = torch.tensor([a["category_id"] for a in annos], dtype=torch.int64)
    if all_have(annos, "segmentation"):
        instances.gt_masks = masks_to_instances([a["segmentation"] for a in annos], image_size, mask_format)
    if all_have(annos, "keypoints"):
        instances.gt_keypoints = Keypoints(keypoint_array(annos))
    return instances


def filter_empty_instances(
    instances: Instances,
    by_box: bool = True,
    by_mask: bool = True,
    box_threshold: float = 1e-5,
    return_mask: bool = False,
) -> Instances | tuple[Instances, torch.Tensor]:
    """The instances that are not empty (a crop may empty them).

    Args:
        by_box: leave out boxes that are not wider and higher than ``box_threshold`` pixels.
        by_mask: leave out empty masks, if the instances have ``gt_masks``.
        return_mask: also return bool ``(N,)``: which instances stayed.

    Raises:
        ValueError: neither ``by_box`` nor ``by_mask``.
    """
    if not (by_box or by_mask):
        raise ValueError("by_box and by_mask are both False; at least one must be True")
    kept = torch.ones(len(instances), dtype=torch.bool)
    if by_box:
        kept &= instances.gt_boxes.nonempty(threshold=box_threshold)
    if by_mask and instances.has("gt_masks"):
        kept &= instances.gt_masks.nonempty()
    return (instances[kept], kept) if return_mask else instances[kept]


def check_metadata_consistency(key: str, dataset_names: Sequence[str]) -> None:
    """Check that datasets have the same value of a metadata key.

    Raises:
        AttributeError: the first dataset has no such key.
        ValueError: no dataset is named, or their values differ.
    """
    if not dataset_names:
        raise ValueError(f"no dataset is named whose {key} could be read; list at least one in DATASETS.TRAIN")
    first = getattr(MetadataCatalog.get(dataset_names[0]), key)
    for name in dataset_names[1:]:
        other = getattr(MetadataCatalog.get(name), key)
        if other != first:
            raise ValueError(
                f"datasets {dataset_names[0]!r} and {name!r} differ in {key}: {first!r} and {other!r}. Datasets that "
                "are used together need the same"
            )


def create_keypoint_hflip_indices(dataset_names: str | Sequence[str]) -> list[int]:
    """For each keypoint, the index of the keypoint that takes its place in a mirrored image.

    Args:
        dataset_names: datasets with the metadata ``keypoint_names`` and ``keypoint_flip_map``, pairs of names that
            change places.

    Raises:
        AttributeError, ValueError: see :func:`check_metadata_consistency`; or the flip map has an unknown name.
    """
    dataset_names = [dataset_names] if isinstance(dataset_names, str) else list(dataset_names)
    for key in ("keypoint_names", "keypoint_flip_map"):
        check_metadata_consistency(key, dataset_names)
    metadata = MetadataCatalog.get(dataset_names[0])
    names = list(metadata.keypoint_names)
    partner = {name: other for a, b in metadata.keypoint_flip_map for name, other in ((a, b), (b, a))}
    unknown = sorted(partner.keys() - set(names))
    if unknown:
        raise ValueError(f"keypoint_flip_map of {dataset_names[0]!r} has {', '.join(unknown)}, not in keypoint_names")
    return [names.index(partner.get(name, name)) for name in names]


def gen_crop_transform_with_instance(
    crop_size: tuple[int, int], image_size: tuple[int, int], instance: dict
) -> T.CropTransform:
    """A random crop that holds the centre of an object.

    Args:
        crop_size, image_size: (height, width) in pixels; the crop is not larger than the image.
        instance: an annotation with ``bbox`` and ``bbox_mode``, centred inside the image.

    Raises:
        ValueError: the crop is larger than the image, or the object's centre outside.
    """
    size, image = np.asarray(crop_size, dtype=np.int64), np.asarray(image_size, dtype=np.int64)
    x0, y0, x1, y1 = boxes_of_annotations([instance])[0]
    center = np.array([(y0 + y1) / 2, (x0 + x1) / 2])
    if (size > image).any() or (center > image).any():
        raise ValueError(
            f"a crop of {tuple(crop_size)} around the point {tuple(center.tolist())} does not fit into an image of "
            f"{tuple(image_size)} (all as height, width)"
        )
    lowest = np.maximum(np.floor(center).astype(np.int64) - size, 0)
    highest = np.minimum(image - size, np.ceil(center).astype(np.int64))
    top, left = (int(np.random.randint(low, high + 1)) for low, high in zip(lowest, highest))
    return T.CropTransform(left, top, int(size[1]), int(size[0]))


def build_augmentation(cfg, is_train: bool) -> list[T.Augmentation]:
    """The resize and, in training, the flip that ``cfg.INPUT`` sets. (``DatasetMapper`` adds the crop.)

    Raises:
        ValueError: ``INPUT.RANDOM_FLIP`` or ``INPUT.MIN_SIZE_TRAIN_SAMPLING`` has an illegal value.
    """
    if not is_train:
        return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    flip = cfg.INPUT.RANDOM_FLIP
    if flip not in FLIPS:
        raise ValueError(f"INPUT.RANDOM_FLIP is {flip!r}; legal values: {', '.join(FLIPS)}")
    augmentations: list[T.Augmentation] = [
        T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING)
    ]
    if flip != "none":
        augmentations.append(T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
    return augmentations
