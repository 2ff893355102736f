"""Load the records of a config's datasets and check them."""

import json
import logging
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from retinanet_ext.config.class_count import num_classes
from retinanet_ext.d2 import CfgNode, DatasetCatalog, MetadataCatalog
from retinanet_ext.machine.atomic_file import write_atomically

from .coco_file import read_coco_file
from .doctor.record_checks import check_dataset_dicts
from .doctor.tasks import Tasks, tasks_of
from .empty_images import with_keypoints_to_train, without_empty_images
from .evaluation_file import Change, checked_content
from .record_list import as_record_list
from .registered_coco import is_registered_coco, registered_coco_records
from .registration import annotation_file, check_is_registered

CHECKED_SUFFIX = "+checked"
EVALUATION_FILE = "checked_annotations.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _CheckedDataset:
    """A dataset's records after the checks; pickled, so that callers cannot edit and worker processes not copy them."""

    source: Callable[[], list[dict]]
    settings: tuple
    changed: bool
    left_out: frozenset  # ids of the images that were dropped
    changes: tuple[Change, ...]
    counts: dict[str, int]
    pickled: bytes

    def records(self) -> list[dict]:
        return pickle.loads(self.pickled)


# Dataset name -> (its check, the output folder, the file written there or None if the dataset's own file will do).
_evaluation_files: dict[str, tuple[_CheckedDataset, str, str | None]] = {}
# Dataset name -> its latest check. Repeated evaluations reuse it: a new check opens all images and logs all drops.
_checked_datasets: dict[str, _CheckedDataset] = {}


def load_checked_dicts(cfg: CfgNode, names: Sequence[str], filter_empty: bool) -> list[dict]:
    """Load the records of the datasets ``names`` and check them.

    The policies are ``DATASETS.ON_BAD_ANNOTATION``, ``ON_BAD_IMAGE`` and ``CHECK_IMAGES``. A dataset is read and
    checked once per process, and again only if these, the number of classes or the tasks (MODEL.MASK_ON, KEYPOINT_ON,
    EMBEDDING_ON and their settings) change, or another function is registered under its name.

    Args:
        cfg: the config; class ids are checked against the number of classes of its model.
        names: registered datasets.
        filter_empty: leave out images without objects (crowds do not count). Records without the key ``annotations``
            stay.

    Raises:
        ValueError: ``names`` is empty, a problem falls under the policy ``error``, or no record is left.
    """
    if not names:
        raise ValueError("no dataset is named; give DATASETS.TRAIN or DATASETS.TEST the name of a registered dataset")
    records = [record for name in names for record in _checked_dataset(cfg, name).records()]
    # After the checks, because dropping bad annotations may leave an image without objects.
    return without_empty_images(records, names) if filter_empty else records


