import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from retinanet_ext.embedding import gallery_file
from retinanet_ext.embedding.codes import decode, encode
from retinanet_ext.embedding.gallery import Added, Gallery, Match
from retinanet_ext.embedding.gallery_file import GalleryError, check_integrity, transaction

FACES = 100  # per addition of the writers
WRITERS = Path(__file__).with_name("gallery_writers.py")


def unit(n, dim=16, seed=0):
    values = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return values / values.norm(dim=1, keepdim=True)


def on_circle(*degrees):
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], dim=1).float()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "people.gallery"


def new(file, dim=16, **kwargs):
    return Gallery(file, fingerprint="v1", dim=dim, create=True, **kwargs)


def test_the_distance_to_a_person_is_that_of_the_nearest_face(file):
    gallery = new(file, dim=2, codes=False)
    gallery.add("Anna", on_circle(0, 90), ["a0", "a90"])
    gallery.add("Bert", on_circle(40), ["b40"])
    gallery.add("Carl", on_circle(180), ["c180"])
    # |u - v|^2 = 2 - 2 cos(angle), by hand: 90 against 70 degrees, 40 against 70, 180 against 70.
    expected = [2 - 2 * np.cos(np.deg2rad(angle)) for angle in (20, 30, 110)]
    [matches] = gallery.search(on_circle(70), k=5)
    assert [(match.name, match.source) for match in matches] == [("Anna", "a90"), ("Bert", "b40"), ("Carl", "c180")]
    assert [match.distance for match in matches] == pytest.approx(expected, abs=1e-6)
    assert [match.name for match in gallery.search(on_circle(70), k=3, threshold=0.3)[0]] == ["Anna", "Bert"]
    assert gallery.search(on_circle(70), k=3, threshold=0.01) == [[]]
    assert gallery.search(on_circle(1, 181), k=1)[1][0].name == "Carl"


def test_what_was_added_is_there_for_another_process_and_removed_again(file):
    assert new(file).add("Anna", unit(3), ["x", "y", "z"]) == Added(3, 0)
    gallery = Gallery(file, fingerprint="v1")
    gallery.add("Bert", unit(2, seed=1).numpy())
    assert len(gallery) == 5 and gallery.names() == {"Anna": 3, "Bert": 2} and gallery.dim == 16
    assert gallery.search(unit(3))[1] == [Match("Anna", pytest.approx(0, abs=1e-3), "y")]
    gallery.rename("Anna", "Zoë")
    assert gallery.search(unit(3))[1][0].name == "Zoë"
    assert gallery.remove("Zoe\u0308") == 3  # the same name with a combining accent, as some file systems give it
    assert gallery.names() == {"Bert": 2} and gallery.search(unit(3))[1][0].name == "Bert"


def test_changes_of_others_are_seen(file):
    """The embeddings are kept in memory only until the file changes."""
    first, second = new(file), new(file)
    first.add("Anna", unit(1))
    assert second.search(unit(1))[0][0].name == "Anna"
    faces = second._faces
    assert second.search(unit(1)) and second._faces is faces
    first.remove("Anna")
    first.add("Bert", unit(1))
    assert second.search(unit(1))[0][0].name == "Bert"
    os.replace(new(file.with_name("other")).path, file)
    with pytest.raises(GalleryError, match="is empty"):
        second.search(unit(1))


def test_the_same_files_again_change_nothing(file):
    gallery = new(file)
    gallery.add("Anna", unit(3), ["x", "y", "z"])
    assert gallery.add("Anna", unit(3, seed=1), ["y", "z", "new"]) == Added(1, 2)
    assert len(gallery) == 4
    assert gallery.search(unit(2, seed=1))[0][0].source == "y"
    assert gallery.add("Anna", unit(0), []) == Added(0, 0)


def test_stored_are_128_bytes_and_found_are_the_decoded_codes(file):
    gallery = new(file, dim=128)
    gallery.add("Anna", unit(1, 128))
    with transaction(file) as connection:
        [(blob,)] = connection.execute("SELECT embedding FROM faces")
    assert len(blob) == 128
    query = unit(1, 128, seed=1)
    expected = (query - decode(encode(unit(1, 128)))).double().square().sum().item()
    assert gallery.search(query)[0][0].distance == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("codes", [True, False], ids=["codes", "floats"])
