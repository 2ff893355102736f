"""Class names of the datasets of a config, and the number of classes that follows from them."""

from collections.abc import Collection

from retinanet_ext.d2 import CfgNode, MetadataCatalog

from ..registered_coco import is_registered_coco, set_registered_classes
from ..registration import category_indices, check_is_registered, load_metadata

NUM_CLASSES_KEY = "MODEL.RETINANET.NUM_CLASSES"
ROI_NUM_CLASSES_KEY = "MODEL.ROI_HEADS.NUM_CLASSES"
_TWO_STAGES = ("MaskRCNN", "GeneralizedRCNN", "PanopticFPN")


def dataset_class_names(dataset_name: str) -> list[str]:
    """Class names of a registered dataset. The dataset is read only if its metadata does not state them.

    Raises:
        KeyError: no such dataset; the message names the most similar ones.
        ValueError: the dataset states no class names.
    """
    check_is_registered(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("thing_classes", None) is None:
        load_metadata(dataset_name)
    names = metadata.get("thing_classes", None)
    if not names:
        raise ValueError(f"Dataset {dataset_name!r} has no thing_classes in its metadata; register it with them.")
    return list(names)


def config_class_names(cfg: CfgNode) -> list[str]:
    """Class names of all datasets in DATASETS.TRAIN and DATASETS.TEST; [] if the config names no dataset.

    Raises:
        ValueError: two datasets have different class names; the message shows the difference.
    """
    datasets = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if not datasets:
        return []
    if cfg.MODEL.MASK_ON or cfg.MODEL.KEYPOINT_ON:
        # The reader of the engine may stop at masks and keypoints whose faults the checks report by name.
        for name in datasets:
            if is_registered_coco(name) and MetadataCatalog.get(name).get("thing_classes", None) is None:
                set_registered_classes(name)
    names = dataset_class_names(datasets[0])
    for other in datasets[1:]:
        other_names = dataset_class_names(other)
        if other_names != names:
            raise ValueError(_difference(datasets[0], names, other, other_names))
    return names


def config_category_ids(cfg: CfgNode) -> list[int]:
    """Ids of the classes in the annotation file of the first dataset, in the order of the class names.

    Empty if the config names no dataset, or its first dataset has no such file, or not an id for each class.
    """
    datasets = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if not datasets:
        return []
    names = dataset_class_names(datasets[0])
    contiguous = category_indices(datasets[0])
    ids = {index: category_id for category_id, index in contiguous.items()}
    return [ids[index] for index in range(len(names))] if set(ids) == set(range(len(names))) else []


def num_classes_key(cfg: CfgNode) -> str:
    """The key that the model named by MODEL.META_ARCHITECTURE takes its number of classes from."""
    return ROI_NUM_CLASSES_KEY if cfg.MODEL.META_ARCHITECTURE in _TWO_STAGES else NUM_CLASSES_KEY


def fill_num_classes(cfg: CfgNode, mentioned: Collection[str]) -> None:
    """Set the number of classes of the models of both kinds, with one stage and with two, to that of the datasets.

    Args:
        cfg: a config whose datasets are registered; changed.
        mentioned: the keys that the user gave a value.

    Raises:
        ValueError: as of :func:`resolve_num_classes`, for the key that the model reads. The other key may hold any
            value, because a config that Detectron2 has written names both.
    """
    # The default of META_ARCHITECTURE has two stages. If the user did not choose it, the check must not depend on it.
    key = num_classes_key(cfg) if "MODEL.META_ARCHITECTURE" in mentioned else NUM_CLASSES_KEY
    if key == ROI_NUM_CLASSES_KEY and "ROI_HEADS" not in cfg.MODEL:
        key = NUM_CLASSES_KEY
    count = resolve_num_classes(cfg, key in mentioned, key)
    if not config_class_names(cfg):
        return
    for section in ("RETINANET", "ROI_HEADS"):
        if section in cfg.MODEL:
            cfg.MODEL[section].NUM_CLASSES = count


def resolve_num_classes(cfg: CfgNode, num_classes_is_set: bool, key: str = NUM_CLASSES_KEY) -> int:
    """The value that MODEL.RETINANET.NUM_CLASSES, or another `key`, must have for the datasets of `cfg`.

    Args:
        cfg: a config whose datasets are registered.
        num_classes_is_set: whether the user gave the key a value, in a file or on the command line.
        key: a key of the section MODEL with a number of classes.

    Returns:
        The datasets' number of classes; the config's value if it names no dataset.

    Raises:
        ValueError: the datasets disagree with each other or with the value that the user set.
    """
    names = config_class_names(cfg)
    value = cfg.MODEL[key.split(".")[1]].NUM_CLASSES
    if not names:
        return value
    if num_classes_is_set and value != len(names):
        dataset = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST][0]
        raise ValueError(
            f"{key} is {value}, but dataset {dataset!r} has {len(names)} classes: {', '.join(names)}. "
            f"Remove the key (it is then taken from the data) or set it to {len(names)}."
        )
    return len(names)


def _difference(first, first_names, second, second_names):
    only_first = [n for n in first_names if n not in second_names]
    only_second = [n for n in second_names if n not in first_names]
    if only_first or only_second:
        detail = f"only in {first!r}: {only_first}; only in {second!r}: {only_second}"
    else:
        detail = f"the same names in another order: {first_names} and {second_names}"
    return (
        f"Datasets {first!r} ({len(first_names)} classes) and {second!r} ({len(second_names)} classes) "
        f"disagree on their classes: {detail}. Give both the same CLASSES, in DATASETS.CUSTOM or when registering."
    )
