"""A run with embeddings: from the identities in a COCO file to a checkpoint, and from there to predictions."""

import json

import pytest
import torch

from retinanet_ext.cli.main import main
from retinanet_ext.inference.trained_model import load
from retinanet_ext.training.trainer import Trainer
from tests.builders import shapes_config
from tests.instance.identified_scenes import write_scenes

TINY = ["MODEL.EMBEDDING_ON", "True", "MODEL.EMBEDDING.DIM", "8", "MODEL.ROI_EMBEDDING_HEAD.NUM_CONV", "1"]
TINY += ["MODEL.ROI_EMBEDDING_HEAD.CONV_DIM", "8", "MODEL.ROI_MASK_HEAD.CONV_DIM", "8", "SOLVER.IMS_PER_BATCH", "4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedding_run")
    items = [write_scenes(folder / name, range(4), count, seed=count, size=96) for name, count in (("a", 8), ("b", 3))]
    words = [*TINY, "DATASETS.CUSTOM", str(items), "DATASETS.TRAIN", "('scenes_a',)", "DATASETS.TEST", "('scenes_b',)"]
    cfg = shapes_config(folder, folder / "run", *words, "INPUT.CROP.ENABLED", "True",
                        file="configs/quick/mask_retinanet.yaml")  # fmt: skip
    (folder / "run").mkdir()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    (folder / "run" / "config.yaml").write_text(cfg.dump())
    return folder


def test_a_run_trains_embeddings_beside_boxes_and_masks(run):
    lines = [json.loads(line) for line in (run / "run" / "metrics.json").read_text().splitlines()]
    assert set().union(*lines) >= {"loss_cls", "loss_box_reg", "loss_mask", "loss_embedding"}
    results = json.loads((run / "run" / "results.json").read_text())
    assert results.keys() >= {"bbox", "segm"}


def test_a_loaded_run_gives_embeddings(run):
    predictor = load(run / "run", score_threshold=0.0, device="cpu")
    result = predictor(str(run / "b" / "1.png"))
    assert len(result) > 0 and result.embeddings.shape == (len(result), 8)
    torch.testing.assert_close(result.embeddings.norm(dim=1), torch.ones(len(result)))
    assert predictor.fingerprint == load(run / "run", device="cpu").fingerprint


def test_predict_writes_embeddings_if_asked_to(run, tmp_path):
    words = ["predict", "--config-file", str(run / "run"), "--input", str(run / "b"), "--score-threshold", "0"]
    words += ["--device", "cpu", "--no-pictures"]
    for flags, has in (([], False), (["--embeddings"], True)):
        assert main([*words, "--output", str(tmp_path / str(has)), *flags]) == 0
        content = json.loads((tmp_path / str(has) / "predictions.json").read_text())
        assert {len(a.get("embedding", ())) for a in content["annotations"]} == {8 if has else 0}


def test_photos_of_objects_fill_a_gallery_that_names_the_detections(run, tmp_path, caplog):
    model = ["--config-file", str(run / "run"), "--device", "cpu"]
    for name, photo in (("anna", "1.png"), ("ben", "2.png")):
        words = ["--gallery", str(tmp_path / "g"), "--name", name, str(run / "a" / photo)]
        opts = ["--opts", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"]
        assert main(["gallery", "add", *model, *words, *opts]) == 0
    assert "1.png: " in caplog.text and "detections; the best one is taken" in caplog.text
    words = ["--input", str(run / "b"), "--score-threshold", "0", "--identify", str(tmp_path / "g")]
    assert main(["predict", *model, *words, "--identify-threshold", "4", "--output", str(tmp_path / "all")]) == 0
    assert main(["predict", *model, *words, "--identify-threshold", "0", "--output", str(tmp_path / "none")]) == 0
    names = {}
    for folder in ("all", "none"):
        annotations = json.loads((tmp_path / folder / "predictions.json").read_text())["annotations"]
        names[folder] = {a["identity"] for a in annotations}
        assert all(0 <= a["identity_distance"] <= 4 for a in annotations)
        assert (tmp_path / folder / "1.png").exists() or (tmp_path / folder / "1.jpg").exists()
    assert names["all"] <= {"anna", "ben"} and names["none"] == {"unknown"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--identify-threshold", "0.5"], "--identify-threshold is 0.5; legal: 0 to 4, together with --identify"),
        (["--identify", "x.gallery", "--identify-threshold", "5"], "--identify-threshold is 5.0; legal: 0 to 4"),
        (["--identify", "x.gallery"], "has no calibrated threshold; name one with --identify-threshold D"),
    ],
)
def test_wrong_arguments(run, tmp_path, capsys, flags, message):
    words = ["predict", "--config-file", str(run / "run"), "--input", str(run / "b"), "--output", str(tmp_path / "o")]
    assert main([*words, "--device", "cpu", *flags]) == 2
    assert message in capsys.readouterr().err
