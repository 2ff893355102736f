"""Class names of the datasets of a config, and the number of classes that follows from them."""

from retinanet_ext.d2 import CfgNode, MetadataCatalog

from ..registration import category_indices, check_is_registered, load_metadata

NUM_CLASSES_KEY = "MODEL.RETINANET.NUM_CLASSES"


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


def resolve_num_classes(cfg: CfgNode, num_classes_is_set: bool) -> int:
    """The value that MODEL.RETINANET.NUM_CLASSES must have for the datasets of `cfg`.

    Args:
        cfg: a config whose datasets are registered.
        num_classes_is_set: whether the user gave the key a value, in a file or on the command line.

    Returns:
        The datasets' number of classes; the config's value if it names no dataset.

    Raises:
        ValueError: the datasets disagree with each other or with the value that the user set.
    """
    names = config_class_names(cfg)
    value = cfg.MODEL.RETINANET.NUM_CLASSES
    if not names:
        return value
    if num_classes_is_set and value != len(names):
        dataset = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST][0]
        raise ValueError(
            f"{NUM_CLASSES_KEY} is {value}, but dataset {dataset!r} has {len(names)} classes: {', '.join(names)}. "
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
