from itertools import combinations

import numpy as np
import pytest

from retinanet_ext.embedding.pair_drawing import different_pairs, same_pairs
from retinanet_ext.embedding.pairs import (
    Pairs,
    draw_pairs,
    match_pairs,
    read_lfw_pairs,
    read_pair_table,
    read_pairs,
    write_lfw_pairs,
    write_pair_table,
)


def test_lfw_has_6000_pairs_in_10_folds_and_is_written_byte_for_byte(shared_data, tmp_path):
    pairs = read_lfw_pairs(shared_data / "lfw_pairs.txt")
    assert len(pairs) == 6000 and pairs.num_folds == 10
    for fold in range(10):
        assert pairs.same[pairs.fold == fold].sum() == 300 and (pairs.fold == fold).sum() == 600
    assert pairs.first[0] == "Abel_Pacheco/Abel_Pacheco_0001.jpg"
    assert pairs.second[0] == "Abel_Pacheco/Abel_Pacheco_0004.jpg"
    assert pairs.first[-1] == "Slobodan_Milosevic/Slobodan_Milosevic_0002.jpg"
    assert pairs.second[-1] == "Sok_An/Sok_An_0001.jpg"
    people = [[name.split("/")[0] for name in names] for names in (pairs.first, pairs.second)]
    assert [a == b for a, b in zip(*people, strict=True)] == pairs.same.tolist()
    write_lfw_pairs(tmp_path / "pairs.txt", pairs)
    assert (tmp_path / "pairs.txt").read_bytes() == (shared_data / "lfw_pairs.txt").read_bytes()


def test_a_file_with_one_number_is_one_fold(tmp_path):
    path = tmp_path / "pairsDevTest.txt"
    path.write_text("2\nAnn\t1\t2\nBo\t3\t1\nAnn\t1\tBo\t2\nCy\t4\tAnn\t3\n")
    pairs = read_pairs(path)
    assert pairs.same.tolist() == [True, True, False, False] and pairs.fold.tolist() == [0] * 4
    assert pairs.second.tolist() == ["Ann/Ann_0002.jpg", "Bo/Bo_0001.jpg", "Bo/Bo_0002.jpg", "Ann/Ann_0003.jpg"]
    write_lfw_pairs(tmp_path / "again.txt", pairs)
    assert (tmp_path / "again.txt").read_bytes() == path.read_bytes()


