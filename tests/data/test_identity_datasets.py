"""Identities over the datasets of a config: what `load_config` fills in and refuses."""

import pytest

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import DatasetCatalog, MetadataCatalog
from retinanet_ext.data.identity_datasets import embeds_identities, load_identity_dicts
from tests.data.test_identity_folders import write_faces

pytestmark = pytest.mark.usefixtures("catalogs")


def write_config(folder, train, test, *lines, architecture="FaceNet", fmt="identities"):
    items = [f"    - {{NAME: {n}, FORMAT: {fmt}, ROOT: {folder / n}}}\n" for n in dict.fromkeys((*train, *test))]
    path = folder / "config.yaml"
    path.write_text(
        f"MODEL:\n  META_ARCHITECTURE: {architecture}\n  DEVICE: cpu\nDATASETS:\n  TRAIN: {list(train)}\n"
        f"  TEST: {list(test)}\n  CUSTOM:\n{''.join(items)}" + "\n".join(lines)
    )
    return str(path)


def test_the_number_of_identities_is_that_of_all_training_data_together(tmp_path):
    write_faces(tmp_path / "one", ann=2, bo=1)
    write_faces(tmp_path / "two", bo=3, al=2)
    write_faces(tmp_path / "val", cy=2)
    path = write_config(tmp_path, ["one", "two"], ["val"])
    cfg = load_config(path)
    assert embeds_identities(cfg) and cfg.MODEL.EMBEDDING.NUM_IDENTITIES == 3
    # al 0, ann 1, bo 2
    records = load_identity_dicts(cfg, cfg.DATASETS.TRAIN, training=True)
    assert [r["identity"] for r in records] == [1, 1, 2, 0, 0, 2, 2, 2]
    assert [r["identity"] for r in load_identity_dicts(cfg, ["two"], training=False)] == [0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="NUM_IDENTITIES is 4, but .* has 3 identities"):
        load_config(path, ["MODEL.EMBEDDING.NUM_IDENTITIES", "4"])
    assert load_config(path, ["MODEL.EMBEDDING.NUM_IDENTITIES", "3"]).MODEL.EMBEDDING.NUM_IDENTITIES == 3


def test_shared_identities_are_refused_or_allowed_with_a_warning(tmp_path, caplog):
    write_faces(tmp_path / "train", ann=1, bo=1, cy=1)
    write_faces(tmp_path / "val", bo=1, cy=1, di=1)
    path = write_config(tmp_path, ["train"], ["val"])
    with pytest.raises(ValueError, match=r"2 of the identities of 'val' .* bo \(train\), cy \(train\).*ALLOW_SHARED"):
        load_config(path)
    load_config(path, ["DATASETS.ALLOW_SHARED_IDENTITIES", "True"])
    assert "2 of the identities of 'val'" in caplog.text


def test_a_model_and_data_that_do_not_fit_are_refused(tmp_path):
    write_faces(tmp_path / "train", ann=1)
    with pytest.raises(ValueError, match="'train' has FORMAT identities.*META_ARCHITECTURE FaceNet"):
        load_config(write_config(tmp_path, ["train"], [], architecture="FocalRetinaNet"))
    (tmp_path / "cells" / "Annotations").mkdir(parents=True)
    (tmp_path / "cells" / "Annotations" / "a.xml").write_text(
        "<annotation><object><name>cell</name></object></annotation>"
    )
    with pytest.raises(ValueError, match=r"'cells' \(voc\) has no identities"):
        load_config(write_config(tmp_path, ["cells"], [], fmt="voc"))


def test_data_registered_in_code_need_names_and_numbers(tmp_path):
    write_faces(tmp_path / "own", ann=1)
    file = str(tmp_path / "own" / "ann" / "ann_0001.png")
    DatasetCatalog.register("own", lambda: [{"file_name": file, "image_id": "x", "identity": 1}])
    opts = ["MODEL.META_ARCHITECTURE", "FaceNet", "DATASETS.TRAIN", "('own',)", "DATASETS.TEST", "()"]
    with pytest.raises(ValueError, match="registered in code.*identity_names"):
        load_config(None, opts)
    MetadataCatalog.get("own").set(identity_names=["ann"])
    with pytest.raises(ValueError, match="ann_0001.png has identity 1; legal: an integer from 0 to 0"):
        load_identity_dicts(load_config(None, opts), ["own"], training=True)


def test_unreadable_images_are_named_or_left_out(tmp_path):
    write_faces(tmp_path / "train", ann=2, bo=2)
    (tmp_path / "train" / "ann" / "ann_0001.png").write_bytes(b"")
    whole = (tmp_path / "train" / "bo" / "bo_0001.png").read_bytes()
    (tmp_path / "train" / "bo" / "bo_0001.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "train" / "bo" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    path = write_config(tmp_path, ["train"], [])
    with pytest.raises(ValueError, match="3 problems in 5 images") as error:
        load_identity_dicts(load_config(path), ["train"], training=True)
    assert all(name in str(error.value) for name in ("ann_0001.png", "bo_0001.png", "gone.png", "ON_BAD_IMAGE drop"))
    cfg = load_config(path, ["DATASETS.ON_BAD_IMAGE", "drop"])
    found = [record["image_id"] for record in load_identity_dicts(cfg, ["train"], training=True)]
    assert found == ["ann/ann_0002.png", "bo/bo_0002.png"]
