import os

import numpy as np
import pytest
from PIL import Image

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import DatasetCatalog, MetadataCatalog
from retinanet_ext.data.identity_folders import read_identities, read_identity_list
from retinanet_ext.data.parts import position
from retinanet_ext.data.registration import register_custom_datasets

pytestmark = pytest.mark.usefixtures("catalogs")


def write_faces(root, **counts):
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(1, count + 1):
            Image.fromarray(np.full((8, 6), 10 * index, dtype=np.uint8)).save(root / name / f"{name}_{index:04d}.png")
    return root


def register(item):
    cfg = load_config(None, datasets=False)
    cfg.DATASETS.CUSTOM = [{"NAME": "faces", "FORMAT": "identities", **item}]
    register_custom_datasets(cfg)
    return DatasetCatalog.get("faces")


def test_records_of_folders(tmp_path, caplog):
    write_faces(tmp_path, bo=2, Ann=1)
    (tmp_path / "Müller").mkdir()
    Image.new("RGB", (5, 5)).save(tmp_path / "Müller" / "x.JPG")
    (tmp_path / "README").touch()
    (tmp_path / "bo" / ".DS_Store").touch()
    (tmp_path / "bo" / "more").mkdir()
    (tmp_path / "nobody").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "bo")
    records = register({"ROOT": str(tmp_path)})
    assert MetadataCatalog.get("faces").identity_names == ["Ann", "Müller", "bo", "linked"]
    assert [(r["image_id"], r["identity"]) for r in records] == [
        ("Ann/Ann_0001.png", 0), ("Müller/x.JPG", 1), ("bo/bo_0001.png", 2), ("bo/bo_0002.png", 2),
        ("linked/bo_0001.png", 3), ("linked/bo_0002.png", 3),
    ]  # fmt: skip
    assert all(os.path.samefile(r["file_name"], tmp_path / r["image_id"]) for r in records)
    assert MetadataCatalog.get("faces").evaluator_type == "verification"
    assert "1 folders have no images and are left out, such as nobody" in caplog.text
    assert "README" in caplog.text and "bo/.DS_Store" in caplog.text and "bo/more" in caplog.text


def test_reading_again_agrees_with_what_is_registered(tmp_path):
    write_faces(tmp_path, a=2, b=2)
    first = register({"ROOT": str(tmp_path)})
    assert register({"ROOT": str(tmp_path)}) == first == DatasetCatalog.get("faces")


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({}, "is empty"),
        ({"face.png": b"x"}, "beside each other"),
        ({"train/ann/1.png": b"x", "val/bo/1.png": b"x"}, "train/ann; name the folder of the identities as ROOT"),
        ({"ann/notes.txt": b"x"}, "files that end in .jpg"),
    ],
)
def test_a_root_without_identities_says_what_it_has(tmp_path, layout, message):
    for name, content in layout.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        register({"ROOT": str(tmp_path)})


def test_identities_are_chosen_by_a_list_or_a_file(tmp_path):
    write_faces(tmp_path / "faces", a=1, b=2, c=3)
    assert list(read_identities(tmp_path / "faces", "faces", identities=["c", "a"])) == ["a", "c"]
    (tmp_path / "people.txt").write_text("c\t3\n\nb\n")
    records = register({"ROOT": str(tmp_path / "faces"), "IDENTITIES": str(tmp_path / "people.txt")})
    assert [r["identity"] for r in records] == [0, 0, 1, 1, 1]
    with pytest.raises(FileNotFoundError, match="'bb'.*Did you mean 'b'"):
        read_identities(tmp_path / "faces", "faces", identities=["a", "bb"])
    with pytest.raises(ValueError, match="a more than once"):
        read_identities(tmp_path / "faces", "faces", identities=["a", "a"])
    (tmp_path / "faces" / "d").mkdir()
    with pytest.raises(ValueError, match="have no image in their folder, such as d"):
        read_identities(tmp_path / "faces", "faces", identities=["a", "d"])
    (tmp_path / "people.txt").write_text("\n")
    with pytest.raises(ValueError, match="names no identity"):
        read_identity_list(tmp_path / "people.txt")