def test_names_of_files_that_exist_are_taken(tmp_path):
    for name in ("s1/1.pgm", "s1/2.PGM", "Müller/Müller_0001.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    path = tmp_path / "pairs.txt"
    path.write_text("1\ns1\t1\t2\ns1\t1\tMüller\t1\n", encoding="utf-8")
    pairs = read_pairs(path, tmp_path)
    assert pairs.first.tolist() == ["s1/1.pgm", "s1/1.pgm"]
    assert pairs.second.tolist() == ["s1/2.PGM", "Müller/Müller_0001.png"]
    write_lfw_pairs(tmp_path / "again.txt", pairs)
    assert (tmp_path / "again.txt").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1"),
        ("10 300\nAnn\t1\t2\n", "6000 lines after the first one; found 1"),
        ("1\nAnn\t1\nAnn\t1\tBo\t2\n", "line 2: found 'Ann"),
        ("1\nAnn\t1\t2\nAnn\t1\tBo\n", "line 3: found .*name, number, name, number"),
        ("1\nAnn\t1\ttwo\nAnn\t1\tBo\t1\n", "line 2"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(tmp_path, text, message):
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_lfw_pairs(tmp_path / "pairs.txt")


def test_a_table_of_paths(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text(f'first,second,same,fold\na/1.png,"b, c/2.png",0,3\n{tmp_path}/faces/a/1.png,a/2.png,same,1\n')
    pairs = read_pairs(path, tmp_path / "faces")
    assert pairs == Pairs.of(["a/1.png", "a/1.png"], ["b, c/2.png", "a/2.png"], [False, True], [3, 1])
    write_pair_table(tmp_path / "again.csv", pairs)
    assert read_pair_table(tmp_path / "again.csv") == pairs


def test_folds_of_a_table_without_them_are_balanced(tmp_path):
    lines = [f"a/{i}.png\tb/{i}.png\t{int(i % 3 == 0)}" for i in range(60)]
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    pairs = read_pairs(tmp_path / "pairs.txt", folds=5, seed=1)
    assert len(pairs) == 60
    for fold in range(5):
        assert pairs.same[pairs.fold == fold].tolist().count(True) == 4 and (pairs.fold == fold).sum() == 12


@pytest.mark.parametrize("line", ["a/1.png,b/1.png", "a/1.png,b/1.png,maybe", "a,b,1,x", ",b,1"])
def test_a_bad_line_of_a_table_is_named(tmp_path, line):
    (tmp_path / "pairs.csv").write_text(f"a/1.png,a/2.png,1{',0' if line.count(',') == 3 else ''}\n{line}\n")
    with pytest.raises(ValueError, match="line 2"):
        read_pair_table(tmp_path / "pairs.csv")


IDENTITIES = [0, 0, 0, 1, 1, 2, 3, 3, 3, 3]
IDS = [f"p{identity}/{index}.pgm" for index, identity in enumerate(IDENTITIES)]


def test_all_pairs_are_the_pairs_of_a_plain_loop():
    pairs = draw_pairs(IDS, IDENTITIES, folds=3, seed=5)
    found = {frozenset(pair): same for *pair, same in zip(pairs.first, pairs.second, pairs.same.tolist(), strict=True)}
    assert len(found) == len(pairs) == 45
    assert found == {frozenset(p): p[0].split("/")[0] == p[1].split("/")[0] for p in combinations(IDS, 2)}
    for kind, count in ((True, 10), (False, 35)):
        sizes = np.bincount(pairs.fold[pairs.same == kind], minlength=3)
        assert sizes.sum() == count and sizes.max() - sizes.min() <= 1


def test_drawn_pairs_follow_from_the_seed_and_not_from_the_order_of_the_images():
    pairs = draw_pairs(IDS, IDENTITIES, same=6, different=9, folds=3, seed=0)
    shuffled = np.random.RandomState(1).permutation(len(IDS))
    ids, names = [IDS[i] for i in shuffled], [f"n{IDENTITIES[i]}" for i in shuffled]
    again = draw_pairs(ids, names, same=6, different=9, folds=3, seed=0)
    assert pairs == again and pairs.same.sum() == 6 and len(pairs) == 15
    assert pairs != draw_pairs(IDS, IDENTITIES, same=6, different=9, folds=3, seed=1)
    # Written down once: another machine must draw the same.
    assert list(zip(pairs.first, pairs.second, strict=True))[:3] == FIRST_PAIRS


FIRST_PAIRS = [("p0/0.pgm", "p0/2.pgm"), ("p0/0.pgm", "p0/1.pgm"), ("p0/2.pgm", "p3/9.pgm")]


def test_pairs_of_many_images_are_drawn_without_listing_all():
    labels = np.repeat(np.arange(3000), 2)
    random = np.random.RandomState(0)
    pairs = different_pairs(labels, 4000, random)
    assert len(np.unique(pairs, axis=0)) == 4000 and (pairs[:, 0] < pairs[:, 1]).all()
    assert (labels[pairs[:, 0]] != labels[pairs[:, 1]]).all()
    few = np.zeros(4000, dtype=np.int64)
    pairs = same_pairs(few, 3000, random)
    assert len(np.unique(pairs, axis=0)) == 3000 and pairs.max() < 4000 and (pairs[:, 0] < pairs[:, 1]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"same": 11}, "11 same pairs are asked for, but the images give only 10"),
        ({"different": 36}, "only 35"),
        ({"same": 5, "folds": 6}, "6 folds"),
        ({"same": "some"}, "legal"),
    ],
)
def test_impossible_draws_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw_pairs(IDS, IDENTITIES, **{"folds": 2, **options})


def test_one_image_per_identity_gives_no_same_pairs():
    with pytest.raises(ValueError, match="0 pairs of the same"):
        draw_pairs(["a/1.png", "b/1.png"], [0, 1], folds=2)


def test_a_missing_image_is_named_or_counted():
    pairs = Pairs.of(["a/1", "a/1", "gone/3"], ["a/2", "b/1", "b/1"], [1, 0, 0], [0, 1, 1])
    with pytest.raises(ValueError, match="1 of 3 pairs .*'gone/3'.*ON_MISSING_PAIR count"):
        match_pairs(pairs, ["b/1", "a/2", "a/1"], what="faces")
    matched = match_pairs(pairs, ["b/1", "a/2", "a/1"], "count")
    assert matched.num_missing == 1 and matched.indices.tolist() == [[2, 1], [2, 0]]
    assert matched.same.tolist() == [True, False] and matched.fold.tolist() == [0, 1]
    with pytest.raises(ValueError, match="relative to the dataset's ROOT"):
        match_pairs(pairs, ["elsewhere/b/1"], "count")
