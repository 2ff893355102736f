"""Finds the predictions of a run and the ground truth that belongs to them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import DatasetCatalog, MetadataCatalog
from retinanet_ext.data.checked_records import CHECKED_SUFFIX
from retinanet_ext.data.registration import annotation_file, load_metadata, register_custom_datasets
from retinanet_ext.evaluation.coco_tasks import RESULTS_FILE
from retinanet_ext.evaluation.evaluated_dataset import EvaluatedDataset
from retinanet_ext.evaluation.result_files import find_evaluations, read_evaluation, read_result_files

from .run_folder import RunFolder


def find_datasets(run: RunFolder) -> tuple[list[EvaluatedDataset], list[str]]:
    """The datasets with predictions that lie in the folder, and sentences about those that cannot be read."""
    datasets, problems = [], []
    folders = find_evaluations(run.path)
    for folder in folders:
        try:
            data = read_evaluation(folder)
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        # The config and results.json know data by this name, also if the policies have left something out.
        datasets.append(replace(data, name=data.name.removesuffix(CHECKED_SUFFIX)))
    known = {folder.resolve() for folder in folders}
    for path in sorted((run.path / "inference").glob(f"**/{RESULTS_FILE}")):
        if path.parent.resolve() in known:
            continue
        try:
            datasets.append(_with_ground_truth(run, path))
        except Exception as error:  # any type: the registered reader of a dataset may be a user's own
            text = error.args[0] if isinstance(error, KeyError) and error.args else error
            problems.append(f"{path.relative_to(run.path)} is not explained: {text}")
    return datasets, problems


def _with_ground_truth(run: RunFolder, predictions: Path) -> EvaluatedDataset:
    """Predictions of Detectron2's own evaluator, with the annotation file of the dataset that the config names."""
    names = run.test_names
    # Detectron2 writes the predictions of all datasets to one file, so that the last one stays.
    name = next((name for name in names if name == predictions.parent.name), names[-1] if names else None)
    if name is None:
        raise ValueError("config.yaml, which would name the dataset, is missing or cannot be read")
    converted = predictions.parent / f"{name}_coco_format.json"
    file, images = (str(converted), "") if converted.is_file() else registered_files(run, name)
    data = read_result_files(file, predictions, image_root=images)
    data.truth.name = name
    return EvaluatedDataset(name, data.truth, data.predictions, data.protocol, data.image_ids)


def registered_files(run: RunFolder, name: str) -> tuple[str, str]:
    """The annotation file and the folder of the images of a dataset, by the config of the run.

    Raises:
        FileNotFoundError, ValueError, KeyError: it is not registered, or its files are not on this machine.
    """
    registered_source(run, name)
    file = annotation_file(name)
    if file is None:
        raise ValueError(f"the dataset {name!r} has no COCO file on this machine")
    load_metadata(name)
    return file, MetadataCatalog.get(name).get("image_root", None) or ""


def registered_source(run: RunFolder, name: str) -> dict[str, Any] | None:
    """The item of DATASETS.CUSTOM that a dataset comes from, by the config of the run; None for another dataset.

    Raises:
        ValueError, KeyError: it is not registered, and the config does not describe it.
    """
    if name not in DatasetCatalog.list() and (run.path / "config.yaml").is_file():
        register_custom_datasets(load_config(str(run.path / "config.yaml"), datasets=False))
    if name not in DatasetCatalog.list():
        raise ValueError(f"the dataset {name!r} is neither built in nor one of DATASETS.CUSTOM")
    return MetadataCatalog.get(name).get("custom_source", None)