def test_names_with_many_faces_do_not_hide_others(file, codes):
    """Against a loop over all people: the nearest ones are those of two people with hundreds of faces."""
    gallery = new(file, dim=2, codes=codes)
    people = {"Anna": on_circle(*np.linspace(0, 1, 300)), "Bert": on_circle(*np.linspace(1, 2, 300))}
    people |= {f"P{i}": on_circle(10 * i + 20) for i in range(6)}
    for name, embeddings in people.items():
        gallery.add(name, embeddings)
    for degrees in (0, 45, 200):
        query = on_circle(degrees)
        stored = {name: decode(encode(x)) if codes else x for name, x in people.items()}
        nearest = {name: (query - x).double().square().sum(dim=1).min().item() for name, x in stored.items()}
        matches = gallery.search(query, k=4)[0]
        assert [m.name for m in matches] == sorted(nearest, key=nearest.get)[:4]
        assert [m.distance for m in matches] == pytest.approx(sorted(nearest.values())[:4], abs=1e-6)


def test_another_model_is_refused_unless_it_is_compatible(file):
    new(file, description="facenet_nn4, model_best.pth").add("Anna", unit(2))
    with pytest.raises(GalleryError, match=r"made by the model v1 \(facenet_nn4, model_best.pth\), and this is v2"):
        Gallery(file, fingerprint="v2")
    v2 = Gallery(file, fingerprint="v2", compatible=["v1"])
    assert v2.search(unit(1))[0][0].name == "Anna"
    v1 = Gallery(file, fingerprint="v1")
    v2.add("Bert", unit(1, seed=1))
    assert list(v2.models()) == ["v1", "v2"]
    with pytest.raises(GalleryError, match="made by the model v2, and this is v1"):
        v1.search(unit(1))  # opened before
    v2.remove("Bert")
    assert v1.search(unit(1))


def test_embeddings_of_another_size_are_refused(file):
    gallery = new(file)
    gallery.add("Anna", unit(2))
    message = "embeddings have 8 numbers each, but the gallery .*people.gallery has 16, made by v1"
    for use in (lambda: gallery.search(unit(1, 8)), lambda: gallery.add("Bert", unit(1, 8)), lambda: new(file, dim=8)):
        with pytest.raises(GalleryError, match=message):
            use()
    with pytest.raises(GalleryError, match="stores bytes, not float32"):
        new(file, codes=False)


def test_bad_input_is_refused_and_nothing_of_it_is_stored(file):
    gallery = new(file)
    with pytest.raises(GalleryError, match="is empty; add faces"):
        gallery.search(unit(1))
    bad = unit(3)
    bad[1] *= 2
    with pytest.raises(GalleryError, match="embedding 1 has length 2; expected: 1"):
        gallery.add("Anna", bad)
    bad[1] = float("nan")
    with pytest.raises(GalleryError, match="embedding 1 has length nan"):
        gallery.add("Anna", bad)
    with pytest.raises(GalleryError, match="2 embeddings came with 2 sources, 1 distinct"):
        gallery.add("Anna", unit(2), ["x", "x"])
    for name in ("", "  ", "a\nb"):
        with pytest.raises(GalleryError, match="cannot be stored"):
            gallery.add(name, unit(1))
    gallery.add("Anna", unit(1))
    gallery.add("Bert", unit(1))
    with pytest.raises(GalleryError, match="has no name 'Ana'; it has: Anna, Bert"):
        gallery.remove("Ana")
    with pytest.raises(GalleryError, match="has the name 'Bert' already"):
        gallery.rename("Anna", "Bert")
    assert gallery.names() == {"Anna": 1, "Bert": 1}
    with pytest.raises(GalleryError, match="needs the fingerprint"):
        Gallery(file).search(unit(1))


def test_a_file_that_is_no_gallery_is_named(file, tmp_path):
    with pytest.raises(GalleryError, match="there is no gallery .*people.gallery; make one with"):
        Gallery(file)
    assert not file.exists()
    with pytest.raises(GalleryError, match="is a folder"):
        Gallery(tmp_path)
    file.write_bytes(b"")
    with pytest.raises(GalleryError, match="is empty, not a gallery"):
        Gallery(file)
    assert len(new(file)) == 0  # a writer was killed before it had made the tables
    file.write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(GalleryError, match="damaged"):
        new(file)
    file.unlink()
    with sqlite3.connect(file) as other:
        other.execute("CREATE TABLE photos (id)")
    with pytest.raises(GalleryError, match="of another program"):
        new(file)
    other.close()


