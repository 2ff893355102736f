"""Loaders of the embedded engine: exact resume, independence of the number of workers, clean shut-down, errors."""

import gc
import itertools
import logging
import multiprocessing
import os
import random

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet_ext.lite import comm
from retinanet_ext.lite.cfg_node import get_cfg
from retinanet_ext.lite.data import (
    DatasetCatalog,
    DatasetMapper,
    InferenceSampler,
    MetadataCatalog,
    RepeatFactorTrainingSampler,
    TrainingSampler,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from retinanet_ext.lite.data import transforms as T
from retinanet_ext.lite.data.train_loader import SerializedList
from retinanet_ext.lite.structures import BoxMode

NAME = "loader test"


@pytest.fixture(autouse=True)
def clean_catalogs():
    yield
    for name in (NAME, NAME + " 2"):
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Seven small images, wide and high, with one box each."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    made = []
    for i in range(7):
        width, height = [(30, 20), (20, 30), (25, 25)][i % 3]
        path = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8)).save(path)
        box = {"bbox": [2.0, 3, 10 + i, 9], "bbox_mode": BoxMode.XYWH_ABS, "category_id": i % 2, "iscrowd": 0}
        made.append({"file_name": str(path), "width": width, "height": height, "image_id": i, "annotations": [box]})
    return made


def _mapper():
    augmentations = [T.RandomCrop("relative_range", (0.5, 0.5)), T.ResizeShortestEdge((16, 40)), T.RandomFlip()]
    return DatasetMapper(True, augmentations=augmentations, image_format="BGR")


def _loader(records, **kwargs):
    arguments = {"mapper": _mapper(), "total_batch_size": 2, "seed": 3, **kwargs}
    return build_detection_train_loader(dataset=records, **arguments)


def _take(loader, count):
    return list(itertools.islice(iter(loader), count))


def _assert_same_batches(left, right):
    assert len(left) == len(right) > 0
    for one, other in zip(itertools.chain(*left), itertools.chain(*right)):
        assert one["image_id"] == other["image_id"]
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["instances"].gt_boxes.tensor, other["instances"].gt_boxes.tensor)


# ---- reproducible data


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_continues_the_stream(records, grouping, num_workers):
    unbroken = _take(_loader(records, aspect_ratio_grouping=grouping), 12)
    resumed = _loader(records, aspect_ratio_grouping=grouping, num_workers=num_workers)
    resumed.start_batch = 7
    np.random.seed(99)  # the state left by earlier code must not matter
    _assert_same_batches(_take(resumed, 5), unbroken[7:])


def test_start_batch_may_be_set_after_the_loader_is_built_but_counts_from_the_next_iteration(records):
    loader = _loader(records)
    first = _take(loader, 3)
    loader.start_batch = 1
    _assert_same_batches(_take(loader, 2), first[1:])


def test_skipping_reads_no_image(records):
    read = []

    def note(record):
        read.append(record["image_id"])
        return record

    loader = _loader(records, mapper=note)
    loader.start_batch = 50
    _take(loader, 1)
    assert len(read) == 2


def test_a_record_is_augmented_anew_each_time(records):
    batches = _take(_loader(records, aspect_ratio_grouping=False, total_batch_size=1), 28)
    shapes = {batch[0]["image"].shape for batch in batches if batch[0]["image_id"] == 0}
    assert len(shapes) > 1


def test_another_seed_is_another_stream(records):
    order = [[s["image_id"] for s in b] for b in _take(_loader(records), 8)]
    assert order == [[s["image_id"] for s in b] for b in _take(_loader(records, seed=3), 8)]
    assert order != [[s["image_id"] for s in b] for b in _take(_loader(records, seed=4), 8)]


