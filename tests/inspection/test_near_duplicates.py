"""Hashes of images and the search for twins, against brute force and against known changes of a picture."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from retinanet_ext.inspection.datasets.image_facts import ImageTable, difference_hash, examine_images, image_facts
from retinanet_ext.inspection.datasets.near_duplicates import (
    LEAK,
    OTHER_DATASET,
    SAME_DATASET,
    Twin,
    find_twins,
    similar_pairs,
)
from tests.faults.bad_dataset import picture, save


def test_search_finds_the_same_pairs_as_a_comparison_of_all():
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 2**64, 60, dtype=np.uint64)
    flips = [np.bitwise_or.reduce(np.uint64(1) << rng.choice(64, n, False).astype(np.uint64)) for n in range(1, 9)]
    hashes = np.unique(np.concatenate([centres, *(centres ^ flip for flip in flips)]))
    found = {}
    for pairs, distances in similar_pairs(hashes):
        for (a, b), distance in zip(pairs.tolist(), distances.tolist()):
            found[min(a, b), max(a, b)] = distance
    values = hashes.tolist()
    expected = {
        (a, b): bin(values[a] ^ values[b]).count("1")
        for a in range(len(values)) for b in range(a + 1, len(values)) if bin(values[a] ^ values[b]).count("1") <= 4
    }  # fmt: skip
    assert len(expected) > 200 and found == expected


def test_a_larger_distance_than_the_search_finds_is_refused():
    with pytest.raises(ValueError, match="up to 4 bits"):
        next(similar_pairs(np.zeros(2, np.uint64), 5))


def test_the_hash_says_where_a_picture_gets_brighter_to_the_right():
    ramp = Image.fromarray(np.tile(np.arange(0, 252, 14, dtype=np.uint8)[None], (16, 1)))
    assert difference_hash(ramp) == 2**64 - 1
    assert difference_hash(ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_facts_are_those_of_the_upright_picture(tmp_path, orientation):
    turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90"}
    turns |= {7: "TRANSVERSE", 8: "ROTATE_270"}  # the inverse of what a viewer does
    upright = picture(0)
    stored = upright.transpose(Image.Transpose[turns[orientation]]) if orientation in turns else upright
    save(upright, tmp_path / "upright.png")
    save(stored, tmp_path / "stored.png", orientation)
    first, second = image_facts(str(tmp_path / "upright.png")), image_facts(str(tmp_path / "stored.png"))
    assert second.orientation == orientation and second.info.size == first.info.size == (96, 64)
    assert bin(first.hash ^ second.hash).count("1") <= 1
    assert np.abs(first.thumbnail.astype(int) - second.thumbnail).max() <= 1


def table_of(tmp_path, pictures):
    for n, (image, options) in enumerate(pictures):
        image.save(tmp_path / f"{n}.{options.pop('suffix', 'jpg')}", **options)
    return examine_images(sorted(map(str, tmp_path.iterdir())), workers=2)


def test_twins_of_a_changed_picture_and_none_of_others(tmp_path):
    changed = [
        (picture(0), {"quality": 95}),
        (picture(0), {"quality": 30}),
        (picture(0).resize((200, 130)), {"suffix": "png"}),
        (ImageEnhance.Brightness(picture(0)).enhance(1.15), {"quality": 90}),
    ]
    others = [(picture(n), {"quality": 95}) for n in range(1, 6)]
    table = table_of(tmp_path, [*changed, *others])
    twins = find_twins(table, np.zeros(9, int), [False], np.zeros(9, bool))
    assert [(twin.image, twin.where) for twin in twins] == [(n, SAME_DATASET) for n in (1, 2, 3)]
    assert all(0 <= twin.distance <= 4 and twin.partner < twin.image for twin in twins)


def table(hashes, digests, seeds):
    rng = {seed: np.random.default_rng(seed).integers(0, 256, (16, 16), np.uint8) for seed in seeds}
    count = len(hashes)
    return ImageTable(
        [], np.ones(count), digests, np.array(hashes, np.uint64), np.stack([rng[s] for s in seeds]),
        np.zeros(count, bool),
    )  # fmt: skip


def test_places_and_order_of_twins():
    """Images 0 to 2 of the training data, 3 and 4 of more training data, 5 and 6 of the test data."""
    images = table([0, 1, 255, 3, 255, 0, 255 << 40], [b"a", b"b", b"c", b"d", b"e", b"a", b"f"], [1, 1, 2, 1, 9, 1, 2])
    twins = find_twins(images, np.array([0, 0, 0, 1, 1, 2, 2]), [False, False, True], np.zeros(7, bool))
    assert sorted(twins, key=lambda twin: (twin.image, twin.where)) == [
        Twin(1, 0, SAME_DATASET, 1),
        Twin(3, 1, OTHER_DATASET, 1),  # nearer than image 0
        Twin(5, 0, LEAK, -1),  # identical files come before near-duplicates
    ]  # image 4 has the hash of image 2 but another thumbnail, image 6 its thumbnail but another hash


def test_many_frames_of_one_picture_take_bounded_memory():
    count = 600
    images = table([7] * count, [bytes([n % 256, n // 256]) for n in range(count)], [1] * count)
    twins = find_twins(images, np.zeros(count, int), [False], np.zeros(count, bool))
    assert [(twin.image, twin.partner) for twin in twins] == [(n, 0) for n in range(1, count)]
