"""The embedder: FaceNet in use, on images of any kind and size."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import retinanet_ext
from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import build_model
from retinanet_ext.inference.embedder import Embedder, fingerprint

SIZE = (40, 32)


def facenet_config(*opts):
    overrides = ["MODEL.META_ARCHITECTURE", "FaceNet", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    overrides += ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", "18"]
    overrides += ["MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.RESNETS.NORM", "GN", "MODEL.BACKBONE.FREEZE_AT", "0"]
    overrides += ["MODEL.RESNETS.OUT_FEATURES", "['res3']", "MODEL.EMBEDDING.DIM", "8"]
    return load_config(None, [*overrides, "INPUT.FACE.SIZE", str(list(SIZE)), *opts], datasets=False)


class StretchedFaces:
    """In place of FaceInput: the whole image, resized. It finds no face in dark images."""

    def __call__(self, image):
        crop = cv2.resize(image, SIZE[::-1])
        return SimpleNamespace(image=crop, found=image.mean() > 20, box=None)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(facenet_config())


@pytest.fixture
def embedder(model):
    return Embedder(facenet_config(), model, batch_size=2, face_input=StretchedFaces())


def picture(seed, height=50, width=60):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_images_of_any_kind_and_size_give_what_the_model_gives(embedder, model, tmp_path):
    images = [picture(0), picture(1, 90, 33), picture(2, 41, 32)]
    cv2.imwrite(str(tmp_path / "one.png"), images[1])
    rgb = Image.fromarray(images[2][:, :, ::-1])
    found = embedder([images[0], tmp_path / "one.png", rgb])
    assert found.shape == (3, 8) and found.dtype == torch.float32 and not found.requires_grad
    inputs = [{"image": torch.from_numpy(cv2.resize(image, SIZE[::-1]).transpose(2, 0, 1).copy())} for image in images]
    with torch.no_grad():
        expected = torch.stack([output["embedding"] for output in model.eval()(inputs)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(embedder(images[0]), expected[:1], atol=1e-5, rtol=0)
    torch.testing.assert_close(embedder(np.stack([images[0]] * 2)), expected[[0, 0]], atol=1e-5, rtol=0)


def test_no_images_give_an_empty_tensor(embedder):
    assert embedder([]).shape == (0, 8) and embedder([]).dtype == torch.float32
    assert list(embedder.stream(iter([]))) == []


def test_a_grey_array_is_the_image_of_three_equal_channels(embedder):
    grey = picture(0)[:, :, 0]
    torch.testing.assert_close(embedder(grey), embedder(np.stack([grey] * 3, axis=2)))


def test_a_stream_is_read_only_a_few_batches_ahead(embedder):
    taken = []

    def images():
        for index in range(100):
            taken.append(index)
            yield picture(index, 20, 20)

    stream = embedder.stream(images())
    assert next(stream).shape == (8,) and len(taken) <= 10
    # A view would keep the whole batch.
    assert next(stream).untyped_storage().nbytes() == 8 * 4
    stream.close()


def test_images_without_a_face_are_counted_and_embedded_all_the_same(embedder, tmp_path):
    dark = tmp_path / "dark.png"
    cv2.imwrite(str(dark), np.zeros((30, 30, 3), np.uint8))
    assert embedder([picture(0), dark]).shape == (2, 8)
    assert embedder.faces_not_found == 1 and embedder.files_without_face == [str(dark)]


def test_errors_name_the_file(embedder, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.jpg"):
        embedder([picture(0), tmp_path / "absent.jpg"])
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(OSError, match="cannot .*text.jpg|text.jpg cannot"):
        embedder(tmp_path / "text.jpg")
    Image.fromarray(picture(0, 200, 200)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:3000])
    with pytest.raises(OSError, match="cut.jpg cannot be read as an image"):
        embedder(tmp_path / "cut.jpg")
    with pytest.raises(TypeError, match="float64"):
        embedder(np.zeros((3, 3, 3)))


def test_a_huge_image_is_refused_with_its_name(embedder, tmp_path, monkeypatch):
    Image.new("L", (400, 400)).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(OSError, match="huge.png cannot be read as an image.*decompression bomb"):
        embedder(tmp_path / "huge.png")


def test_the_fingerprint_follows_every_weight_and_no_setting(model):
    first = fingerprint(model)
    assert len(first) == 16 and first == fingerprint(model)
    with torch.no_grad():
        model.projection.bias[3] += 1e-6
    changed = fingerprint(model)
    with torch.no_grad():
        model.projection.bias[3] -= 1e-6
    assert changed != first


def test_load_gives_the_embedder_of_a_run(model, tmp_path, monkeypatch):
    monkeypatch.setattr("retinanet_ext.inference.run_face_detector.face_input", lambda cfg: StretchedFaces())
    cfg = facenet_config("OUTPUT_DIR", str(tmp_path))
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.save({"model": model.state_dict()}, tmp_path / "model_final.pth")
    loaded = retinanet_ext.load(tmp_path)
    assert isinstance(loaded, Embedder) and loaded.batch_size == 32 and loaded.calibration is None
    assert loaded.fingerprint == fingerprint(model)
    expected = Embedder(facenet_config(), model, face_input=StretchedFaces())(picture(0))
    torch.testing.assert_close(loaded(picture(0)), expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="detects nothing"):
        retinanet_ext.load(tmp_path, score_threshold=0.5)
