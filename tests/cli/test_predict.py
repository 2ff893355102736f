import json
import logging

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from retinanet_ext.cli.main import main
from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import build_model
from retinanet_ext.inference.progress_report import ProgressReport
from retinanet_ext.inference.sources import find_sources
from retinanet_ext.inference.trained_model import find_weights

# A small model; with random weights and a high prior probability, it detects something everywhere.
CONFIG = """
MODEL:
  META_ARCHITECTURE: FocalRetinaNet
  MASK_ON: False
  WEIGHTS: ""
  CLASS_NAMES: [ant, bee, fly]
  BACKBONE: {NAME: build_retinanet_resnet_fpn_backbone}
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, OUT_FEATURES: [res3, res4, res5]}
  FPN: {IN_FEATURES: [res3, res4, res5], OUT_CHANNELS: 16}
  ANCHOR_GENERATOR: {SIZES: [[8], [16], [32], [64], [128]]}
  RETINANET: {NUM_CLASSES: 3, NUM_CONVS: 1, PRIOR_PROB: 0.6, TOPK_CANDIDATES_TEST: 20}
INPUT: {MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 128}
TEST: {DETECTIONS_PER_IMAGE: 5}
"""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run's folder with its config and its final weights."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text(CONFIG)
    torch.manual_seed(0)
    model = build_model(load_config(str(folder / "config.yaml"), ["MODEL.DEVICE", "cpu"]))
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    return folder


