"""The keypoints of the datasets of a config, and the config keys that follow from them.

Also refuses tasks that the format of a dataset cannot hold. No record is read for that.
"""

from retinanet_ext.d2 import CfgNode, MetadataCatalog

from ..coco_file import coco_summary
from ..keypoint_metadata import names_in_categories
from ..registration import annotation_file, check_is_registered, custom_format
from .tasks import NUM_KEYPOINTS_KEY

SIGMAS_KEY = "TEST.KEYPOINT_OKS_SIGMAS"


def refuse_formats_without(cfg: CfgNode) -> None:
    """Refuse masks on VOC data and keypoints on VOC or YOLO data of DATASETS.CUSTOM.

    Raises:
        ValueError: names the dataset, its format and the key.
    """
    for name in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]:
        kind = custom_format(name)
        for key, what, lacking in (("MASK_ON", "masks", ("voc",)), ("KEYPOINT_ON", "keypoints", ("voc", "yolo"))):
            if cfg.MODEL[key] and kind in lacking:
                raise ValueError(
                    f"MODEL.{key} is True, but dataset {name!r} has FORMAT {kind}, from which no {what} are read. Set "
                    f"MODEL.{key} False, or give the data as a COCO file (FORMAT coco)."
                )


def resolve_num_keypoints(cfg: CfgNode, num_keypoints_is_set: bool) -> int:
    """The value that MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS must have for the datasets of `cfg`.

    Args:
        cfg: a config whose datasets are registered.
        num_keypoints_is_set: whether the user gave the key a value, in a file or on the command line.

    Returns:
        J of the datasets; the config's value if that is not known before the records are read.

    Raises:
        ValueError: a dataset has no keypoints, or the datasets disagree with each other or with the value that the user
            set.
    """
    value = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    known = {name: found for name in [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST] if (found := _keypoints(name))}
    for name, (count, names) in known.items():
        if count == 0:
            raise ValueError(
                f"MODEL.KEYPOINT_ON is True, but dataset {name!r} has no keypoints in {annotation_file(name)}. Set "
                "MODEL.KEYPOINT_ON False, or name an annotation file with keypoints."
            )
        first, (first_count, first_names) = next(iter(known.items()))
        if count != first_count or (names and first_names and names != first_names):
            raise ValueError(
                f"Datasets {first!r} and {name!r} disagree on their keypoints: {_text(first_count, first_names)}, and "
                f"{_text(count, names)}. One keypoint head needs the same names in the same order; correct "
                "'keypoints' in the categories of the annotation files, or leave out a dataset."
            )
    if not known:
        return value
    name, (count, names) = next(iter(known.items()))
    if num_keypoints_is_set and value != count:
        raise ValueError(
            f"{NUM_KEYPOINTS_KEY} is {value}, but dataset {name!r} has {_text(count, names)}. Remove the key (it is "
            f"then taken from the data) or set it to {count}."
        )
    return count


def check_oks_sigmas(cfg: CfgNode) -> None:
    """Refuse TEST.KEYPOINT_OKS_SIGMAS of another length than the number of keypoints.

    Raises:
        ValueError: names both keys.
    """
    sigmas, count = cfg.TEST.KEYPOINT_OKS_SIGMAS, cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    if len(sigmas) not in (0, count):
        raise ValueError(
            f"{SIGMAS_KEY} has {len(sigmas)} values, but {NUM_KEYPOINTS_KEY} is {count}. Give one sigma for each "
            "keypoint, in the order of the keypoints, or [] for the default."
        )
    if any(sigma <= 0 for sigma in sigmas):
        raise ValueError(f"{SIGMAS_KEY} is {list(sigmas)}; legal: numbers above 0, one for each keypoint")


def _keypoints(dataset_name):
    """(number, names or ()) of a dataset, or None if they are not known before its records are read."""
    check_is_registered(dataset_name)
    names = MetadataCatalog.get(dataset_name).get("keypoint_names", None)
    if names:
        return len(names), tuple(names)
    path = annotation_file(dataset_name)
    if path is None:
        return None
    summary = coco_summary(path, ["images"])
    named = names_in_categories(summary.categories)
    if len(named) > 1:
        found = "; ".join(f"{name}: {', '.join(names)}" for names, name in named.items())
        raise ValueError(
            f"{path}: the categories differ in their keypoints: {found}. One keypoint head needs the same names in the "
            "same order; leave out 'keypoints' in the categories that have none."
        )
    if named:
        (names,) = named
        return len(names), names
    return None if summary.num_keypoints is None else (summary.num_keypoints, ())


def _text(count, names):
    return f"{count} keypoints" + (f" ({', '.join(names)})" if names else "")
