"""Load the records of a config's datasets and check them."""

import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from retinanet_ext.d2 import CfgNode, DatasetCatalog, MetadataCatalog

from .doctor.record_checks import check_dataset_dicts
from .empty_images import without_empty_images

CHECKED_SUFFIX = "+checked"


@dataclass(frozen=True)
class _CheckedDataset:
    """A dataset's records after the checks; pickled, so that callers cannot edit and worker processes not copy them."""

    source: Callable[[], list[dict]]
    settings: tuple
    changed: bool
    pickled: bytes

    def records(self) -> list[dict]:
        return pickle.loads(self.pickled)


# Dataset name -> its latest check. Repeated evaluations reuse it: a new check opens all images and logs all drops.
_checked_datasets: dict[str, _CheckedDataset] = {}


def load_checked_dicts(cfg: CfgNode, names: Sequence[str], filter_empty: bool) -> list[dict]:
    """Load the records of the datasets ``names`` and check them.

    The policies are ``DATASETS.ON_BAD_ANNOTATION``, ``ON_BAD_IMAGE`` and ``CHECK_IMAGES``. A dataset is read and
    checked once per process, and again only if these or the number of classes change, or another function is
    registered under its name.

    Args:
        cfg: the config; class ids are checked against ``MODEL.RETINANET.NUM_CLASSES``.
        names: registered datasets.
        filter_empty: leave out images without objects (crowds do not count), as Detectron2 does in training. Records
            without the key ``annotations`` stay.

    Raises:
        ValueError: ``names`` is empty, a problem falls under the policy ``error``, or no record is left.
    """
    if not names:
        raise ValueError("no dataset is named; give DATASETS.TRAIN or DATASETS.TEST the name of a registered dataset")
    records = [record for name in names for record in _checked_dataset(cfg, name).records()]
    if not filter_empty:
        return records
    for name in names:  # frees memory: a training set may be large, and is read only once
        _checked_datasets.pop(name, None)
    # After the checks, because dropping bad annotations may leave an image without objects.
    return without_empty_images(records, names)


def dataset_for_evaluation(cfg: CfgNode, name: str) -> str:
    """Return the dataset name to give to an evaluator, so that its ground truth matches the test loader's.

    An evaluator reads the annotation file of a dataset; without a file it converts the dataset's records. If the
    policies dropped or clipped something, it must convert the checked records: this function registers them as
    ``name + "+checked"``, with the metadata of ``name``.

    Args:
        cfg: the config, as for :func:`load_checked_dicts`.
        name: a registered dataset.

    Returns:
        ``name`` itself, if it has a ``json_file`` in its metadata or the checks changed nothing, else the new name.

    Raises:
        ValueError: a problem falls under the policy ``error``, or the new name belongs to another dataset.
    """
    checked = _checked_dataset(cfg, name)
    # After the check, because reading the dataset may set json_file.
    if MetadataCatalog.get(name).get("json_file", None) or not checked.changed:
        return name
    derived = name + CHECKED_SUFFIX
    registered = DatasetCatalog.data.get(derived)
    # Bound methods compare equal if they are bound to the same object.
    if registered == checked.records:
        return derived
    if registered is not None:
        if not isinstance(getattr(registered, "__self__", None), _CheckedDataset):
            raise ValueError(f"Dataset {derived!r} is needed for the checked records of {name!r}; rename your dataset.")
        DatasetCatalog.remove(derived)
        MetadataCatalog.remove(derived)
    DatasetCatalog.register(derived, checked.records)
    metadata = MetadataCatalog.get(name).as_dict()
    MetadataCatalog.get(derived).set(**{key: value for key, value in metadata.items() if key != "name"})
    return derived


def _checked_dataset(cfg: CfgNode, name: str) -> _CheckedDataset:
    settings = (
        cfg.DATASETS.ON_BAD_ANNOTATION,
        cfg.DATASETS.ON_BAD_IMAGE,
        cfg.DATASETS.CHECK_IMAGES,
        cfg.MODEL.RETINANET.NUM_CLASSES,
    )
    source = DatasetCatalog.data.get(name)
    known = _checked_datasets.get(name)
    if known is not None and known.source is source and known.settings == settings:
        return known
    on_bad_annotation, on_bad_image, check_images, num_classes = settings
    dicts, report = check_dataset_dicts(
        _read(name),
        name,
        MetadataCatalog.get(name).get("thing_classes"),
        on_bad_annotation=on_bad_annotation,
        on_bad_image=on_bad_image,
        check_images=check_images,
        num_classes=num_classes,
    )
    changed = report.dropped_images + report.dropped_annotations + report.clipped_annotations > 0
    _checked_datasets[name] = _CheckedDataset(source, settings, changed, pickle.dumps(dicts, pickle.HIGHEST_PROTOCOL))
    return _checked_datasets[name]


def _read(name: str) -> list[dict]:
    try:
        return DatasetCatalog.get(name)
    except FileNotFoundError as error:
        if error.errno is None:  # raised by this package's readers, with a better message
            raise
        folder = os.environ.get("DETECTRON2_DATASETS", "datasets")
        raise FileNotFoundError(
            f"Dataset {name!r}: {error}. Built-in datasets lie in the folder that DETECTRON2_DATASETS names, "
            f"now {folder!r}; DATASETS.CUSTOM registers data that lie elsewhere."
        ) from error