@pytest.mark.parametrize("name", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_a_seed_set_later_is_as_good_as_one_given(records, name):
    DatasetCatalog.register(NAME, lambda: records)
    cfg = get_cfg()
    cfg.merge_from_list(["DATASETS.TRAIN", (NAME,), "SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 0])
    cfg.merge_from_list(["SEED", 3, "DATALOADER.SAMPLER_TRAIN", name])
    given = build_detection_train_loader(cfg, mapper=_mapper())
    cfg.SEED = 8
    later = build_detection_train_loader(cfg, mapper=_mapper())
    later.seed = 3
    _assert_same_batches(_take(later, 8), _take(given, 8))


def test_a_sampler_with_its_own_seed_keeps_it(records):
    loader = _loader(records, sampler=TrainingSampler(7, seed=1))
    loader.seed = 4
    assert (loader.seed, loader.sampler.seed) == (4, 1)


def test_a_mapper_of_keypoints_needs_the_flip_map_of_its_training_data():
    cfg = get_cfg()
    cfg.MODEL.KEYPOINT_ON = True
    cfg.DATASETS.TRAIN = ("coco_2017_train",)
    with pytest.raises(AttributeError, match="coco_2017_train.*no 'keypoint_names'"):
        DatasetMapper(cfg, is_train=True)
    DatasetMapper(cfg, is_train=False)  # reads no keypoints
    cfg.DATASETS.TRAIN = ("keypoints_coco_2017_train",)
    assert DatasetMapper(cfg, is_train=True).keypoint_hflip_indices[:3] == [0, 2, 1]


def test_boxes_are_made_from_masks_only_where_masks_are_used():
    with pytest.raises(ValueError, match="recompute_boxes.*needs use_instance_mask"):
        DatasetMapper(True, augmentations=[], image_format="BGR", recompute_boxes=True)


def test_global_random_states_are_left_alone(records):
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    def mapper(record):
        draw()
        return record

    expected = []
    for iterations in (0, 3):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        if iterations:
            _take(_loader(records, mapper=mapper), iterations)
            list(build_detection_test_loader(dataset=records, mapper=len))
        expected.append(draw())
    assert expected[0] == expected[1]


def _random_numbers(record):
    return random.random(), float(np.random.rand()), float(torch.rand(1))


def test_random_numbers_of_a_mapper_do_not_depend_on_workers(records):
    alone, with_workers = (_take(_loader(records, mapper=_random_numbers, num_workers=n), 6) for n in (0, 2))
    assert alone == with_workers
    assert len(set(itertools.chain(*alone))) == 12


def test_processes_share_out_the_stream_of_one(records, monkeypatch):
    kwargs = {"aspect_ratio_grouping": False, "mapper": _mapper()}
    alone = _take(_loader(records, total_batch_size=2, **kwargs), 6)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        share = _take(_loader(records, total_batch_size=2, **kwargs), 6)
        _assert_same_batches(share, [[batch[rank]] for batch in alone])  # augmentation included


def test_seed_comes_from_the_config(records):
    DatasetCatalog.register(NAME, lambda: records)
    cfg = get_cfg()
    cfg.merge_from_list(["SEED", 3, "DATASETS.TRAIN", (NAME,), "SOLVER.IMS_PER_BATCH", 2])
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0])
    from_config = build_detection_train_loader(cfg, mapper=_mapper())
    _assert_same_batches(_take(from_config, 4), _take(_loader(records), 4))


def test_default_mapper_and_sampler_choice(records):
    DatasetCatalog.register(NAME, lambda: records)
    cfg = get_cfg()
    cfg.merge_from_list(["DATASETS.TRAIN", (NAME,), "SOLVER.IMS_PER_BATCH", 2, "INPUT.MIN_SIZE_TRAIN", (32,)])
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0, "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"])
    loader = build_detection_train_loader(cfg)
    assert isinstance(loader.sampler, RepeatFactorTrainingSampler)
    batch = _take(loader, 1)[0]
    assert [min(sample["image"].shape[1:]) for sample in batch] == [32, 32]
    cfg.DATALOADER.SAMPLER_TRAIN = "Sampler"
    with pytest.raises(ValueError, match="SAMPLER_TRAIN is 'Sampler'; legal values: TrainingSampler, Repeat"):
        build_detection_train_loader(cfg)


def test_one_batch_holds_one_kind_of_image(records):
    for batch in _take(_loader(records), 20):
        assert len({sample["width"] > sample["height"] for sample in batch}) == 1


# ---- records that are refused


def test_another_record_takes_the_place_of_a_refused_one(records):
    def only_even(record):
        return record if record["image_id"] % 2 == 0 else None

    loader = _loader(records, mapper=only_even)
    ids = [sample["image_id"] for batch in _take(loader, 20) for sample in batch]
    assert len(ids) == 40 and all(number % 2 == 0 for number in ids)
    loader.start_batch = 15
    assert [sample["image_id"] for batch in _take(loader, 5) for sample in batch] == ids[30:]


def test_mapper_that_refuses_everything(records, caplog):
    with pytest.raises(ValueError, match="None for 100 records in a row"):
        _take(_loader(records, mapper=lambda record: None), 1)
    assert "None for 3 records in a row" in caplog.text


