import csv
import json

import pytest
import torch
from PIL import Image

from retinanet_ext.cli.main import main
from retinanet_ext.d2 import build_model
from tests.builders import shapes_config


@pytest.fixture(scope="module")
def run_folder(shapes, tmp_path_factory):
    """A run's folder with its config, and initial weights in place of trained ones."""
    folder = tmp_path_factory.mktemp("run")
    cfg = shapes_config(shapes, folder)
    (folder / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    return folder


def imbalance(folder, *arguments):
    command = ["imbalance", "--config-file", str(folder / "config.yaml")]
    return main([*command, "--weights", str(folder / "model_final.pth"), *map(str, arguments)])


def test_picture_curves_and_shares(run_folder, tmp_path, capsys):
    assert imbalance(run_folder, "--gammas", 0, 2, "--output", tmp_path, "--max-images", 4) == 0
    assert {p.name for p in tmp_path.iterdir()} == {f"imbalance.{suffix}" for suffix in ("png", "csv", "json", "md")}
    with Image.open(tmp_path / "imbalance.png") as picture:
        assert picture.width > picture.height > 500

    content = json.loads((tmp_path / "imbalance.json").read_text())
    assert content["images"] == 4 and content["dataset"].endswith("_val")
    assert content["entries"]["background"] > content["entries"]["foreground"] > 0
    with (tmp_path / "imbalance.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name, by_gamma in content["share_of_loss_in_hardest"].items():
        assert list(by_gamma) == ["0", "2"]
        for gamma, shares in by_gamma.items():
            curve = {
                float(row["fraction_of_entries"]): float(row["cumulative_normalised_loss"])
                for row in rows
                if row["entries"] == name and float(row["gamma"]) == float(gamma)
            }
            assert curve[0.0] == 0.0 and curve[1.0] == 1.0 and sorted(curve.values()) == list(curve.values())
            assert shares["0.1"] == pytest.approx(1 - curve[0.9], abs=1e-6)
            assert shares["0.5"] == pytest.approx(1 - curve[0.5], abs=1e-6)

    printed = capsys.readouterr().out
    share = content["share_of_loss_in_hardest"]["background"]["2"]["0.2"]
    for text in (printed, (tmp_path / "imbalance.md").read_text()):
        assert f"{100 * share:.1f} %" in text and "4 images" in text


def test_another_dataset_and_the_default_folder(run_folder):
    assert imbalance(run_folder, "--dataset", "tiny_shapes_train", "--gammas", "1") == 0
    content = json.loads((run_folder / "imbalance" / "imbalance.json").read_text())
    assert content["images"] == 12 and content["dataset"] == "tiny_shapes_train"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--dataset", "tiny_shapes_tran"], "Did you mean tiny_shapes_train"),
        (["--gammas", "-1"], "gamma"),
        (["--gammas", "1", "1"], "each only once"),
        (["--max-images", "0"], "max_images is 0"),
        (["DATASETS.TEST", "()"], "names no dataset"),
        (["MODEL.DEVICE", "tpu9"], "MODEL.DEVICE"),
        (["MODEL.RETINANET.NUM_CONVS", "2"], "does not fit"),
        (["--weights", "nowhere.pth"], "nowhere.pth"),
    ],
)
def test_wrong_usage(run_folder, tmp_path, capsys, arguments, message):
    assert imbalance(run_folder, "--output", tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dataset_without_foreground(run_folder, tmp_path, capsys):
    """All anchors are much larger than all shapes."""
    sizes = ["MODEL.ANCHOR_GENERATOR.SIZES", "[[512, 513, 514]]"]
    assert imbalance(run_folder, "--output", tmp_path, *sizes, "MODEL.RETINANET.MATCHER.LOW_QUALITY", "never") == 2
    assert "none of the anchors of 6 images is foreground" in capsys.readouterr().err
