"""Data loaders for training and testing."""

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from retinanet_ext.data.empty_images import with_keypoints_to_train, without_empty_images
from retinanet_ext.data.record_list import as_record_list
from retinanet_ext.machine.processes import images_per_process

from .. import comm
from ..cfg_node import configurable
from .catalog import DatasetCatalog, MetadataCatalog
from .dataset_mapper import DatasetMapper
from .samplers import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler
from .train_loader import (
    Collator,
    Mapper,
    SeededMappedDataset,
    SerializedList,
    TrainLoader,
    aspect_ratio_groups,
    check_loader_options,
    trivial_batch_collator,
)

logger = logging.getLogger(__name__)

TRAINING_SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")


# ---- records of registered datasets


def get_detection_dataset_dicts(
    names: str | Sequence[str], filter_empty: bool = True, min_keypoints: int = 0, *, check_consistency: bool = True
) -> list[dict]:
    """Records of one or more registered datasets, concatenated.

    Args:
        names: dataset name or names.
        filter_empty: leave out images without annotations, or with crowd regions only. Records without the
            key ``annotations`` stay.
        min_keypoints: leave out images with less labelled keypoints than this, counted over all their annotations.
        check_consistency: require the same ``thing_classes`` of all datasets.

    Raises:
        KeyError: a name is not registered.
        TypeError: the function of a dataset returned something without a length, such as an endless stream.
        ValueError: no name is given, a dataset has no records, no record is left, or class names differ.
    """
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ValueError("no dataset is named; list at least one in DATASETS.TRAIN or DATASETS.TEST")
    records = []
    for name in names:
        found = as_record_list(DatasetCatalog.get(name), name)
        if not found:
            raise ValueError(f"dataset {name!r} has no records{_source(name)}")
        records += found
    if check_consistency:
        _check_same_classes(names)
    records = without_empty_images(records, names) if filter_empty else records
    return with_keypoints_to_train(records, names, min_keypoints)


def _source(name: str) -> str:
    json_file = MetadataCatalog.get(name).get("json_file")
    return f" (read from {json_file})" if json_file else ""


def _check_same_classes(names: list[str]) -> None:
    first = MetadataCatalog.get(names[0]).get("thing_classes")
    for name in names[1:]:
        classes = MetadataCatalog.get(name).get("thing_classes")
        if classes != first:
            raise ValueError(
                f"datasets {names[0]!r} and {name!r} differ in thing_classes: {first} and {classes}. "
                "Datasets that are used together need the same classes in the same order"
            )


# ---- training


def _train_loader_from_config(
    cfg, mapper: Mapper | None = None, *, dataset: list | Dataset | None = None, sampler: Sampler | None = None
) -> dict:
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    if dataset is None:
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0,
        )
    return {
        "dataset": dataset,
        "mapper": DatasetMapper(cfg, True) if mapper is None else mapper,
        "sampler": _training_sampler(cfg, dataset, seed) if sampler is None else sampler,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "aspect_ratio_grouping": cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "seed": seed,
    }


def _training_sampler(cfg, dataset: list | Dataset, seed: int) -> Sampler:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    logger.info("training sampler: %s", name)
    if name == "TrainingSampler":
        return TrainingSampler(len(dataset), seed=seed)
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dataset, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
        return RepeatFactorTrainingSampler(factors, seed=seed)
    raise ValueError(f"DATALOADER.SAMPLER_TRAIN is {name!r}; legal values: {', '.join(TRAINING_SAMPLERS)}")


