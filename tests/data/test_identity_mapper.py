import numpy as np
import pytest
from PIL import Image

from retinanet_ext.config.loading import load_config
from retinanet_ext.data import face_boxes
from retinanet_ext.data.face_boxes import with_face_boxes
from retinanet_ext.data.identity_mapper import IdentityMapper
from retinanet_ext.embedding.face_input import FaceInput


@pytest.fixture
def record(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (40, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "face.png")
    return {"file_name": str(tmp_path / "face.png"), "image_id": "a/face.png", "identity": 3}, pixels


def test_without_augmentation_the_image_is_the_crop(record):
    record, pixels = record
    face_input = FaceInput([40, 30], image_format="RGB")
    found = IdentityMapper(face_input, is_train=False, flip="horizontal", light=0.5)(record)
    assert np.array_equal(found["image"].permute(1, 2, 0).numpy(), pixels)
    assert {k: found[k] for k in record} == record and found["face_found"]
    assert (found["height"], found["width"]) == (40, 30)


def test_half_of_the_images_are_mirrored(record):
    record, pixels = record
    mapper = IdentityMapper(FaceInput([40, 30], image_format="RGB"), is_train=True, flip="horizontal")
    np.random.seed(0)
    images = [mapper(record)["image"].permute(1, 2, 0).numpy() for _ in range(60)]
    mirrored = [np.array_equal(image, pixels[:, ::-1]) for image in images]
    assert 15 < sum(mirrored) < 45
    assert all(np.array_equal(i, pixels) for i, m in zip(images, mirrored, strict=True) if not m)


def test_jitter_stays_within_its_bounds_and_reaches_them(record):
    record, _ = record
    regions = []

    class Spy(FaceInput):
        def crop(self, image, region, *, angle=0.0, found=True):
            regions.append((*region, angle))
            return super().crop(image, region, angle=angle, found=found)

    mapper = IdentityMapper(Spy([20, 20]), is_train=True, shift=0.1, scale=0.2, rotation=15.0)
    np.random.seed(0)
    for _ in range(300):
        mapper(record)
    x0, y0, x1, y1, angle = np.array(regions).T
    shift = np.abs((x0 + x1) / 2 - 15) / 30
    scale = (x1 - x0) / 30
    np.testing.assert_allclose((y1 - y0) / 40, scale)  # the sides change together
    assert 0.09 < shift.max() <= 0.1 and 0.8 <= scale.min() < 0.82 and 1.18 < scale.max() <= 1.2
    assert 14 < angle.max() <= 15 and -15 <= angle.min() < -14


def test_light_changes_contrast_and_brightness(record):
    record, pixels = record
    mapper = IdentityMapper(FaceInput([40, 30], image_format="L"), is_train=True, light=0.3)
    np.random.seed(0)
    images = [mapper(record)["image"].float() for _ in range(40)]
    assert all(image.shape == (1, 40, 30) for image in images)
    means = [image.mean().item() for image in images]
    assert max(means) - min(means) > 80 and len({round(image.std().item(), 1) for image in images}) > 30


def test_the_same_random_state_gives_the_same_image(record):
    record, _ = record
    mapper = IdentityMapper(
        FaceInput([20, 20]), is_train=True, flip="horizontal", shift=0.1, scale=0.1, rotation=9.0, light=0.2
    )
    images = []
    for seed in (0, 0, 1):
        np.random.seed(seed)
        images.append(mapper(record)["image"])
    assert images[0].equal(images[1]) and not images[0].equal(images[2])


@pytest.mark.parametrize(("key", "value"), [("SHIFT", 1.5), ("SCALE", 1.0), ("ROTATION", -1.0), ("LIGHT", 2.0)])
def test_numbers_out_of_range_name_their_key(key, value):
    cfg = load_config(None, [f"INPUT.FACE.{key}_JITTER", str(value)], datasets=False)
    with pytest.raises(ValueError, match=f"INPUT.FACE.{key}_JITTER is"):
        IdentityMapper.from_config(cfg, FaceInput.from_config(cfg), True)


def test_faces_are_found_once_and_counted(record, caplog, tmp_path):
    record, pixels = record
    Image.new("RGB", (30, 40)).save(tmp_path / "black.png")
    dark = {**record, "file_name": str(tmp_path / "black.png"), "image_id": "a/black.png"}
    calls = []

    def detector(image):
        calls.append(image)
        return [[5, 10, 25, 30]] if image.any() else []

    face_boxes._known.clear()
    faces = FaceInput([20, 20], detector=detector, image_format="RGB")
    found = with_face_boxes([record, dark], faces, "test")
    assert with_face_boxes([record, dark], faces, "test") == found and len(calls) == 2
    assert found[0]["face_box"] == [5, 10, 25, 30] and found[1]["face_box"] is None
    assert "no face in 1 of 2 images" in caplog.text and "black.png" in caplog.text
    mapper = IdentityMapper(faces.without_detector(), is_train=False)
    seen = [mapper(r) for r in found]
    assert [inputs["face_found"] for inputs in seen] == [True, False] and len(calls) == 2
    assert np.array_equal(seen[0]["image"].permute(1, 2, 0).numpy(), pixels[10:30, 5:25])


def test_without_a_detector_records_stay_as_they_are(record):
    assert with_face_boxes([record[0]], FaceInput([20, 20]), "") == [record[0]]
