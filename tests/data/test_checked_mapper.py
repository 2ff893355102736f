import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinanet_ext.d2 import DatasetMapper, SizeMismatchError
from retinanet_ext.data.checked_mapper import CheckedMapper
from retinanet_ext.inference.threaded_map import map_ahead


def mapper():
    return CheckedMapper(DatasetMapper(is_train=False, augmentations=[], image_format="BGR"))


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(path)
    return {"file_name": str(path), "image_id": 5, "width": 40, "height": 30}


def truncate(record):
    path = Path(record["file_name"])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(record):
    record["file_name"] += ".gone"


def resize(record):
    record["width"] = 41


def test_good_records_pass_through(record):
    assert mapper()(record)["image"].shape == (3, 30, 40)


@pytest.mark.parametrize("damage", [truncate, remove, resize])
def test_bad_files_are_named(record, damage):
    damage(record)
    with pytest.raises(ValueError, match=r"Cannot read .*a\.png.* \(image id 5\).*DATASETS\.ON_BAD_IMAGE drop"):
        mapper()(record)
    with pytest.raises(ValueError, match="DATASETS.CHECK_IMAGES decode, which finds all such files before the run"):
        mapper()(record)


def test_a_decoder_may_raise_any_type(record):
    def decoder(_):
        raise struct.error("unpack requires a buffer of 4 bytes")

    with pytest.raises(struct.error):  # the file itself is whole: something else is wrong
        CheckedMapper(decoder)(record)
    truncate(record)
    with pytest.raises(ValueError, match=r"Cannot read .*a\.png.*unpack requires"):
        CheckedMapper(decoder)(record)


def test_size_mismatch_of_the_engine_is_the_cause(record):
    resize(record)
    with pytest.raises(ValueError) as caught:
        mapper()(record)
    assert isinstance(caught.value.__cause__, SizeMismatchError)


def test_other_errors_are_not_hidden(record):
    def broken(_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        CheckedMapper(broken)(record)


def test_map_ahead_keeps_order_and_is_lazy():
    taken = []

    def items():
        for k in range(100):
            taken.append(k)
            yield k

    results = map_ahead(lambda k: k * k, items(), workers=3, ahead=5)
    assert [next(results) for _ in range(10)] == [k * k for k in range(10)]
    assert len(taken) <= 16
    assert list(results) == [k * k for k in range(10, 100)]


def test_map_ahead_raises_where_the_result_is_due():
    results = map_ahead(lambda k: 1 // k, [2, 1, 0, 1])
    assert next(results) == 0 and next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
