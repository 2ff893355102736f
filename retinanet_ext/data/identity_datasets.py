"""The datasets of a config whose model embeds identities: their names, over all datasets, and what is refused.

Across datasets an identity is its name. In training its number is the index of its name among the sorted names of all
datasets of DATASETS.TRAIN.
"""

import logging
from collections.abc import Collection, Sequence

from retinanet_ext.d2 import META_ARCH_REGISTRY, CfgNode, MetadataCatalog
from retinanet_ext.embedding import FaceNet

from .checked_records import load_checked_dicts
from .registration import check_is_registered, custom_format, load_metadata

FORMAT = "identities"
NUM_IDENTITIES_KEY = "MODEL.EMBEDDING.NUM_IDENTITIES"
SHARED_KEY = "DATASETS.ALLOW_SHARED_IDENTITIES"
_SHOWN = 10

logger = logging.getLogger(__name__)


def embeds_identities(cfg: CfgNode) -> bool:
    """Whether the config's meta-architecture is FaceNet, or a subclass: it is trained and tested on identities."""
    name = cfg.MODEL.META_ARCHITECTURE
    model = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    return isinstance(model, type) and issubclass(model, FaceNet)


def identity_names(dataset_name: str) -> list[str]:
    """Names of the identities of a dataset, by their number in its records.

    Raises:
        KeyError: no such dataset.
        ValueError: the dataset has no identities; says what to do.
    """
    check_is_registered(dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("identity_names", None) is None:
        load_metadata(dataset_name)
    names = metadata.get("identity_names", None)
    if not names:
        what = custom_format(dataset_name) or "registered in code"
        raise ValueError(
            f"Dataset {dataset_name!r} ({what}) has no identities, which FaceNet needs. Describe it in DATASETS.CUSTOM "
            "with FORMAT identities, or set identity_names in its metadata and identity, an int, in its records; or "
            "choose another MODEL.META_ARCHITECTURE."
        )
    return list(names)


def training_identities(cfg: CfgNode) -> list[str]:
    """The sorted names of all identities of DATASETS.TRAIN; the index of a name is its number in training."""
    return sorted({name for dataset in cfg.DATASETS.TRAIN for name in identity_names(dataset)})


def adapt_to_identities(cfg: CfgNode, mentioned: Collection[str]) -> None:
    """Set MODEL.EMBEDDING.NUM_IDENTITIES from the training data, and check the datasets of the config together.

    Args:
        cfg: a config whose datasets are registered; changed.
        mentioned: the keys that the user gave a value.

    Raises:
        ValueError: a dataset has no identities, the number that the user set is another, or identities are in training
            and test data at once.
    """
    names = training_identities(cfg)
    refuse_shared_identities(cfg)
    count = cfg.MODEL.EMBEDDING.NUM_IDENTITIES
    if names and count != len(names) and NUM_IDENTITIES_KEY in mentioned:
        raise ValueError(
            f"{NUM_IDENTITIES_KEY} is {count}, but DATASETS.TRAIN ({', '.join(cfg.DATASETS.TRAIN)}) has {len(names)} "
            f"identities. Remove the key (it is then taken from the data) or set it to {len(names)}."
        )
    if names:
        cfg.MODEL.EMBEDDING.NUM_IDENTITIES = len(names)


def refuse_identity_data(cfg: CfgNode) -> None:
    """Refuse datasets of FORMAT identities for a model that needs boxes.

    Raises:
        ValueError: names the dataset and the model.
    """
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if custom_format(name) == FORMAT:
            raise ValueError(
                f"Dataset {name!r} has FORMAT {FORMAT}, images without boxes, and MODEL.META_ARCHITECTURE is "
                f"{cfg.MODEL.META_ARCHITECTURE!r}. Set MODEL.META_ARCHITECTURE FaceNet, or name data with boxes."
            )


def refuse_shared_identities(cfg: CfgNode) -> None:
    """Refuse, or by DATASETS.ALLOW_SHARED_IDENTITIES warn of, identities in both DATASETS.TRAIN and DATASETS.TEST.

    Raises:
        ValueError: names the first of them.
    """
    trained = {name: dataset for dataset in cfg.DATASETS.TRAIN for name in identity_names(dataset)}
    for dataset in cfg.DATASETS.TEST:
        shared = [name for name in identity_names(dataset) if name in trained]
        if not shared:
            continue
        message = (
            f"{len(shared)} of the identities of {dataset!r} (DATASETS.TEST) are in the training data too, such as "
            f"{', '.join(f'{name} ({trained[name]})' for name in shared[:_SHOWN])}. The result would not be that of "
            "unknown people"
        )
        if not cfg.DATASETS.ALLOW_SHARED_IDENTITIES:
            raise ValueError(
                f"{message}. Divide the identities, with IDENTITIES or PART in DATASETS.CUSTOM, or set {SHARED_KEY} "
                "True to go on with a warning."
            )
        logger.warning("%s (%s is True)", message, SHARED_KEY)


def load_identity_dicts(cfg: CfgNode, names: Sequence[str], *, training: bool) -> list[dict]:
    """The checked records of datasets of identities.

    Args:
        cfg: the config.
        names: registered datasets.
        training: number the identities over all datasets of DATASETS.TRAIN, as :func:`training_identities` does.

    Raises:
        ValueError: as of :func:`load_checked_dicts`, or a record has no ``identity`` of its dataset.
    """
    index = {name: number for number, name in enumerate(training_identities(cfg))} if training else {}
    records = []
    for dataset in names:
        found = load_checked_dicts(cfg, [dataset], filter_empty=False)
        of_dataset = identity_names(dataset)
        for record in found:
            number = record.get("identity")
            if type(number) is not int or not 0 <= number < len(of_dataset):
                raise ValueError(
                    f"Dataset {dataset!r}: {record.get('file_name')} has identity {number!r}; legal: an integer from 0 "
                    f"to {len(of_dataset) - 1}, the index of its name in the metadata's identity_names."
                )
        records += [{**r, "identity": index[of_dataset[r["identity"]]]} for r in found] if training else found
    return records