def test_test_loader_does_not_replace_records(records):
    with pytest.raises(ValueError, match="None for record 0"):
        list(build_detection_test_loader(dataset=records, mapper=lambda record: None))


# ---- worker processes


def _process_id(record):
    return os.getpid()


def test_workers_end_with_the_iterator(records):
    before = set(multiprocessing.active_children())
    iterator = iter(_loader(records, mapper=_process_id, num_workers=2))
    workers = {pid for batch in itertools.islice(iterator, 6) for pid in batch}
    assert len(workers) == 2 and os.getpid() not in workers
    assert len(set(multiprocessing.active_children()) - before) == 2
    del iterator
    gc.collect()
    assert set(multiprocessing.active_children()) == before


def _fail(record):
    raise OSError(f"{record['file_name']} cannot be read as an image")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_of_the_mapper_arrive(records, num_workers):
    with pytest.raises(OSError, match=r"\.png cannot be read as an image"):
        _take(_loader(records, mapper=_fail, num_workers=num_workers), 1)


# ---- test loader


@pytest.mark.parametrize("num_workers", [0, 2])
def test_test_loader_goes_through_all_records_in_order(records, num_workers):
    mapper = DatasetMapper(False, augmentations=[], image_format="BGR")
    loader = build_detection_test_loader(dataset=records, mapper=mapper, batch_size=3, num_workers=num_workers)
    assert [[sample["image_id"] for sample in batch] for batch in loader] == [[0, 1, 2], [3, 4, 5], [6]]
    assert len(loader) == 3


def test_test_loader_from_config(records):
    DatasetCatalog.register(NAME, lambda: [*records, {**records[0], "image_id": 7, "annotations": []}])
    cfg = get_cfg()
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0, "INPUT.MIN_SIZE_TEST", 32])
    loader = build_detection_test_loader(cfg, NAME)
    samples = [sample for batch in loader for sample in batch]
    assert [sample["image_id"] for sample in samples] == list(range(8))  # the image without objects as well
    assert all(min(sample["image"].shape[1:]) == 32 for sample in samples)
    loader = build_detection_test_loader(cfg, NAME, mapper=lambda record: record["image_id"])
    assert list(loader) == [[i] for i in range(8)]


def test_collate_fn(records):
    for build, kwargs in (
        (build_detection_train_loader, {"total_batch_size": 7, "aspect_ratio_grouping": False}),
        (build_detection_test_loader, {"batch_size": 7}),
    ):
        loader = build(dataset=records, mapper=lambda record: record["image_id"], collate_fn=sum, **kwargs)
        assert next(iter(loader)) == sum(range(7))


# ---- datasets


def test_serialized_list():
    elements = [{"a": 1}, [1, 2, 3], "text", None, {"b": np.arange(3)}]
    serialized = SerializedList(elements)
    assert len(serialized) == 5
    assert [serialized[i] for i in range(4)] == elements[:4]
    assert serialized[4]["b"].tolist() == [0, 1, 2]
    serialized[0]["a"] = 2
    assert serialized[0] == {"a": 1}  # each access is a fresh copy
    with pytest.raises(IndexError, match="index 5 is outside 0..4"):
        serialized[5]
    assert list(serialized)[1] == [1, 2, 3]


def test_filter_counts_what_it_drops(records, caplog):
    empty = {**records[0], "annotations": []}
    crowd = {**records[0], "annotations": [{**records[0]["annotations"][0], "iscrowd": 1}]}
    DatasetCatalog.register(NAME, lambda: [empty, *records, crowd])
    with caplog.at_level(logging.INFO):
        kept = get_detection_dataset_dicts([NAME])
    assert kept == records
    assert f"2 of 9 images of {NAME} have no objects" in caplog.text
    assert len(get_detection_dataset_dicts(NAME, filter_empty=False)) == 9


def test_nothing_left_names_the_dataset(records):
    DatasetCatalog.register(NAME, lambda: [{**records[0], "annotations": []}])
    with pytest.raises(ValueError, match="no image of loader test has an object .*FILTER_EMPTY_ANNOTATIONS"):
        get_detection_dataset_dicts(NAME)


