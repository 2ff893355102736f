import cv2
import numpy as np
import pytest

from retinanet_ext.cli.main import main
from retinanet_ext.data.generated_identities import make_face, write_identities
from retinanet_ext.data.identity_folders import read_identities


def test_an_image_depends_on_its_arguments_alone():
    image = make_face(3, "train", 5, 2, 48)
    make_face(3, "train", 5, 3, 48)
    assert image.shape == (48, 48, 3) and np.array_equal(image, make_face(3, "train", 5, 2, 48))
    for other in ((4, "train", 5, 2), (3, "val", 5, 2), (3, "train", 6, 2), (3, "train", 5, 0)):
        assert not np.array_equal(image, make_face(*other, 48))


def test_a_set_is_written_once_as_folders_of_different_identities(tmp_path):
    root = tmp_path / "faces"
    arguments = ["--output", str(root), "--train", "3", "--val", "2", "--images", "4", "--size", "32"]
    assert main(["identities", *arguments]) == 0
    train, val = (read_identities(root / split, split) for split in ("train", "val"))
    assert [len(files) for files in train.values()] == [4] * 3 and [len(files) for files in val.values()] == [4] * 2
    assert not train.keys() & val.keys()
    image = cv2.imread(str(root / "val" / "val_0001" / "val_0001_0004.png"))
    assert np.array_equal(image, make_face(0, "val", 1, 3, 32))
    assert not write_identities(root, 3, 2, 4, 0, 32)
    with pytest.raises(ValueError, match=r"seed=0 \(asked: 1\)"):
        write_identities(root, 3, 2, 4, 1, 32)
    assert write_identities(root, 3, 2, 4, 1, 32, overwrite=True)
    (root / "train" / "train_0000" / "train_0000_0001.png").unlink()
    with pytest.raises(ValueError, match="changed or went missing"):
        write_identities(root, 3, 2, 4, 1, 32)


def test_a_foreign_folder_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine.txt").touch()
    assert main(["identities", "--output", str(tmp_path)]) == 2
    assert "identities_manifest.json" in capsys.readouterr().err
    assert main(["identities", "--output", str(tmp_path / "new"), "--train", "1"]) == 2
    assert "num_train must be an integer >= 2" in capsys.readouterr().err