def load_training_dicts(cfg: CfgNode) -> list[dict]:
    """The checked records of DATASETS.TRAIN, without the images that the config leaves out of training.

    DATALOADER.FILTER_EMPTY_ANNOTATIONS leaves out those without objects. Whatever that key says, as in Detectron2,
    MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE leaves out those with fewer labelled keypoints.

    Raises:
        ValueError: as of :func:`load_checked_dicts`.
    """
    names = cfg.DATASETS.TRAIN
    records = load_checked_dicts(cfg, names, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    for name in set(names) - set(cfg.DATASETS.TEST):  # frees memory: a training set may be large, and is read only once
        _checked_datasets.pop(name, None)
    min_keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    return with_keypoints_to_train(records, names, min_keypoints)


def dataset_for_evaluation(cfg: CfgNode, name: str) -> str:
    """Return the dataset name to give to an evaluator, so that its ground truth matches the test loader's.

    An evaluator reads the annotation file of a dataset; without a file it converts the dataset's records. If the
    policies dropped or repaired something, or the dataset is a part of a file, this function registers the checked data
    as ``name + "+checked"``, with the metadata of ``name``. Data with a file get a new file, in the output folder:
    without the images that were left out, which would otherwise count as images where nothing was found. The log
    says how many images and annotations were left out.

    Args:
        cfg: the config, as for :func:`load_checked_dicts`. The file is
            ``OUTPUT_DIR/inference/<name>/checked_annotations.json``.
        name: a registered dataset.

    Returns:
        ``name`` itself, if nothing was changed, else the new name.

    Raises:
        ValueError: a problem falls under the policy ``error``, the annotation file is not a COCO file, or the new name
            belongs to another dataset.
    """
    checked = _checked_dataset(cfg, name)
    counts = checked.counts
    if counts["images_left_out"] or counts["annotations_left_out"]:
        logger.warning(
            "Evaluation on %r: %d images, without %d that DATASETS.ON_BAD_IMAGE left out, and without %d annotations "
            "that DATASETS.ON_BAD_ANNOTATION left out of the others",
            name, counts["images"], counts["images_left_out"], counts["annotations_left_out"],
        )  # fmt: skip
    # After the check, because reading the dataset may set json_file.
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file", None) or metadata.get("part_of_json_file", None)
    if not json_file:
        return _register_derived(name, checked, {}) if checked.changed else name
    # The evaluators of other kinds of data need not read COCO files, and Detectron2 also opens paths of its own kinds.
    if metadata.get("evaluator_type", None) != "coco" or not os.path.isfile(json_file):
        return name
    path = _evaluation_file(cfg.OUTPUT_DIR, checked, name, json_file)
    return _register_derived(name, checked, {"json_file": path}) if path else name


def data_counts(cfg: CfgNode, name: str) -> dict[str, int]:
    """Number of images of a checked dataset, and of the images and annotations that the policies left out of it.

    Keys: images, images_left_out, annotations_left_out (from images that stayed).
    """
    return dict(_checked_dataset(cfg, name).counts)


def _evaluation_file(output_dir: str, checked: _CheckedDataset, name: str, json_file: str) -> str | None:
    known, folder, path = _evaluation_files.get(name, (None, None, None))
    if known is checked and folder == output_dir and (path is None or os.path.exists(path)):
        return path
    content = _checked_file_content(checked, name, json_file)
    path = os.path.join(output_dir, "inference", name, EVALUATION_FILE) if content is not None else None
    if content is not None:
        write_atomically(path, json.dumps(content), shared=True)  # each process of a job writes it
    _evaluation_files[name] = (checked, output_dir, path)
    return path


def _checked_file_content(checked: _CheckedDataset, name: str, json_file: str) -> dict | None:
    metadata = MetadataCatalog.get(name)
    # A test set may have no annotations.
    content = read_coco_file(json_file, ["images", "categories"])
    kept = {record.get("image_id") for record in checked.records()}
    if metadata.get("json_file", None):
        # Of the file's images, only those that the checks dropped. The records of some datasets are fewer on purpose.
        kept |= {image["id"] for image in content["images"]} - checked.left_out
    contiguous = metadata.get("thing_dataset_id_to_contiguous_id", None) or {}
    num_keypoints = next(s for s in checked.settings if isinstance(s, Tasks)).num_keypoints
    return checked_content(content, kept, checked.changes, contiguous, num_keypoints)


def _register_derived(name: str, checked: _CheckedDataset, metadata: dict) -> str:
    derived = name + CHECKED_SUFFIX
    registered = DatasetCatalog.data.get(derived)
    metadata = {**_without_files(MetadataCatalog.get(name).as_dict()), **metadata}
    json_file = metadata.get("json_file")
    # Bound methods compare equal if they are bound to the same object. Detectron2's evaluator may have set a json_file.
    if registered == checked.records and json_file in (None, MetadataCatalog.get(derived).get("json_file", None)):
        return derived
    if registered is not None:
        if not isinstance(getattr(registered, "__self__", None), _CheckedDataset):
            raise ValueError(f"Dataset {derived!r} is needed for the checked records of {name!r}; rename your dataset.")
        DatasetCatalog.remove(derived)
        MetadataCatalog.remove(derived)
    DatasetCatalog.register(derived, checked.records)
    MetadataCatalog.get(derived).set(**metadata)
    return derived


def _without_files(metadata: dict) -> dict:
    return {key: value for key, value in metadata.items() if key not in ("name", "json_file", "part_of_json_file")}


def _checked_dataset(cfg: CfgNode, name: str) -> _CheckedDataset:
    settings = (
        cfg.DATASETS.ON_BAD_ANNOTATION,
        cfg.DATASETS.ON_BAD_IMAGE,
        # An evaluation cannot put another image in the place of a damaged one, and reads all images anyway.
        "decode" if cfg.DATASETS.CHECK_IMAGES == "auto" and name in cfg.DATASETS.TEST else cfg.DATASETS.CHECK_IMAGES,
        num_classes(cfg),
        tasks_of(cfg, name),
        None if cfg.DATASETS.ALLOW_FILES_OUTSIDE else MetadataCatalog.get(name).get("image_root", None),
    )
    source = DatasetCatalog.data.get(name)
    known = _checked_datasets.get(name)
    if known is not None and known.source is source and known.settings == settings:
        return known
    on_bad_annotation, on_bad_image, check_images, class_count, tasks, image_root = settings
    dicts, report = check_dataset_dicts(
        _read(name, tasks),
        name,
        MetadataCatalog.get(name).get("thing_classes"),
        on_bad_annotation=on_bad_annotation,
        on_bad_image=on_bad_image,
        check_images=check_images,
        num_classes=class_count,
        tasks=tasks,
        annotation_file=annotation_file(name),
        image_root=image_root,
    )
    _checked_datasets[name] = _CheckedDataset(
        source,
        settings,
        changed=report.changed,
        # Of records with the same id, the first one stays.
        left_out=frozenset(report.left_out) - {record.get("image_id") for record in dicts},
        changes=tuple(report.changes),
        counts={
            "images": len(dicts),
            "images_left_out": report.dropped_images,
            "annotations_left_out": report.dropped_annotations,
        },
        pickled=pickle.dumps(dicts, pickle.HIGHEST_PROTOCOL),
    )
    return _checked_datasets[name]


def _read(name: str, tasks: Tasks) -> list[dict]:
    check_is_registered(name)
    try:
        if tasks and is_registered_coco(name):
            return registered_coco_records(name)
        return as_record_list(DatasetCatalog.get(name), name)
    except FileNotFoundError as error:
        if error.errno is None:  # raised by this package's readers, with a better message
            raise
        folder = os.environ.get("DETECTRON2_DATASETS", "datasets")
        raise FileNotFoundError(
            f"Dataset {name!r}: {error}. Built-in datasets lie in the folder that DETECTRON2_DATASETS names, "
            f"now {folder!r}; DATASETS.CUSTOM registers data that lie elsewhere."
        ) from error