@pytest.fixture
def photos(tmp_path):
    """A folder with three images of different kinds and sizes, one in a subfolder, and a text file."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for name, size in (("a.jpg", (48, 64)), ("more/b.png", (70, 50)), ("c.tif", (40, 40))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def predict(run_folder, output, *arguments):
    config = str(run_folder / "config.yaml")
    return main(["predict", "--config-file", config, "--device", "cpu", "--output", str(output), *map(str, arguments)])


def test_folder_to_pictures_and_coco_json(run_folder, photos, tmp_path):
    assert predict(run_folder, tmp_path / "out", "--input", photos) == 0
    written = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*"))
    assert written == ["a.jpg", "c.tif.png", "more/b.png", "predictions.json"]
    with Image.open(tmp_path / "out" / "more" / "b.png") as picture, Image.open(photos / "more" / "b.png") as photo:
        assert picture.size == (50, 70)
        assert np.abs(np.asarray(picture).astype(int) - np.asarray(photo)).max() > 50  # something was drawn
    coco = COCO(tmp_path / "out" / "predictions.json")
    assert coco.dataset["categories"] == [{"id": k + 1, "name": n} for k, n in enumerate(["ant", "bee", "fly"])]
    assert {(i["file_name"], i["width"], i["height"]) for i in coco.imgs.values()} == {
        (str(photos / "a.jpg"), 64, 48), (str(photos / "more/b.png"), 50, 70), (str(photos / "c.tif"), 40, 40),
    }  # fmt: skip
    assert coco.anns
    for detection in coco.anns.values():
        image = coco.imgs[detection["image_id"]]
        x, y, w, h = detection["bbox"]
        assert 0 <= x <= x + w <= image["width"] + 1e-3 and 0 <= y <= y + h <= image["height"] + 1e-3
        assert detection["score"] > 0.5 and detection["file_name"] == image["file_name"]


def built_config(run_folder, photos, tmp_path, monkeypatch, *arguments, flags=()):
    """The config that ``predict`` builds its model from."""

    class Stop(Exception):
        pass

    def stop(cfg, **_):
        raise Stop(cfg)

    monkeypatch.setattr("retinanet_ext.inference.trained_model.Predictor", stop)
    config = ["--config-file", str(run_folder / "config.yaml"), "--output", str(tmp_path / "out")]
    with pytest.raises(Stop) as caught:
        main(["predict", *config, "--input", str(photos), *flags, "--", *arguments])
    return caught.value.args[0]


@pytest.mark.parametrize(
    ("flags", "overrides", "expected"),
    [
        ([], [], 0.5),
        ([], ["MODEL.RETINANET.SCORE_THRESH_TEST", "0.1"], 0.1),
        (["--score-threshold", "0.3"], ["MODEL.RETINANET.SCORE_THRESH_TEST", "0.1"], 0.3),
        (["--score-threshold", "0"], [], 0.0),
    ],
)
def test_a_flag_wins_over_an_override_and_that_over_the_default(
    run_folder, photos, tmp_path, monkeypatch, flags, overrides, expected
):
    cfg = built_config(run_folder, photos, tmp_path, monkeypatch, *overrides, flags=flags)
    assert expected == cfg.MODEL.RETINANET.SCORE_THRESH_TEST


@pytest.mark.parametrize(
    ("flags", "overrides", "expected"),
    [
        ([], [], "cuda"),
        ([], ["MODEL.DEVICE", "cpu"], "cpu"),
        ([], ["MODEL.DEVICE", "cuda:1"], "cuda:1"),
        (["--device", "auto"], ["MODEL.DEVICE", "cpu"], "cuda"),
        (["--device", "cpu"], ["MODEL.DEVICE", "cuda"], "cpu"),
    ],
)
def test_devices(run_folder, photos, tmp_path, monkeypatch, flags, overrides, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cfg = built_config(run_folder, photos, tmp_path, monkeypatch, *overrides, flags=flags)
    assert expected == cfg.MODEL.DEVICE


def test_a_thin_image_is_skipped(run_folder, photos, tmp_path, caplog):
    Image.fromarray(np.zeros((1, 4000, 3), np.uint8)).save(photos / "b.png")
    assert predict(run_folder, tmp_path / "out", "--input", photos) == 1
    images = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    assert [image["file_name"] for image in images] == [str(photos / n) for n in ("a.jpg", "c.tif", "more/b.png")]
    assert "b.png: ValueError: an image of 4000x1 (width x height) is too thin" in caplog.text


def detections(folder):
    return [
        (a["image_id"], a["category_id"], *np.round([a["score"], *a["bbox"]], 3))
        for a in json.loads((folder / "predictions.json").read_text())["annotations"]
    ]


def test_threshold_batches_and_overrides(run_folder, photos, tmp_path):
    same_size = tmp_path / "same"
    same_size.mkdir()
    rng = np.random.default_rng(1)
    for k in range(3):
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(same_size / f"{k}.png")
    options = ["--input", same_size, "--no-pictures"]
    assert predict(run_folder, tmp_path / "one", "--batch-size", 1, *options) == 0
    assert predict(run_folder, tmp_path / "three", "--batch-size", 3, *options) == 0
    assert [p.name for p in (tmp_path / "one").iterdir()] == ["predictions.json"]
    one = detections(tmp_path / "one")
    assert len(one) == 15 and np.allclose(one, detections(tmp_path / "three"), atol=2e-3)
    assert predict(run_folder, tmp_path / "none", "--score-threshold", 1.0, *options) == 0
    assert detections(tmp_path / "none") == []
    assert predict(run_folder, tmp_path / "two", *options, "--", "TEST.DETECTIONS_PER_IMAGE", 2) == 0
    assert len(detections(tmp_path / "two")) == 6


def test_unreadable_files_are_skipped_and_reported(run_folder, photos, tmp_path, caplog):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 not much of a picture")
    (tmp_path / "empty").mkdir()
    caplog.set_level(logging.INFO)
    inputs = ["--input", photos, tmp_path / "gone.jpg", tmp_path / "empty"]
    assert predict(run_folder, tmp_path / "out", *inputs) == 1
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]) == 3
    assert "Skipped 3 of the inputs" in caplog.text
    for part in ("broken.jpg: ", "gone.jpg: no such file or folder", "empty: no images or videos in this folder"):
        assert part in caplog.text


def test_video(run_folder, tmp_path):
    clip = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"mp4v"), 10.0, (64, 48))
    for k in range(5):
        writer.write(np.full((48, 64, 3), 40 * k, np.uint8))
    writer.release()
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    assert predict(run_folder, tmp_path / "out", "--input", clip, tmp_path / "bad.mp4") == 1
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["clip.json", "clip.mp4"]
    capture = cv2.VideoCapture(str(tmp_path / "out" / "clip.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 5 and capture.get(cv2.CAP_PROP_FPS) == 10
    assert capture.read()[1].shape == (48, 64, 3)
    coco = COCO(tmp_path / "out" / "clip.json")
    assert [image["frame"] for image in coco.imgs.values()] == [0, 1, 2, 3, 4]
    assert all(image["file_name"] == str(clip) for image in coco.imgs.values()) and coco.anns


def test_a_video_of_thin_frames_is_skipped(run_folder, tmp_path, caplog):
    clip = tmp_path / "thin.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 10.0, (2000, 2))
    writer.write(np.zeros((2, 2000, 3), np.uint8))
    writer.release()
    assert predict(run_folder, tmp_path / "out", "--input", clip) == 1
    assert "thin.avi: an image of 2000x2 (width x height) is too thin" in caplog.text


def test_a_video_does_not_take_the_name_of_the_results_of_the_images(tmp_path):
    for name in ("predictions.mp4", "more/predictions.avi"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    sources, _ = find_sources([tmp_path], tmp_path / "out")
    assert [s.name for s in sources] == ["more/predictions.avi", "predictions_2.mp4"]
    (tmp_path / "predictions.mp4").rename(tmp_path / "predictions.jpg")
    assert [s.name for s in find_sources([tmp_path], tmp_path / "out")[0]] == [
        "more/predictions.avi",
        "predictions.jpg",
    ]


def test_sources_keep_names_apart(tmp_path):
    for name in ("x/a.jpg", "x/a.png", "y/a.jpg", "x/out/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    sources, problems = find_sources([tmp_path / "x", tmp_path / "y" / "a.jpg"], tmp_path / "x" / "out")
    assert [(s.path.relative_to(tmp_path).as_posix(), s.name) for s in sources] == [
        ("x/a.jpg", "a.jpg"), ("x/a.png", "a_2.png"), ("y/a.jpg", "a_3.jpg"),
    ]  # fmt: skip
    assert problems == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--score-threshold", "1.5"], "--score-threshold is 1.5; legal: 0 to 1"),
        (["--batch-size", "0"], "--batch-size is 0; legal: 1 or more"),
        (["--weights", "gone.pth"], "The weights gone.pth do not exist"),
        (["--", "MODEL.RETINANET.NUM_CLASS", "3"], "MODEL.RETINANET.NUM_CLASSES"),
        (["--", "MODEL.RETINANET.NUM_CLASSES", "4"], "NUM_CLASSES is 4, but MODEL.CLASS_NAMES has 3: ant, bee, fly"),
        (["--", "MODEL.RETINANET.NUM_CONVS", "2"], "not loaded: head"),
    ],
)
def test_wrong_arguments(run_folder, photos, tmp_path, capsys, arguments, message):
    assert predict(run_folder, tmp_path / "out", "--input", photos, *arguments) == 2
    assert message in capsys.readouterr().err


def test_pictures_never_overwrite_inputs(run_folder, photos, capsys):
    assert predict(run_folder, photos, "--input", photos / "a.jpg") == 2
    assert "would overwrite an input" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none(run_folder, photos, tmp_path, capsys):
    assert predict(run_folder, tmp_path / "out", "--input", photos, "--device", "cuda") == 2
    assert "finds no CUDA device" in capsys.readouterr().err


def test_which_weights(tmp_path):
    cfg = load_config(None, ["MODEL.WEIGHTS", "https://host/start.pkl", "OUTPUT_DIR", str(tmp_path / "out")])
    config = tmp_path / "config.yaml"
    assert find_weights(config, cfg, None) == "https://host/start.pkl"
    for name in ("out/model_final.pth", "out/model_best.pth", "model_final.pth", "model_best.pth"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        assert find_weights(config, cfg, None) == str(tmp_path / name)
    overrides = ["MODEL.WEIGHTS", "https://host/start.pkl"]
    assert find_weights(config, cfg, None, overrides) == "https://host/start.pkl"
    final = str(tmp_path / "out" / "model_final.pth")
    assert find_weights(config, cfg, final, overrides) == final
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = "", "nowhere"
    with pytest.raises(FileNotFoundError, match="No model_best.pth or model_final.pth in .*elsewhere or nowhere; name"):
        find_weights(tmp_path / "elsewhere" / "config.yaml", cfg, None)


def test_without_a_terminal_progress_is_logged_every_ten_seconds(monkeypatch, caplog):
    """A clock by hand: 4 s for each of six images, so that lines come after 12 and 24 s."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    with caplog.at_level(logging.INFO), ProgressReport(6, "image") as progress:
        for _ in range(6):
            now[0] += 4.0
            progress.update()
    assert [record.getMessage() for record in caplog.records] == [
        "3 of 6 images, 0.2 images/s", "6 of 6 images, 0.2 images/s",
    ]  # fmt: skip


def test_the_best_score_is_named_when_nothing_is_found(run_folder, photos, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        predict(run_folder, tmp_path / "all", "--input", photos, "--score-threshold", "0", "--no-pictures")
        best = max(a["score"] for a in json.loads((tmp_path / "all" / "predictions.json").read_text())["annotations"])
        caplog.clear()
        predict(run_folder, tmp_path / "none", "--input", photos, "--score-threshold", "0.99", "--no-pictures")
    assert f"{best:.3g}" in caplog.text and "--score-threshold" in caplog.text


def test_predictions_keep_the_category_ids_of_the_data(run_folder, photos, tmp_path):
    """COCO's zebra is 24 and its knife 49; numbered anew, they would be other classes."""
    out = tmp_path / "out"
    predict(run_folder, out, "--input", photos, "--no-pictures", "--", "MODEL.CLASS_IDS", "[1, 24, 49]")
    content = json.loads((out / "predictions.json").read_text())
    assert {c["id"]: c["name"] for c in content["categories"]} == {1: "ant", 24: "bee", 49: "fly"}
    ids = {a["category_id"] for a in content["annotations"]}
    assert ids and ids <= {1, 24, 49}
