import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from retinanet_ext.cli.main import main
from retinanet_ext.embedding.contact_sheet import SheetRow, contact_sheets
from retinanet_ext.embedding.gallery import Gallery
from retinanet_ext.inference import trained_model

COLOURS = {"Anna": (200, 20, 20), "Bert": (20, 200, 20), "Zoë": (20, 20, 200)}


class FakeEmbedder:
    """Embeds an image ``(H, W, 3)`` as its mean colour: the people of these tests differ in colour."""

    dim, fingerprint, calibration, faces_not_found, input = 3, "c010ur", None, 0, "centre"
    compatible_with: tuple[str, ...] = ()

    def __init__(self):
        given = SimpleNamespace(MAX_PIXELS=10**6)
        self.cfg = SimpleNamespace(MODEL=SimpleNamespace(WEIGHTS="colours.pth"), INPUT=given)

    def stream(self, images):
        for image in images:
            self.faces_not_found += bool(image.shape[0] == 7)
            mean = torch.from_numpy(image.reshape(-1, 3).mean(axis=0)).float()
            yield mean / mean.norm()


@pytest.fixture(autouse=True)
def embedder(monkeypatch):
    fake = FakeEmbedder()
    monkeypatch.setattr(trained_model, "load", lambda *args, **kwargs: fake)
    return fake


def picture(path, colour, size=(24, 20), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 20, (*size, 3))
    cv2.imencode(".png", (np.array(colour) + noise).astype(np.uint8))[1].tofile(path)
    return path


@pytest.fixture
def people(tmp_path):
    """A folder with a folder of three photos for each of three people."""
    for name, colour in COLOURS.items():
        for number in range(3):
            picture(tmp_path / "people" / name / f"{number}.png", colour, seed=number)
    return tmp_path / "people"


@pytest.fixture
def gallery(tmp_path, people):
    file = tmp_path / "people.gallery"
    assert main(["gallery", "add", "--gallery", str(file), "--config-file", "run", "--images", str(people)]) == 0
    return file


def test_a_gallery_is_made_listed_and_edited(gallery, people, tmp_path, capsys):
    assert Gallery(gallery).names() == {"Anna": 3, "Bert": 3, "Zoë": 3}
    add = ["gallery", "add", "--gallery", str(gallery), "--config-file", "run"]
    carl = picture(tmp_path / "carl.png", (100, 100, 100))
    assert main([*add, "--name", "Carl", str(carl)]) == 0
    assert main([*add, "--name", "Carl", str(carl)]) == 0  # again, which replaces it
    assert main(["gallery", "list", "--gallery", str(gallery)]) == 0
    text = capsys.readouterr().out
    assert "| Carl   | 1" in text and "10 photos; 3 numbers each, as one byte" in text
    assert "model c010ur: colours.pth, crop centre" in text
    assert main(["gallery", "rename", "--gallery", str(gallery), "--name", "Carl", "--to", "Karl"]) == 0
    assert main(["gallery", "remove", "--gallery", str(gallery), "--name", "Karl"]) == 0
    assert main(["gallery", "remove", "--gallery", str(gallery), "--name", "Karl"]) == 2
    assert "has no name 'Karl'; it has: Anna, Bert, Zoë" in capsys.readouterr().err


