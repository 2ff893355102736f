"""Registered datasets that are no lists."""

import itertools

import pytest
from torch.utils.data import Dataset, IterableDataset

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import DatasetCatalog, MetadataCatalog
from retinanet_ext.data.checked_records import load_checked_dicts
from retinanet_ext.lite.data import DatasetCatalog as LiteCatalog
from retinanet_ext.lite.data import get_detection_dataset_dicts

pytestmark = pytest.mark.usefixtures("catalogs")

RECORD = {"file_name": "a.jpg", "image_id": 0, "width": 40, "height": 30, "annotations": []}


class Endless(IterableDataset):
    """Fails instead of filling the memory, if it is read."""

    def __iter__(self):
        for number in itertools.count():
            assert number < 1000, "the stream is being read"
            yield dict(RECORD, image_id=number)


class Three(Dataset):
    """Like many map-style datasets, it raises no IndexError."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        assert index < 10, "read beyond its end"
        return dict(RECORD, image_id=index)


def config():
    return load_config(None, ["MODEL.RETINANET.NUM_CLASSES", "1", "DATASETS.CHECK_IMAGES", "none"])


@pytest.mark.parametrize("make", [Endless, lambda: iter(Endless()), lambda: (r for r in [RECORD])])
def test_a_stream_in_the_catalog_is_refused_by_name(make):
    DatasetCatalog.register("stream", make)
    MetadataCatalog.get("stream").set(thing_classes=["cat"])
    with pytest.raises(TypeError, match="dataset 'stream': .* has no length .*must return a list of records"):
        load_checked_dicts(config(), ["stream"], filter_empty=False)


def test_a_map_style_dataset_is_read_to_its_length():
    DatasetCatalog.register("three", Three)
    MetadataCatalog.get("three").set(thing_classes=["cat"])
    assert [r["image_id"] for r in load_checked_dicts(config(), ["three"], filter_empty=False)] == [0, 1, 2]


def test_lite_itself():
    LiteCatalog.register("lite_stream", Endless)
    LiteCatalog.register("lite_three", Three)
    try:
        with pytest.raises(TypeError, match="dataset 'lite_stream': .*has no length"):
            get_detection_dataset_dicts("lite_stream", filter_empty=False)
        assert len(get_detection_dataset_dicts("lite_three", filter_empty=False)) == 3
    finally:
        LiteCatalog.remove("lite_stream")
        LiteCatalog.remove("lite_three")
