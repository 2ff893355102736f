"""Images are refused by their header, and few decoded pixels wait at a time."""

import threading

import numpy as np
import pytest
from PIL import Image

from retinanet_ext.inference.image_pixels import TooManyPixelsError, count_pixels, refuse_large
from retinanet_ext.inference.predictor import read_input
from retinanet_ext.inference.threaded_map import batches_ahead, map_ahead


def test_the_header_alone_says_how_many_pixels_a_file_has(tmp_path):
    path = tmp_path / "large.png"
    Image.new("1", (5000, 4000)).save(path)
    path.write_bytes(path.read_bytes()[:60])  # the header, and none of the pixels
    assert count_pixels(path) == 20_000_000
    assert count_pixels(np.zeros((30, 40, 3), np.uint8)) == 1200
    assert count_pixels(Image.new("RGB", (7, 5))) == 35
    (tmp_path / "text.png").write_text("no image")
    assert count_pixels(tmp_path / "text.png") == count_pixels(tmp_path / "none.png") == count_pixels(None) == 0


def test_a_large_image_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "large.png"
    Image.new("1", (5000, 4000)).save(path)
    path.write_bytes(path.read_bytes()[:60])  # decoding it would fail in another way
    with pytest.raises(TooManyPixelsError, match="20 million pixels, more than INPUT.MAX_PIXELS .1 million.; cut it"):
        read_input(str(path), 1_000_000)
    refuse_large(np.zeros((10, 10, 3), np.uint8), 100)
    with pytest.raises(TooManyPixelsError):
        refuse_large(np.zeros((10, 10, 3), np.uint8), 99)


class Decoder:
    """Counts what its results cost that were computed and not yet taken."""

    def __init__(self, costs):
        self.costs, self.lock, self.waiting, self.most = costs, threading.Lock(), 0, 0

    def __call__(self, index):
        with self.lock:
            self.waiting += self.costs[index]
            self.most = max(self.most, self.waiting)
        return index

    def taken(self, index):
        with self.lock:
            self.waiting -= self.costs[index]


@pytest.mark.parametrize("seed", range(5))
def test_results_in_advance_cost_no_more_than_the_budget(seed):
    costs = np.random.default_rng(seed).integers(1, 60, 200).tolist()
    costs[17] = 500  # more than the budget: it waits alone
    decode, order = Decoder(costs), []
    for index in map_ahead(decode, range(200), workers=3, ahead=16, cost=costs.__getitem__, budget=100):
        order.append(index)
        decode.taken(index)
    assert order == list(range(200))
    # The one that is being handed over is still counted by the decoder.
    assert decode.most <= 500 + 60


def test_without_costs_the_number_in_advance_decides():
    decode = Decoder([1] * 50)
    for index in map_ahead(decode, range(50), workers=2, ahead=4):
        decode.taken(index)
    assert decode.most <= 6


def test_batches_are_short_where_images_are_large():
    costs = [10, 10, 10, 10, 10, 90, 90, 10, 10, 10]
    batches = batches_ahead(lambda index: index, range(10), 2, 3, cost=costs.__getitem__, budget=100)
    assert list(batches) == [[0, 1, 2], [3, 4], [5], [6, 7], [8, 9]]
    assert list(batches_ahead(lambda index: index, range(7), 2, 3)) == [[0, 1, 2], [3, 4, 5], [6]]
