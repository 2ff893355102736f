"""`retinanet-ext calibrate` and `verify`: from folders of faces to an answer with its error rate, and an exit code."""

import csv
import json
import logging

import cv2
import numpy as np
import pytest
import torch

from retinanet_ext.checkpoint.checkpoint_entries import read_entry
from retinanet_ext.cli.main import main
from retinanet_ext.d2 import build_model
from retinanet_ext.inference.calibration_pairs import ImagePairs
from tests.builders import small_config
from tests.inference.test_embedder import facenet_config

PEOPLE, IMAGES = 8, 5


@pytest.fixture(autouse=True)
def set_up(monkeypatch):
    monkeypatch.setattr(logging.getLogger("retinanet_ext"), "propagate", True)


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Eight folders of five images: a colour pattern for each, with noise."""
    folder, random = tmp_path_factory.mktemp("people"), np.random.default_rng(0)
    for person in range(PEOPLE):
        pattern = random.integers(0, 256, (5, 4, 3)).astype(np.uint8)
        (folder / f"p{person}").mkdir()
        for number in range(IMAGES):
            image = cv2.resize(pattern, (32, 40), interpolation=cv2.INTER_NEAREST).astype(float)
            image = np.clip(image + random.normal(0, 40, image.shape), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / f"p{person}" / f"{number}.png"), image)
    return folder


@pytest.fixture
def face_run(tmp_path):
    """The folder of a run of an untrained FaceNet."""
    torch.manual_seed(0)
    cfg = facenet_config("OUTPUT_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(cfg.dump())
    torch.save({"model": build_model(cfg).state_dict(), "iteration": 3}, tmp_path / "run" / "model_final.pth")
    return tmp_path / "run"


def command(verb, run, *words):
    return main([verb, "--config-file", str(run), "--device", "cpu", *map(str, words)])


def test_from_folders_to_answers(face_run, people, capsys):
    images = [people / "p0" / "0.png", people / "p0" / "1.png"]
    assert command("verify", face_run, *images) == 2
    message = capsys.readouterr().err
    assert "has no calibrated threshold" in message and "retinanet-ext calibrate --config-file" in message
    assert command("calibrate", face_run, "--images", people, "--far", "0.01", "--dry-run") == 0
    assert read_entry(str(face_run / "model_final.pth"), "calibration") is None
    assert command("calibrate", face_run, "--images", people, "--far", "0.01") == 0
    text = capsys.readouterr().out
    same, different = PEOPLE * IMAGES * (IMAGES - 1) // 2, PEOPLE * (PEOPLE - 1) // 2 * IMAGES**2
    assert f"{same} same, {different} different" in text and "bootstrap over 8 identities" in text
    entry = read_entry(str(face_run / "model_final.pth"), "calibration")
    assert entry["num_same"] == same and entry["far"] <= 0.01 and entry["far_target"] == 0.01
    assert torch.load(face_run / "model_final.pth", weights_only=True)["iteration"] == 3
    # Every pair gets the answer, and the exit code, that its distance has in the calibration.
    pairs = ImagePairs.from_folder(str(people))
    for code, chosen in answers_by_distance(face_run, pairs, entry).items():
        assert command("verify", face_run, *(pairs.files[index] for index in pairs.indices[chosen])) == code
        answer = {0: "same", 1: "different", 3: "unsure"}[code]
        text = capsys.readouterr().out
        assert f"{answer}: distance " in text and "asked for 0.01" in text
    assert command("verify", face_run, "--threshold", "0", *images) == 1
    assert command("verify", face_run, "--threshold", "4", *images) == 0


def answers_by_distance(face_run, pairs, entry):
    """Exit code -> a pair whose distance asks for it."""
    import retinanet_ext

    distances = pairs.embed(retinanet_ext.load(face_run, device="cpu"))
    low, high = entry["unsure"]
    kinds = {0: distances <= low - 1e-4, 3: (distances > low + 1e-4) & (distances < high - 1e-4), 1: distances > high}
    assert all(kind.any() for kind in kinds.values())
    return {code: int(np.flatnonzero(kind)[0]) for code, kind in kinds.items()}


def test_pairs_of_a_file_and_groups(face_run, people, tmp_path, capsys):
    drawn = ImagePairs.from_folder(str(people), max_pairs=60)
    assert drawn.same.sum() == 60 and len(drawn.same) == 120
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        for (a, b), same in zip(drawn.indices, drawn.same):
            csv.writer(file).writerow([drawn.image_ids[a], drawn.image_ids[b], int(same)])
    (tmp_path / "groups.csv").write_text("".join(f"p{k},{'odd' if k % 2 else 'even'}\n" for k in range(PEOPLE)))
    words = ["--pairs", tmp_path / "pairs.csv", "--root", people, "--far", "0.1", "--groups", tmp_path / "groups.csv"]
    assert command("calibrate", face_run, *words) == 0
    text = capsys.readouterr().out
    assert "60 same, 60 different" in text and "group odd: " in text
    entry = read_entry(str(face_run / "model_final.pth"), "calibration")
    chosen = ["odd" if int(drawn.image_ids[a][1]) % 2 else "even" for a, _ in drawn.indices[drawn.same]]
    assert entry["groups"]["odd"]["num_same"] == chosen.count("odd")
    both = [(int(drawn.image_ids[a][1]) % 2, int(drawn.image_ids[b][1]) % 2) for a, b in drawn.indices[~drawn.same]]
    assert entry["groups"]["even"]["num_different"] == both.count((0, 0))


def test_names_of_folders_that_contradict_the_pairs_are_no_identities(people, tmp_path):
    (tmp_path / "pairs.csv").write_text("p0/0.png,p1/0.png,1\np0/0.png,p2/0.png,0\n")
    assert ImagePairs.from_file(str(tmp_path / "pairs.csv"), str(people)).identities is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images", "PEOPLE", "--far", "0.0001"], "700 different pairs cannot support a FAR of 0.0001"),
        (["--images", "PEOPLE", "--far", "2"], "--far is 2.0"),
        (["--images", "PEOPLE/p0", "--far", "0.1"], "found no identity"),
        (["--pairs", "FILE", "--root", "PEOPLE", "--far", "0.1"], "'p0/9.png'"),
        (["--dataset", "nowhere", "--far", "0.1"], "'nowhere' is not registered"),
        (["--images", "PEOPLE", "--far", "0.1", "--root", "PEOPLE"], "--root is the folder"),
    ],
)
def test_mistakes_are_named_before_any_work(face_run, people, tmp_path, capsys, words, message):
    (tmp_path / "pairs.csv").write_text("p0/0.png,p0/9.png,1\np0/0.png,p2/0.png,0\n")
    words = [word.replace("PEOPLE", str(people)).replace("FILE", str(tmp_path / "pairs.csv")) for word in words]
    assert command("calibrate", face_run, *words) == 2
    assert message in capsys.readouterr().err


def test_missing_images_are_counted_if_asked(face_run, people, tmp_path, capsys):
    lines = [f"p{k}/0.png,p{k}/1.png,1\np{k}/0.png,p{(k + j) % PEOPLE}/2.png,0\n" for k in range(8) for j in (1, 2)]
    (tmp_path / "pairs.csv").write_text("p0/0.png,p0/9.png,1\n" + "".join(lines))
    words = ["--pairs", tmp_path / "pairs.csv", "--root", people, "--far", "0.1", "DATASETS.ON_MISSING_PAIR", "count"]
    assert command("calibrate", face_run, *words) == 0
    assert "16 same, 16 different, 1 left out" in capsys.readouterr().out


def test_files_that_cannot_hold_a_calibration_are_refused_before_any_work(face_run, people, capsys):
    from safetensors.torch import save_file

    weights = torch.load(face_run / "model_final.pth", weights_only=True)["model"]
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, face_run / "model.safetensors")
    words = ["--weights", face_run / "model.safetensors", "--images", people, "--far", "0.1"]
    assert command("calibrate", face_run, *words) == 2
    assert "only .pth and .pt take entries" in capsys.readouterr().err


def test_weights_that_diverged_are_named_and_not_calibrated(face_run, people, capsys):
    content = torch.load(face_run / "model_final.pth", weights_only=True)
    content["model"]["projection.bias"][0] = torch.nan
    torch.save(content, face_run / "model_final.pth")
    assert command("calibrate", face_run, "--images", people, "--far", "0.1") == 2
    message = capsys.readouterr().err
    assert "projection.bias" in message and "diverged" in message
    assert command("verify", face_run, "--threshold", "1", people / "p0" / "0.png", people / "p0" / "1.png") == 2
    assert "projection.bias" in capsys.readouterr().err


def test_other_crops_than_those_of_the_calibration_are_warned_about(face_run, people, capsys, caplog):
    caplog.set_level(logging.WARNING)
    assert command("calibrate", face_run, "--images", people, "--far", "0.1") == 0
    entry = read_entry(str(face_run / "model_final.pth"), "calibration")
    assert json.loads(entry["input"])["INPUT.FACE.CENTER_CROP"] == 1.0
    images = [people / "p0" / "0.png", people / "p0" / "1.png"]
    command("verify", face_run, *images)
    assert "calibrated with other crops" not in caplog.text
    command("verify", face_run, *images, "INPUT.FACE.CENTER_CROP", "0.5")
    assert "INPUT.FACE.CENTER_CROP was 1.0, now 0.5" in caplog.text


def test_unreadable_images_and_fallbacks_are_named(face_run, people, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("no image")
    assert command("verify", face_run, "--threshold", "1", people / "p0" / "0.png", tmp_path / "text.jpg") == 2
    assert "text.jpg" in capsys.readouterr().err
    words = ["--threshold", "4", people / "p0" / "0.png", people / "p0" / "1.png", "INPUT.FACE.DETECTOR", "cascade"]
    assert command("verify", face_run, *words) == 0
    assert f"no face found in {people / 'p0' / '0.png'}; its centre was taken" in capsys.readouterr().out


def test_a_detector_is_no_face_net_and_a_face_net_no_detector(face_run, people, tmp_path, capsys):
    assert main(["predict", "--config-file", str(face_run), "--input", str(people), "--output", str(tmp_path)]) == 2
    assert "which detects nothing" in capsys.readouterr().err
    cfg = small_config()
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model_final.pth")
    assert command("verify", tmp_path, "a.png", "b.png") == 2
    assert "is the run of a FocalRetinaNet, which gives no embeddings" in capsys.readouterr().err