def test_several_datasets(records):
    for number, name in enumerate((NAME, NAME + " 2")):
        DatasetCatalog.register(name, lambda number=number: records[number * 3 : number * 3 + 3])
        MetadataCatalog.get(name).thing_classes = ["a", "b"]
    assert get_detection_dataset_dicts([NAME, NAME + " 2"]) == records[:6]
    MetadataCatalog.remove(NAME)
    MetadataCatalog.get(NAME).thing_classes = ["b", "a"]
    with pytest.raises(ValueError, match=r"differ in thing_classes: \['b', 'a'\] and \['a', 'b'\]"):
        get_detection_dataset_dicts([NAME, NAME + " 2"])


def test_no_dataset_and_no_records():
    with pytest.raises(ValueError, match="no dataset is named; list at least one in DATASETS.TRAIN"):
        get_detection_dataset_dicts(())
    DatasetCatalog.register(NAME, list)
    with pytest.raises(ValueError, match="dataset 'loader test' has no records"):
        get_detection_dataset_dicts(NAME)


def test_records_without_annotations_are_not_filtered():
    DatasetCatalog.register(NAME, lambda: [{"file_name": "a.jpg"}])
    assert get_detection_dataset_dicts(NAME) == [{"file_name": "a.jpg"}]


# ---- wrong arguments


def test_wrong_arguments_of_the_train_loader(records, monkeypatch):
    with pytest.raises(ValueError, match="dataset is empty"):
        _loader([])
    with pytest.raises(TypeError, match="map-style dataset, got generator"):
        _loader(iter(r for r in records))
    with pytest.raises(TypeError, match="aspect_ratio_grouping needs a list of records, got SerializedList"):
        _loader(SerializedList(records))
    assert len(_take(_loader(SerializedList(records), aspect_ratio_grouping=False), 1)[0]) == 2
    with pytest.raises(ValueError, match="record 0 .*a.jpg.* has no width and height.*ASPECT_RATIO_GROUPING"):
        _loader([{"file_name": "a.jpg"}])
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="IMS_PER_BATCH.* is 2; .* number of processes, 3"):
        _loader(records)


def test_further_arguments_reach_the_workers(records):
    """A worker's first act is `worker_init_fn`; the samples stay what they are without it."""
    started = torch.zeros(2, dtype=torch.int64).share_memory_()
    options = {"num_workers": 2, "worker_init_fn": lambda rank: started[rank].fill_(1)}
    options |= {"prefetch_factor": 3, "persistent_workers": True}
    _assert_same_batches(_take(_loader(records, **options), 3), _take(_loader(records), 3))
    assert started.tolist() == [1, 1]
    loader = build_detection_test_loader(dataset=records, mapper=_mapper(), **options)
    assert (loader.prefetch_factor, loader.persistent_workers) == (3, True)


def test_further_arguments_that_do_not_exist_or_contradict_are_refused(records):
    for name in ("batch_sampler", "shuffle", "drop_last", "workers"):
        with pytest.raises(TypeError, match=f"build_detection_train_loader has no argument '{name}'.*prefetch_factor"):
            _loader(records, **{name: 1})
        with pytest.raises(TypeError, match=f"build_detection_test_loader has no argument '{name}'.*prefetch_factor"):
            build_detection_test_loader(dataset=records, mapper=_mapper(), **{name: 1})
    with pytest.raises(ValueError, match="num_workers"):
        _loader(records, prefetch_factor=2)


def test_wrong_arguments_of_samplers():
    for sampler in (TrainingSampler, InferenceSampler):
        with pytest.raises(ValueError, match="size is 0"):
            sampler(0)
    with pytest.raises(TypeError, match="got float"):
        TrainingSampler(1.5)
    with pytest.raises(ValueError, match="not all 0"):
        RepeatFactorTrainingSampler(torch.zeros(3))


def test_repeat_factors_by_hand():
    # Category 0 is in 4 of 4 images, category 1 in 1 of 4: its factor is sqrt(0.5 / 0.25).
    shown = [[0], [0, 1], [0], [0]]
    dicts = [{"annotations": [{"category_id": c} for c in categories]} for categories in shown]
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dicts, 0.5)
    torch.testing.assert_close(factors, torch.tensor([1.0, 2**0.5, 1.0, 1.0]))
    drawn = list(itertools.islice(iter(RepeatFactorTrainingSampler(factors, seed=0)), 20_000))
    # Of 3 + sqrt(2) draws per pass, sqrt(2) are image 1.
    assert abs(drawn.count(1) / len(drawn) - 2**0.5 / (3 + 2**0.5)) < 0.01