@configurable(from_config=_train_loader_from_config)
def build_detection_train_loader(
    dataset: list | Dataset,
    *,
    mapper: Mapper,
    sampler: Iterable[int] | None = None,
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    collate_fn: Collator | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> TrainLoader:
    """Loader for training. Takes these arguments, or ``(cfg, mapper=None, *, dataset=None, sampler=None)``.

    Args:
        dataset: records, or a map-style dataset of records.
        mapper: turns a record into a sample; if it returns None, another record is taken.
        sampler: indices of this process; a shuffling :class:`TrainingSampler` by default.
        total_batch_size: images per step over all processes.
        aspect_ratio_grouping: whether each batch holds only wide or only high images; needs a list of records, or a
            map-style dataset that can be iterated, with ``width`` and ``height``.
        num_workers: worker processes; 0 loads in this process.
        collate_fn: turns the list of samples into a batch; by default the list is the batch.
        seed: seed of the augmentation and of the default sampler; by default ``cfg.SEED`` if that is not negative,
            else a random seed, equal on all processes.
        kwargs: further arguments of torch's ``DataLoader``, such as ``prefetch_factor`` and ``pin_memory``.

    Returns:
        A loader that can be iterated any number of times; see :class:`TrainLoader`. Tensors in its batches are in
        pinned memory if this process uses CUDA when iteration begins.

    Raises:
        ValueError: ``total_batch_size`` is not divisible by the number of processes; ``dataset`` is empty.
        TypeError: ``dataset`` cannot be indexed, or cannot be grouped; an argument is unknown.
    """
    check_loader_options("build_detection_train_loader", kwargs)
    batch_size = images_per_process(total_batch_size, comm.get_world_size())
    _check_dataset(dataset)
    groups = None
    if aspect_ratio_grouping:
        if not isinstance(dataset, Iterable):
            raise TypeError(
                f"aspect_ratio_grouping needs a list of records, got {type(dataset).__name__}; "
                "pass aspect_ratio_grouping=False"
            )
        groups = aspect_ratio_groups(dataset)
    seed = comm.shared_random_seed() if seed is None else seed
    records = SerializedList(dataset) if isinstance(dataset, list) else dataset
    return TrainLoader(
        SeededMappedDataset(records, mapper, seed),
        TrainingSampler(len(dataset), seed=seed) if sampler is None else sampler,
        batch_size,
        groups=groups,
        num_workers=num_workers,
        collate_fn=collate_fn or trivial_batch_collator,
        options=kwargs,
    )


def _check_dataset(dataset: Any) -> None:
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise TypeError(f"dataset must be a list or a map-style dataset, got {type(dataset).__name__}")
    if len(dataset) == 0:
        raise ValueError("dataset is empty: there is nothing to load")


# ---- testing


class MappedDataset(Dataset):
    """Mapped records, by index."""

    def __init__(self, records: Dataset, mapper: Mapper) -> None:
        self._records = records
        self._mapper = mapper

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Any:
        sample = self._mapper(self._records[index])
        if sample is None:
            raise ValueError(
                f"the mapper returned None for record {index}; only a training loader can take another record instead"
            )
        return sample


def _test_loader_from_config(cfg, dataset_name: str | Sequence[str], mapper: Mapper | None = None) -> dict:
    return {
        "dataset": get_detection_dataset_dicts(dataset_name, filter_empty=False),
        "mapper": DatasetMapper(cfg, False) if mapper is None else mapper,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
    }


@configurable(from_config=_test_loader_from_config)
def build_detection_test_loader(
    dataset: list | Dataset,
    *,
    mapper: Mapper,
    sampler: Sampler | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    collate_fn: Collator | None = None,
    **kwargs: Any,
) -> DataLoader:
    """Loader for testing: every record once, in order. Takes these arguments, or ``(cfg, dataset_name, mapper=None)``.

    Args:
        dataset: records, or a map-style dataset of records.
        mapper: turns a record into a sample.
        sampler: indices of this process; by default an equal share (:class:`InferenceSampler`).
        batch_size: images per batch of this process; the last batch may be smaller.
        num_workers: worker processes; 0 loads in this process.
        collate_fn: turns the list of samples into a batch; by default the list is the batch.
        kwargs: further arguments of torch's ``DataLoader``, such as ``prefetch_factor`` and ``persistent_workers``.

    Returns:
        A loader. Tensors in its batches are in pinned memory if this process uses CUDA when the loader is built.

    Raises:
        ValueError: ``dataset`` is empty; while loading, the mapper returns None.
        TypeError: ``dataset`` cannot be indexed; an argument is unknown.
    """
    check_loader_options("build_detection_test_loader", kwargs)
    _check_dataset(dataset)
    records = SerializedList(dataset) if isinstance(dataset, list) else dataset
    # By default DataLoader draws from the global generator; training would then depend on when it is evaluated.
    options = {"pin_memory": torch.cuda.is_initialized(), "generator": torch.Generator(), **kwargs}
    return DataLoader(
        MappedDataset(records, mapper),
        batch_size=batch_size,
        sampler=InferenceSampler(len(dataset)) if sampler is None else sampler,
        num_workers=num_workers,
        collate_fn=collate_fn or trivial_batch_collator,
        **options,
    )
