"""Operating thresholds from an evaluation to the predictor: the verb, the checkpoint, `predict --thresholds`."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import retinanet_ext
from retinanet_ext.cli.main import main
from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import build_model
from retinanet_ext.inference.class_thresholds import class_thresholds
from retinanet_ext.inference.predictor import Predictor
from tests.cli.test_predict import CONFIG
from tests.evaluation.result_folders import write_evaluation

NAMES = ["ant", "bee", "fly"]
BOX, OTHER = [4, 4, 20, 20], [30, 30, 20, 20]


@pytest.fixture
def run(tmp_path):
    """A run's folder with an evaluation: an ant is found at 0.8 with a false alarm at 0.6, a bee at 0.4, no fly."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(CONFIG.replace("DETECTIONS_PER_IMAGE: 5", "DETECTIONS_PER_IMAGE: 40"))
    torch.manual_seed(0)
    model = build_model(load_config(str(tmp_path / "run" / "config.yaml"), ["MODEL.DEVICE", "cpu"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "cls_score" in name:  # scores of all classes, and of all sizes
                parameter.normal_(std=0.003)
    torch.save({"model": model.state_dict()}, tmp_path / "run" / "model_final.pth")
    objects = [(1, "ant", BOX), (1, "bee", OTHER)]
    found = [(1, "ant", BOX, 0.8), (1, "ant", OTHER, 0.6), (1, "bee", OTHER, 0.4)]
    write_evaluation(tmp_path / "run" / "inference" / "insects", NAMES, objects, found)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "run"


def predict(run, *arguments):
    config = str(run / "config.yaml")
    output = run.parent / "out"
    code = main(["predict", "--config-file", config, "--device", "cpu", "--output", str(output), "--no-pictures",
                 "--input", str(run.parent / "a.png"), *map(str, arguments)])  # fmt: skip
    if code:
        return code, None
    found = json.loads((output / "predictions.json").read_text())["annotations"]
    return code, [{key: value for key, value in one.items() if key != "id"} for one in found]


def test_from_an_evaluation_to_predictions(run, capsys, caplog):
    code, _ = predict(run, "--thresholds", "model")
    assert code == 2 and "model_final.pth has no operating thresholds" in capsys.readouterr().err
    assert main(["thresholds", str(run), "--weights", str(run / "model_final.pth")]) == 0
    shown = capsys.readouterr().out
    assert "best F1" in shown and "no object of this class" in shown and f"stored in {run / 'model_final.pth'}" in shown
    stored = torch.load(run / "model_final.pth", weights_only=True)["operating_thresholds"]
    assert [one["threshold"] for one in stored["classes"]] == [pytest.approx(0.7), pytest.approx(0.4), None]
    assert stored == json.loads((run / "inference" / "insects" / "operating_thresholds.json").read_text())

    everything = predict(run, "--score-threshold", "0.01")[1]
    found = predict(run, "--thresholds", "model")[1]
    limits = {1: 0.7, 2: 0.4, 3: 0.5}  # the fly has none, and gets the default
    assert "No threshold in" in caplog.text and "for fly; 0.5 is taken" in caplog.text
    assert found == [one for one in everything if one["score"] >= limits[one["category_id"]]]
    assert {one["category_id"] for one in everything} == {1, 2, 3} and len(found) < len(everything)


def test_thresholds_of_a_file_or_a_number(run, tmp_path):
    everything = predict(run, "--score-threshold", "0.01")[1]
    scores = sorted(one["score"] for one in everything)
    middle = (scores[len(scores) // 2 - 1] + scores[len(scores) // 2]) / 2
    (tmp_path / "own.json").write_text(json.dumps({"ant": middle, "bee": 0.0, "fly": 1.0}))
    found = predict(run, "--thresholds", tmp_path / "own.json")[1]
    keep = {1: middle, 2: 0.0, 3: 1.0}
    assert found == [one for one in everything if one["score"] >= keep[one["category_id"]]]
    assert predict(run, "--thresholds", middle)[1] == [one for one in everything if one["score"] >= middle]


def test_the_models_own_threshold_stays_the_lower_bound(run, caplog):
    cfg = load_config(str(run / "config.yaml"), ["MODEL.DEVICE", "cpu", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.55"])
    cfg.MODEL.WEIGHTS = str(run / "model_final.pth")
    image = np.asarray(Image.open(run.parent / "a.png"))
    result = Predictor(cfg, thresholds={"ant": 0.1, "bee": 0.9, "fly": 0.6})(image)
    assert "MODEL.RETINANET.SCORE_THRESH_TEST is 0.55, above the thresholds of ant" in caplog.text
    kept = Predictor(cfg)(image)
    limits = torch.tensor([0.1, 0.9, 0.6])
    assert result.scores.tolist() == kept[kept.scores >= limits[kept.pred_classes]].scores.tolist()
    predictor = retinanet_ext.load(run, thresholds=0.3, device="cpu")
    assert predictor.cfg.MODEL.RETINANET.SCORE_THRESH_TEST == 0.3


@pytest.mark.parametrize(("given", "message"), [
    ({"cat": 0.5}, "unknown classes: cat; the model has ant, bee, fly"),
    ({"ant": 1.5}, "class 'ant' has the score threshold 1.5; legal: 0 to 1"),
    ({"ant": "high"}, "the score threshold 'high'"),
    (2.0, "the score threshold 2.0"),
    ("nowhere.json", "nowhere.json does not exist; thresholds are 'model', a number"),
])  # fmt: skip
def test_bad_thresholds_are_named(given, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        class_thresholds(given, NAMES, 0.5)


def test_thresholds_of_other_classes_are_refused(run, tmp_path, capsys):
    other = tmp_path / "other"
    write_evaluation(other, ["ant", "wasp"], [(1, "ant", BOX)], [(1, "ant", BOX, 0.8)])
    assert main(["thresholds", str(other), "--target-precision", "0.9"]) == 0
    assert "precision of at least 0.9" in capsys.readouterr().out
    code, _ = predict(run, "--thresholds", other / "operating_thresholds.json")
    assert code == 2 and "of the classes ant, wasp, but the model has also bee, fly" in capsys.readouterr().err
    (other / "broken.json").write_text("{")
    assert predict(run, "--thresholds", other / "broken.json")[0] == 2
    assert main(["thresholds", str(other), "--target-precision", "2"]) == 2
    assert main(["thresholds", str(tmp_path / "run"), "--dataset", "nothing"]) == 2
    assert "no evaluation of 'nothing'" in capsys.readouterr().err