def test_people_are_identified_and_strangers_are_unknown(gallery, tmp_path, capsys):
    asked = tmp_path / "asked"
    picture(asked / "b.png", COLOURS["Bert"], seed=9)
    picture(asked / "stranger.png", (120, 120, 120))
    (asked / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out.json"
    command = ["identify", "--gallery", str(gallery), "--config-file", "run", "--threshold", "0.2", "--json", str(out)]
    assert main([*command, str(asked)]) == 1  # one file cannot be read
    found = json.loads(out.read_text())
    assert [image["name"] for image in found["images"]] == ["Bert", "unknown"]
    assert list(found["skipped"]) == [str(asked / "broken.png")] and found["threshold"] == 0.2
    nearest = found["images"][0]["nearest"]
    assert nearest[0]["name"] == "Bert" and nearest[0]["source"].endswith("png") and len(nearest) == 3
    # Grey, and the colour (200, 20, 20) with noise of mean 10, after normalisation: by hand.
    cosine = (210 + 30 + 30) / np.sqrt(3 * (210**2 + 2 * 30**2))
    assert found["images"][1]["distance"] == pytest.approx(2 - 2 * cosine, abs=0.01)
    text = capsys.readouterr().out
    assert "Bert" in text and "threshold 0.200: 1 known, 1 unknown" in text


def test_without_calibration_the_command_is_named(gallery, tmp_path, capsys, embedder):
    photo = str(picture(tmp_path / "b.png", COLOURS["Bert"]))
    command = ["identify", "--gallery", str(gallery), "--config-file", "output/faces", photo]
    assert main(command) == 2
    text = capsys.readouterr().err
    assert "colours.pth has no calibrated threshold" in text
    assert "retinanet-ext calibrate --config-file output/faces" in text and "--threshold" in text
    embedder.calibration = SimpleNamespace(threshold=0.3)
    assert main(command) == 0
    assert "threshold 0.300: 1 known" in capsys.readouterr().out


def test_clusters_are_written_with_scores_and_a_contact_sheet(people, tmp_path, capsys):
    output = tmp_path / "clusters"
    picture(people / "Anna" / "stranger.png", (120, 120, 120))
    command = ["cluster", "--config-file", "run", "--input", str(people), "--output", str(output), "--labelled"]
    assert main([*command, "--threshold", "0.2"]) == 0
    found = json.loads((output / "clusters.json").read_text())
    assert [len(cluster["images"]) for cluster in found["clusters"]] == [3, 3, 3, 1]
    # Precision 1. Recall: four items of Anna, three with 3/4 and one with 1/4, and six items with 1.
    assert found["scores"]["bcubed_precision"] == 1
    assert found["scores"]["bcubed_recall"] == pytest.approx((3 * 0.75 + 0.25 + 6) / 10)
    assert found["scores"]["pairwise_recall"] == pytest.approx(9 / 12)
    assert "pairwise: precision 100.0 %, recall 75.0 %" in capsys.readouterr().out
    lists = sorted((output / "groups").iterdir())
    assert [path.name for path in lists] == ["0001.txt", "0002.txt", "0003.txt", "0004.txt"]
    assert lists[0].read_text().splitlines() == found["clusters"][0]["images"]
    sheet = cv2.imread(str(output / "contact_sheet.jpg"))
    assert sheet.shape[0] > 4 * 96 and sheet.shape[1] > 3 * 96
    assert main([*command, "--threshold", "0.2"]) == 2
    assert "from an earlier run" in capsys.readouterr().err


def test_clusters_are_copied_into_folders(people, tmp_path):
    output = tmp_path / "clusters"
    command = ["cluster", "--config-file", "run", "--input", str(people), "--output", str(output), "--copy"]
    assert main([*command, "--threshold", "4"]) == 0
    copies = list((output / "groups" / "0001").rglob("*.png"))
    assert sorted(path.parent.name for path in copies) == ["Anna"] * 3 + ["Bert"] * 3 + ["Zoë"] * 3


def test_a_contact_sheet_shows_each_image_and_counts_the_rest(tmp_path):
    red = [picture(tmp_path / f"{i}.png", (0, 0, 230), seed=i) for i in range(9)]
    pages = list(contact_sheets([SheetRow("all", red, "9 images")] * 5, columns=4, rows_per_page=3))
    assert len(pages) == 2 and pages[0].height > pages[1].height
    pixels = np.asarray(pages[0]).astype(int)
    is_red = (pixels[..., 0] > 200) & (pixels[..., 1] < 60)
    columns = np.flatnonzero(is_red.any(axis=0))
    # Three thumbnails in a row, whose fourth place says how many there are besides.
    assert (np.diff(columns) > 1).sum() == 2


def test_a_gallery_of_a_compatible_model_needs_no_flag(gallery, tmp_path, capsys, embedder):
    photo = str(picture(tmp_path / "b.png", COLOURS["Bert"]))
    command = ["identify", "--gallery", str(gallery), "--config-file", "run", "--threshold", "0.2", photo]
    embedder.fingerprint = "newer"
    assert main(command) == 2
    assert "their embeddings cannot be compared" in capsys.readouterr().err
    embedder.compatible_with = ("c010ur",)
    assert main(command) == 0
    assert "Bert" in capsys.readouterr().out


def test_another_crop_is_reported(gallery, tmp_path, caplog, embedder):
    photo = str(picture(tmp_path / "b.png", COLOURS["Bert"]))
    command = ["identify", "--gallery", str(gallery), "--config-file", "run", "--threshold", "1", photo]
    assert main(command) == 0 and "cropped" not in caplog.text
    embedder.input = "cascade"
    assert main(command) == 0 and "were cropped by centre, and now by cascade" in caplog.text


def test_images_without_a_face_are_reported(gallery, tmp_path, caplog):
    photo = picture(tmp_path / "flat.png", COLOURS["Bert"], size=(7, 9))
    assert main(["identify", "--gallery", str(gallery), "--config-file", "r", "--threshold", "1", str(photo)]) == 0
    assert "No face was found in 1 of 1 images" in caplog.text and "flat.png" in caplog.text


@pytest.mark.parametrize(
    "words, message",
    [
        (["gallery", "add", "--gallery", "G", "--config-file", "r"], "Give --name NAME and photos, or --images"),
        (["gallery", "add", "--gallery", "G", "--config-file", "r", "--images", "none"], "there is no folder none"),
        (["gallery", "list", "--gallery", "G"], "there is no gallery G"),
        (["identify", "--gallery", "G", "--config-file", "r", "none.png"], "There are no images to embed. none.png"),
        (["identify", "--gallery", "G", "--config-file", "r", "--threshold", "5", "p.png"], "legal: 0 to 4"),
        (["identify", "--gallery", "G", "--config-file", "r", "--threshold", "1", "p.png"], "there is no gallery G"),
        (["identify", "--gallery", "G", "--config-file", "r", "--top", "0", "p.png"], "--top is 0; legal: 1 or more"),
        (["cluster", "--config-file", "r", "--input", "p.png", "--output", "o", "--batch-size", "0"], "legal: 1 or"),
    ],
)
def test_mistakes_are_named(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "p.png", (1, 2, 3))
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "G").exists()


def test_a_detector_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(trained_model, "load", lambda *args, **kwargs: object())
    photo = str(picture(tmp_path / "p.png", (1, 2, 3)))
    assert main(["identify", "--gallery", "G", "--config-file", "run", photo]) == 2
    assert "run is no FaceNet" in capsys.readouterr().err
