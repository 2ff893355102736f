"""Detections with embeddings and identities: results, pictures, files, and photos that fill a gallery."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet_ext.d2 import Boxes, Instances
from retinanet_ext.embedding.calibration import Calibration
from retinanet_ext.embedding.gallery import Gallery
from retinanet_ext.inference.file_embeddings import embed_files
from retinanet_ext.inference.file_predictions import FilePredictions
from retinanet_ext.inference.identification import Identifier
from retinanet_ext.inference.object_embedder import ObjectEmbedder
from retinanet_ext.inference.predictor import Predictor
from retinanet_ext.inference.result import Result
from retinanet_ext.inference.sources import Source
from tests.builders import small_config

ANNA, BEN, OTHER = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]


class QuarterFinder(torch.nn.Module):
    """Finds the coloured quarters of an image, top left first; the embedding is the direction of the colour."""

    def __init__(self):
        super().__init__()
        self.test_score_thresh = 0.5
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, batch):
        return [{"instances": self.detect(inputs["image"].float())} for inputs in batch]

    def detect(self, image):
        height, width = image.shape[1:]
        boxes, embeddings = [], []
        for y in (0, height // 2):
            for x in (0, width // 2):
                color = image[:, y : y + height // 2, x : x + width // 2].mean(dim=(1, 2)).flip(0)  # RGB
                if color.max() > 50:
                    boxes.append([x + 1, y + 1, x + width / 2 - 1, y + height / 2 - 1])
                    embeddings.append(color / color.norm())
        return Instances(
            (height, width),
            pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4)),
            scores=torch.linspace(0.83, 0.63, len(boxes)),
            pred_classes=torch.ones(len(boxes), dtype=torch.int64),
            embeddings=torch.stack(embeddings) if embeddings else torch.zeros(0, 3),
        )


def make_predictor(*opts):
    words = ["MODEL.META_ARCHITECTURE", "InstanceRetinaNet", "MODEL.EMBEDDING_ON", "True", "MODEL.EMBEDDING.DIM", "3"]
    words += ["MODEL.RETINANET.NUM_CLASSES", "2", "MODEL.ROI_HEADS.NUM_CLASSES", "2", "INPUT.MIN_SIZE_TEST", "0"]
    words += ["MODEL.CLASS_NAMES", "['cat', 'person']", "MODEL.CLASS_IDS", "[17, 49]"]
    return Predictor(small_config(*words, *opts), QuarterFinder())


def quarters(*colors, size=240):
    """An RGB image with up to four coloured quarters; None: black."""
    image = np.zeros((size, size, 3), np.uint8)
    for index, color in enumerate(colors):
        y, x = (index // 2) * size // 2, (index % 2) * size // 2
        image[y : y + size // 2, x : x + size // 2] = np.array(color or [0, 0, 0]) * 255
    return image


class Match(NamedTuple):
    name: str
    distance: float


class PlainGallery:
    """Anna is red, Ben is green."""

    def search(self, embeddings):
        people = torch.tensor([ANNA, BEN])
        distances = (embeddings[:, None] - people).square().sum(dim=2)
        return [[Match(["Anna", "Ben"][row.argmin()], row.min().item())] for row in distances]


@pytest.fixture
def result():
    image = quarters(ANNA, BEN, OTHER, [1.0, 0.5, 0.0])
    return Identifier(PlainGallery(), 0.3)(make_predictor()(image[:, :, ::-1].copy()))


def test_names_and_distances_of_the_nearest(result):
    # Length of (1, .5, 0) is sqrt(1.25): to Anna 2 - 2 / sqrt(1.25) = .2111; blue is 2 from both.
    assert result.identities == ["Anna", "Ben", "unknown", "Anna"] and result.identity_names == ["Anna", "Ben"]
    assert result.identity_distances.tolist() == pytest.approx([0, 0, 2, 2 - 2 / 1.25**0.5], abs=1e-2)
    assert result.embeddings.shape == (4, 3)
    part = result[torch.tensor([3, 2])]
    assert part.identities == ["Anna", "unknown"] and part.to("cpu").identities == part.identities
    assert isinstance(part, Result) and part.names == ["person", "person"]


def test_records_name_the_identities(result):
    records = result.to_coco(7)
    assert [record["identity"] for record in records] == ["Anna", "Ben", "unknown", "Anna"]
    assert records[2]["identity_distance"] == 2.0 and records[0]["category_id"] == 49
    plain = make_predictor()(quarters(ANNA))
    assert "identity" not in plain.to_coco()[0] and "embedding" not in plain.to_coco()[0]
    with pytest.raises(AttributeError):
        plain.identities  # noqa: B018


def test_pictures_show_names_scores_and_distances(result, monkeypatch):
    from retinanet_ext.inference import result as result_module

    seen = {}

    class Watched(result_module.Visualizer):
        def overlay_instances(self, *, labels=None, **rest):
            seen["labels"] = list(labels)
            return super().overlay_instances(labels=labels, **rest)

    monkeypatch.setattr(result_module, "Visualizer", Watched)
    picture = result.draw()
    assert seen["labels"] == [
        "Anna 0.83 d=0.00", "Ben 0.76 d=0.00", "unknown person 0.70 d=2.00", "Anna 0.63 d=0.21"
    ]  # fmt: skip
    assert picture.shape == result.image.shape and (picture != result.image).any()


def test_an_image_without_detections_has_no_identities():
    found = Identifier(PlainGallery(), 0.3)(make_predictor()(quarters()))
    assert found.identities == [] and found.to_coco() == [] and found.draw().shape == (240, 240, 3)


@pytest.mark.parametrize("embeddings", [False, True])
def test_predictions_json_has_names_and_only_on_request_embeddings(tmp_path, embeddings):
    Image.fromarray(quarters(OTHER, [1.0, 0.5, 0.0])).save(tmp_path / "a.png")
    identify = Identifier(PlainGallery(), 0.3)
    job = FilePredictions(make_predictor(), tmp_path / "out", identify=identify, embeddings=embeddings)
    job.run_images([Source(tmp_path / "a.png", Path("a.png"))])
    first, second = json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"]
    assert (first["identity"], second["identity"]) == ("unknown", "Anna")
    assert second["identity_distance"] == pytest.approx(2 - 2 / 1.25**0.5, abs=1e-2)
    assert ("embedding" in second) == embeddings
    if embeddings:
        assert first["embedding"] == [0.0, 0.0, 1.0]
        assert second["embedding"] == pytest.approx([0.894427, 0.447214, 0.0], abs=1e-2)
        assert second["embedding"] == [round(value, 6) for value in second["embedding"]]


def test_the_best_detection_of_a_photo_fills_a_gallery(tmp_path, caplog):
    for name, colors in (("a", [ANNA]), ("b", [BEN, OTHER]), ("c", [])):
        Image.fromarray(quarters(*colors)).save(tmp_path / f"{name}.png")
    embedder = ObjectEmbedder(make_predictor())
    found = embedder([str(tmp_path / "a.png"), tmp_path / "b.png"])
    torch.testing.assert_close(found, torch.tensor([ANNA, BEN]))
    assert embedder.dim == 3 and len(embedder.fingerprint) == 16 and embedder([]).shape == (0, 3)
    assert "b.png: 2 detections; the best one is taken" in caplog.text
    assert "a.png" not in caplog.text
    with pytest.raises(ValueError, match=r"c\.png: nothing is detected"):
        embedder(str(tmp_path / "c.png"))
    files = embed_files(embedder, sorted(tmp_path.glob("*.png")))
    assert [path.name for path in files.paths] == ["a.png", "b.png"] and torch.equal(files.embeddings, found)
    assert files.skipped == {tmp_path / "c.png": "nothing is detected, so there is no object to embed"}


def test_a_gallery_on_disk_names_the_detections(tmp_path):
    predictor = make_predictor()
    image = quarters(ANNA, BEN, OTHER)[:, :, ::-1].copy()
    path = tmp_path / "people.gallery"
    with pytest.raises(ValueError, match="people.gallery"):
        Identifier.open(predictor, path, 0.3)
    gallery = Gallery(path, fingerprint=predictor.fingerprint, dim=3, create=True)
    with pytest.raises(ValueError, match="people.gallery is empty"):
        Identifier.open(predictor, path, 0.3)
    gallery.add("Anna", ObjectEmbedder(predictor)([quarters(ANNA)[:, :, ::-1].copy()]))
    gallery.add("Ben", torch.tensor([BEN]))
    assert Identifier.open(predictor, path, 0.3)(predictor(image)).identities == ["Anna", "Ben", "unknown"]
    assert Identifier.open(predictor, path, 4.0)(predictor(image)).identities[2] in ("Anna", "Ben")
    other = QuarterFinder()
    other.weight.data.fill_(2.0)
    with pytest.raises(ValueError, match="their embeddings cannot be compared"):
        Identifier.open(Predictor(predictor.cfg, other), path, 0.3)


def test_the_threshold_of_the_checkpoint_is_the_default(tmp_path):
    Gallery(tmp_path / "g", fingerprint=make_predictor().fingerprint, dim=3, create=True).add("A", torch.tensor([ANNA]))
    weights = str(tmp_path / "model.pth")
    predictor = make_predictor("MODEL.WEIGHTS", weights)
    torch.save({"model": {}}, weights)
    with pytest.raises(ValueError, match="model.pth has no calibrated threshold; name one with --identify-threshold"):
        Identifier.open(predictor, tmp_path / "g")
    rates = {"far_target": 0.1, "far": 0.1, "far_interval": (0, 0.2), "far_interval_exact": (0, 0.2), "miss_target": 0}
    counts = {"val": 0.9, "num_same": 9, "num_different": 9, "unsure": (0.75, 0.9)}
    torch.save({"model": {}, "calibration": Calibration(threshold=0.75, **rates, **counts).to_dict()}, weights)
    assert ObjectEmbedder(predictor).calibration.threshold == 0.75
    assert Identifier.open(predictor, tmp_path / "g").threshold == 0.75


def test_a_model_without_embeddings_is_refused():
    plain = make_predictor("MODEL.EMBEDDING_ON", "False")
    for use in (ObjectEmbedder, lambda predictor: Identifier.open(predictor, "people.gallery", 1.0)):
        with pytest.raises(ValueError, match=r"this run has no embeddings \(MODEL.EMBEDDING_ON is False\)"):
            use(plain)


def test_the_weights_give_the_fingerprint():
    a, b = make_predictor(), make_predictor()
    other = QuarterFinder()
    other.weight.data.fill_(2.0)
    assert a.fingerprint == b.fingerprint != Predictor(a.cfg, other).fingerprint