def test_damage_is_found(file):
    gallery = new(file, dim=128)
    gallery.add("Anna", unit(200, 128))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(GalleryError, match="damaged.*Restore it"):
        Gallery(file, fingerprint="v1")
    # One flipped bit in the bytes of an embedding, which SQLite does not notice.
    position = whole.index(encode(unit(200, 128))[7].numpy().tobytes())
    file.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
    with pytest.raises(GalleryError, match="damaged: the bytes of face 8 are not those"):
        Gallery(file, fingerprint="v1").search(unit(1, 128))


def test_a_newer_format_is_refused(file):
    new(file)
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(GalleryError, match="format 9, written by a newer"):
        Gallery(file)


def opened_with(pragma, monkeypatch):
    connect = sqlite3.connect

    def with_pragma(*args, **kwargs):
        connection = connect(*args, **kwargs)
        connection.execute(pragma)
        return connection

    monkeypatch.setattr(gallery_file.sqlite3, "connect", with_pragma)


def test_a_full_disk_loses_nothing(file, monkeypatch):
    gallery = new(file, dim=128)
    gallery.add("Anna", unit(5, 128))
    with monkeypatch.context() as patch:
        opened_with("PRAGMA max_page_count = 12", patch)
        with pytest.raises(GalleryError, match="the disk is full: nothing of this change was stored"):
            gallery.add("Bert", unit(2000, 128))
    assert gallery.names() == {"Anna": 5}
    check_integrity(file)


def test_what_cannot_be_written_is_named(file, monkeypatch):
    gallery = new(file)
    with monkeypatch.context() as patch:
        opened_with("PRAGMA query_only = 1", patch)
        with pytest.raises(GalleryError, match="read-only"):
            gallery.add("Anna", unit(1))
    with pytest.raises(GalleryError, match="cannot be (opened|made)"):
        new(Path(os.devnull) / "people.gallery")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the root user may write everywhere")
def test_a_gallery_in_a_read_only_folder_is_searched_but_not_changed(file):
    gallery = new(file)
    gallery.add("Anna", unit(1))
    file.chmod(0o444)
    file.parent.chmod(0o555)
    try:
        assert Gallery(file, fingerprint="v1").search(unit(1))[0][0].name == "Anna"
        with pytest.raises(GalleryError, match="read-only"):
            gallery.add("Bert", unit(1))
    finally:
        file.parent.chmod(0o755)


def test_a_second_writer_waits_and_says_when_it_gives_up(file, monkeypatch):
    gallery = new(file)
    monkeypatch.setattr(gallery_file, "BUSY_SECONDS", 0.05)
    with transaction(file, write=True), pytest.raises(GalleryError, match="in use by another writer for 0.05 s"):
        gallery.add("Anna", unit(1))
    assert gallery.add("Anna", unit(1)) == Added(1, 0)


def run_writers(mode, file, rounds):
    """The seeds of the additions that had returned, from the log of the writers."""
    log = file.with_suffix(".log")
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(WRITERS), mode, str(file), str(log), str(rounds)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return [int(line) for line in log.read_text().split("\n")[:-1]]


def stored_seeds(file):
    """seed -> number of faces of that addition in the file."""
    counts = {}
    with transaction(file) as connection:
        for (source,) in connection.execute("SELECT source FROM faces"):
            seed = int(source.split("-")[0])
            counts[seed] = counts.get(seed, 0) + 1
    return counts


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_kill_at_any_moment_loses_nothing(file):
    """Twenty writers are killed. What had been stored is there, and of each addition all faces or none."""
    returned = run_writers("kill", file, 20)
    counts = stored_seeds(file)
    assert returned and set(returned) <= set(counts)
    assert set(counts.values()) == {FACES}
    # An addition may have been stored without its writer having lived to say so, one for each kill at most.
    assert len(counts) <= len(returned) + 20
    gallery = Gallery(file, fingerprint="model", dim=128)  # checks the file
    assert len(gallery) == FACES * len(counts) and gallery.search(unit(1, 128))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_two_writers_at_once_lose_nothing(file):
    returned = run_writers("share", file, 25)
    assert sorted(returned) == [*range(25), *range(1000, 1025)]
    assert stored_seeds(file) == dict.fromkeys(returned, FACES)
    assert len(Gallery(file).names()) == 7
