"""Samplers and loaders of the embedded engine, side by side with Detectron2's: the same records in the same order."""

import itertools

import pytest
import torch

from retinanet_ext.lite import comm as lite_comm
from retinanet_ext.lite import data as lite_data
from retinanet_ext.lite.cfg_node import get_cfg as lite_get_cfg
from retinanet_ext.lite.data import samplers as lite_samplers

REASON = "Detectron2 is not installed: nothing to compare with"
d2_data = pytest.importorskip("detectron2.data", reason=REASON)
d2_config = pytest.importorskip("detectron2.config", reason=REASON)
d2_build = pytest.importorskip("detectron2.data.build", reason=REASON)
d2_samplers = pytest.importorskip("detectron2.data.samplers", reason=REASON)
d2_comm = pytest.importorskip("detectron2.utils.comm", reason=REASON)

SAMPLERS = (lite_samplers, d2_samplers)


def _first(sampler, count):
    return list(itertools.islice(iter(sampler), count))


@pytest.fixture
def pretend(monkeypatch):
    """Makes both engines treat this process as one of several."""

    def set_world(rank, world_size):
        for comm in (lite_comm, d2_comm):
            monkeypatch.setattr(comm, "get_rank", lambda: rank)
            monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
            monkeypatch.setattr(comm, "shared_random_seed", lambda: 0)
        monkeypatch.setattr(d2_build, "get_world_size", lambda: world_size)  # imported there by name

    return set_world


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("rank, world_size", [(0, 1), (0, 3), (2, 3)])
@pytest.mark.parametrize("seed", [0, 42, 2**31 - 1])
def test_training_sampler(pretend, shuffle, rank, world_size, seed):
    pretend(rank, world_size)
    ours, theirs = (_first(s.TrainingSampler(11, shuffle=shuffle, seed=seed), 50) for s in SAMPLERS)
    assert ours == theirs


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("rank, world_size", [(0, 1), (1, 2)])
def test_repeat_factor_sampler(pretend, shuffle, rank, world_size):
    pretend(rank, world_size)
    factors = torch.tensor([1.0, 2.5, 1.3, 3.0, 0.4, 1.9])
    ours, theirs = (_first(s.RepeatFactorTrainingSampler(factors, shuffle=shuffle, seed=7), 100) for s in SAMPLERS)
    assert ours == theirs


@pytest.mark.parametrize("sqrt", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 1.0])
def test_repeat_factors(threshold, sqrt):
    categories = [[0], [0, 0, 1], [0, 2], [0], [], [1, 1], [0, 3, 2], [0], [0], [0]]
    records = [{"annotations": [{"category_id": c, "iscrowd": c == 3} for c in found]} for found in categories]
    ours, theirs = (
        s.RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, threshold, sqrt=sqrt)
        for s in SAMPLERS
    )
    assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@pytest.mark.parametrize("size, world_size", [(1, 1), (10, 1), (10, 3), (9, 3), (2, 4)])
def test_inference_sampler(pretend, size, world_size):
    seen = []
    for rank in range(world_size):
        pretend(rank, world_size)
        ours, theirs = (s.InferenceSampler(size) for s in SAMPLERS)
        assert list(ours) == list(theirs) and len(ours) == len(theirs)
        seen += list(ours)
    assert seen == list(range(size))


def _records(count=23):
    # A mix of wide, high and square images; most have annotations.
    sizes = [(30, 20), (20, 30), (25, 25), (40, 10), (10, 11)]
    return [
        {"image_id": i, "width": sizes[i % 5][0], "height": sizes[i % 5][1], "file_name": f"{i}.png",
         "annotations": [{"category_id": i % 3, "iscrowd": 0}] * (i % 4)}
        for i in range(count)
    ]  # fmt: skip


def _same(record):
    return record


def _train_batches(engine, samplers, count, **kwargs):
    records = _records()
    loader = engine.build_detection_train_loader(
        dataset=records, mapper=_same, sampler=samplers.TrainingSampler(len(records), seed=5), **kwargs
    )
    return list(itertools.islice(iter(loader), count))


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("rank, world_size", [(0, 1), (1, 2)])
def test_train_batches(pretend, grouping, rank, world_size):
    pretend(rank, world_size)
    ours, theirs = (
        _train_batches(engine, samplers, 30, total_batch_size=4, aspect_ratio_grouping=grouping)
        for engine, samplers in ((lite_data, lite_samplers), (d2_data, d2_samplers))
    )
    assert ours == theirs
    assert {len(batch) for batch in ours} == {4 // world_size}


@pytest.mark.parametrize("grouping", [True, False])
def test_train_batches_with_workers(grouping):
    kwargs = {"total_batch_size": 3, "aspect_ratio_grouping": grouping}
    ours = _train_batches(lite_data, lite_samplers, 12, num_workers=2, **kwargs)
    assert ours == _train_batches(d2_data, d2_samplers, 12, **kwargs)


@pytest.mark.parametrize("grouping", [True, False])
def test_finite_sampler_drops_what_is_left_over(grouping):
    kwargs = {"total_batch_size": 4, "aspect_ratio_grouping": grouping, "mapper": _same}
    kwargs["sampler"] = torch.utils.data.SequentialSampler(range(23))
    ours = list(lite_data.build_detection_train_loader(dataset=_records(), **kwargs))
    assert ours == list(d2_data.build_detection_train_loader(dataset=_records(), **kwargs))


def test_train_loader_from_config():
    name = "contract loader"
    batches = []
    for engine, samplers, get_cfg in (
        (lite_data, lite_samplers, lite_get_cfg),
        (d2_data, d2_samplers, d2_config.get_cfg),
    ):
        engine.DatasetCatalog.register(name, _records)
        engine.MetadataCatalog.get(name).thing_classes = ["a", "b", "c"]
        cfg = get_cfg()
        cfg.merge_from_list(["DATASETS.TRAIN", (name,), "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0])
        kept = engine.get_detection_dataset_dicts(name)
        sampler = samplers.TrainingSampler(len(kept), seed=3)
        loader = engine.build_detection_train_loader(cfg, mapper=_same, sampler=sampler)
        batches.append(list(itertools.islice(iter(loader), 20)))
        engine.DatasetCatalog.remove(name)
        engine.MetadataCatalog.remove(name)
    assert batches[0] == batches[1]
    assert all(record["annotations"] for batch in batches[0] for record in batch)


def test_loader_arguments_are_passed_on():
    options = {"num_workers": 1, "prefetch_factor": 4, "persistent_workers": True, "timeout": 30}
    kwargs = {"total_batch_size": 3, "aspect_ratio_grouping": False, **options}
    ours = _train_batches(lite_data, lite_samplers, 4, **kwargs)
    assert ours == _train_batches(d2_data, d2_samplers, 4, **kwargs)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_test_batches(batch_size):
    ours, theirs = (
        list(engine.build_detection_test_loader(dataset=_records(), mapper=_same, batch_size=batch_size))
        for engine in (lite_data, d2_data)
    )
    assert ours == theirs
    assert sum(len(batch) for batch in ours) == 23