def test_parts_by_hash_and_by_seed_divide_the_identities(tmp_path):
    write_faces(tmp_path, **{f"p{i}": 1 for i in range(40)})
    parts = [read_identities(tmp_path, "faces", part=part) for part in ((0, 0.75), (0.75, 1))]
    assert parts[0].keys() == {f"p{i}" for i in range(40) if position(f"p{i}") < 0.75}
    for seed in (0, 1):
        train, test = (read_identities(tmp_path, "faces", part=p, part_seed=seed) for p in ((0, 0.75), (0.75, 1)))
        assert (len(train), len(test)) == (30, 10) and not train.keys() & test.keys()
    assert train.keys() != read_identities(tmp_path, "faces", part=(0, 0.75), part_seed=0).keys()
    with pytest.raises(ValueError, match="PART_SEED makes the shares exact"):
        read_identities(tmp_path, "faces", identities=["p1"], part=(0, 1e-9))


def test_identities_with_few_images_are_left_out_on_request(tmp_path):
    write_faces(tmp_path, a=1, b=2)
    assert list(read_identities(tmp_path, "faces", min_images=2)) == ["b"]
    with pytest.raises(ValueError, match="MIN_IMAGES 3 images; the largest has 2"):
        read_identities(tmp_path, "faces", min_images=3)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"IDENTITIES": []}, "IDENTITIES must be a list"),
        ({"IDENTITIES": [1]}, "quote numbers"),
        ({"MIN_IMAGES": 0}, "MIN_IMAGES must be an integer >= 1"),
        ({"PART": [0.5, 0.2]}, "PART must be"),
        ({"PART_SEED": 1}, "without PART"),
        ({"PAIRS": {"SAME": "some"}}, "PAIRS: SAME must be an integer >= 1, or all"),
        ({"PAIRS": {"FOLDS": 1}}, "FOLDS must be an integer >= 2"),
        ({"PAIRS": {"NUM": 1}}, "unknown key 'NUM'"),
        ({"PAIRS": 3}, "PAIRS must be the path"),
        ({"CLASSES": ["a"]}, "unknown key 'CLASSES'"),
    ],
)
def test_illegal_keys_are_refused_before_a_file_is_read(keys, message):
    with pytest.raises(ValueError, match=message):
        register({"ROOT": "nowhere", **keys})


def test_a_missing_root_is_named():
    with pytest.raises(FileNotFoundError, match="ROOT not found"):
        register({"ROOT": "nowhere"})


def test_pairs_of_a_dataset(tmp_path):
    write_faces(tmp_path / "faces", a=3, b=3, c=2)
    register({"ROOT": str(tmp_path / "faces"), "PAIRS": {"SAME": 4, "DIFFERENT": "all", "FOLDS": 2, "SEED": 3}})
    pairs = MetadataCatalog.get("faces").verification_pairs()
    assert pairs.same.sum() == 4 and (~pairs.same).sum() == 3 * 3 + 3 * 2 + 3 * 2 and pairs.num_folds == 2


def test_pairs_by_default_and_from_a_file(tmp_path):
    write_faces(tmp_path / "faces", a=3, b=3)
    register({"ROOT": str(tmp_path / "faces")})
    pairs = MetadataCatalog.get("faces").verification_pairs()
    assert pairs.same.sum() == 6 and len(pairs) == 15 and pairs.num_folds == 6
    (tmp_path / "pairs.txt").write_text("1\na\t1\t3\na\t2\tb\t1\n")
    cfg = load_config(None, datasets=False)
    item = {"NAME": "others", "FORMAT": "identities", "ROOT": str(tmp_path / "faces")}
    cfg.DATASETS.CUSTOM = [{**item, "PAIRS": str(tmp_path / "pairs.txt")}]
    register_custom_datasets(cfg)
    DatasetCatalog.get("others")
    pairs = MetadataCatalog.get("others").verification_pairs()
    assert pairs.second.tolist() == ["a/a_0003.png", "b/b_0001.png"]


def test_30_people_and_the_other_10(shared_data):
    cfg = load_config(None, datasets=False)
    item = {"FORMAT": "identities", "ROOT": str(shared_data / "att_faces"), "PART_SEED": 0}
    cfg.DATASETS.CUSTOM = [
        {"NAME": "att_train", "PART": [0, 0.75], **item},
        {"NAME": "att_test", "PART": [0.75, 1], "PAIRS": {"SAME": "all", "DIFFERENT": "all", "FOLDS": 10}, **item},
    ]
    register_custom_datasets(cfg)
    assert (len(DatasetCatalog.get("att_train")), len(DatasetCatalog.get("att_test"))) == (300, 100)
    pairs = MetadataCatalog.get("att_test").verification_pairs()
    assert pairs.same.sum() == 450 and (~pairs.same).sum() == 4500
    assert all((pairs.fold == fold).sum() == 495 for fold in range(10))
