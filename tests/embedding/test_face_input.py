import cv2
import numpy as np
import pytest

from retinanet_ext.config.loading import load_config
from retinanet_ext.embedding import face_detectors
from retinanet_ext.embedding.face_detectors import CascadeDetector
from retinanet_ext.embedding.face_input import FaceInput, _cut, main_face, resize


def gradient(height=40, width=30):
    """Each pixel holds its row, its column, and 7."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, 7)], axis=2).astype(np.uint8)


def test_the_whole_image_by_default_and_its_centre_by_a_share():
    whole = FaceInput([40, 30])(gradient())
    assert whole.found and np.array_equal(whole.image, gradient()) and whole.box.tolist() == [0, 0, 30, 40]
    centre = FaceInput([20, 15], center_crop=0.5)(gradient())
    # 7.5 rounds to 8, the even neighbour, and 22.5 to 22.
    assert centre.box.tolist() == [7.5, 10, 22.5, 30]
    assert np.array_equal(FaceInput([20, 14], center_crop=0.5)(gradient()).image, gradient()[10:30, 8:22])


def test_shrinking_averages_areas_and_a_mixed_resize_does_each_side_by_its_kind():
    image = np.random.RandomState(0).randint(0, 256, (8, 12, 3)).astype(np.uint8)
    means = image.reshape(4, 2, 4, 3, 3).mean(axis=(1, 3))
    assert np.abs(resize(image, (4, 4)).astype(float) - means).max() <= 0.5
    columns = image.reshape(8, 4, 3, 3).mean(axis=2)
    mixed = resize(image, (16, 4))
    assert mixed.shape == (16, 4, 3)
    # Linear growth by 2: the first row is that of the image, the second 3/4 of it and 1/4 of the next.
    second = 0.75 * columns[0] + 0.25 * columns[1]
    assert np.abs(mixed[0] - columns[0]).max() <= 1 and np.abs(mixed[1] - second).max() <= 1


def test_the_region_of_a_face_has_the_margin_and_the_shape_of_the_input():
    square = FaceInput([10, 10], detector=lambda image: [[10, 20, 20, 24]], margin=0.1)
    # 10 x 4 pixels, 1 more on each side: 12 x 6, made square around (15, 22).
    assert square.region(np.array([10, 20, 20, 24]), (40, 30)).tolist() == [9, 16, 21, 28]
    assert square(gradient()).box.tolist() == [9, 16, 21, 28]
    tall = FaceInput([20, 10], detector=lambda image: [[10, 20, 20, 24]])
    assert tall(gradient()).box.tolist() == [10, 12, 20, 32]


def test_beyond_the_border_its_pixels_are_repeated():
    crop = FaceInput([6, 6], detector=lambda image: [[-2, -3, 4, 3]])(gradient())
    assert crop.image[:, :, 0].tolist() == [[v] * 6 for v in (0, 0, 0, 0, 1, 2)]
    assert crop.image[0, :, 1].tolist() == [0, 0, 0, 1, 2, 3]
    far = FaceInput([4, 4], detector=lambda image: [[100, 100, 104, 104]])(gradient())
    assert (far.image[:, :, 0] == 39).all() and (far.image[:, :, 1] == 29).all()


def test_the_largest_and_most_central_face_is_taken():
    boxes = np.array([[0, 0, 10, 10], [45, 45, 54, 54], [0, 80, 12, 92]], dtype=float)
    assert main_face(boxes, (100, 100)) == 1
    assert main_face(np.array([[0, 0, 90, 90], [48, 48, 52, 52]], dtype=float), (100, 100)) == 0


def test_an_image_without_a_face_is_counted_and_its_centre_taken():
    face_input = FaceInput([20, 14], center_crop=0.5, detector=lambda image: np.zeros((0, 4)))
    crop = face_input(gradient())
    assert not crop.found and face_input.not_found == 1 and np.array_equal(crop.image, gradient()[10:30, 8:22])


def test_channels_of_the_formats():
    image = np.full((5, 5, 3), (255, 0, 100), dtype=np.uint8)
    assert FaceInput([5, 5], image_format="RGB")(image).image[0, 0].tolist() == [100, 0, 255]
    grey = FaceInput([5, 5], image_format="L")(image).image
    # 0.299 R + 0.587 G + 0.114 B
    assert grey.shape == (5, 5, 1) and abs(int(grey[0, 0, 0]) - (0.299 * 100 + 0.114 * 255)) <= 1
    assert FaceInput([5, 5])(image[:, :, 0]).image[0, 0].tolist() == [255] * 3


def test_few_pixels_and_a_low_quality_lose_detail_in_this_order():
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    plain = FaceInput([64, 64])(noise).image
    assert np.array_equal(plain, noise)
    few = FaceInput([64, 64], pixels=256)(noise).image
    small = cv2.resize(noise, (16, 16), interpolation=cv2.INTER_AREA)
    assert np.array_equal(few, cv2.resize(small, (64, 64), interpolation=cv2.INTER_LINEAR))
    both = FaceInput([64, 64], pixels=256, jpeg_quality=10)(noise).image
    small = cv2.imdecode(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 10])[1], cv2.IMREAD_COLOR)
    assert np.array_equal(both, cv2.resize(small, (64, 64), interpolation=cv2.INTER_LINEAR))
    assert np.array_equal(FaceInput([64, 64], pixels=4096)(noise).image, noise)


def test_a_quarter_turn_is_the_turned_crop():
    image = np.random.RandomState(0).randint(0, 256, (9, 9, 3)).astype(np.uint8)
    face_input = FaceInput([5, 5])
    turned = face_input.crop(image, np.array([2, 2, 7, 7]), angle=90.0).image
    assert np.abs(turned.astype(int) - np.rot90(image[2:7, 2:7], 1).astype(int)).max() <= 1


def test_images_of_any_size_are_taken():
    face_input = FaceInput([8, 8], detector=CascadeDetector())
    for shape in ((1, 1, 3), (1, 3000, 3), (3000, 1, 3), (19, 23, 3)):
        assert face_input(np.zeros(shape, dtype=np.uint8)).image.shape == (8, 8, 3)
    assert face_input.not_found == 4


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 4), np.uint8)])
def test_other_arrays_are_refused(image):
    with pytest.raises(ValueError, match="uint8 array"):
        FaceInput([8, 8])(image)


@pytest.mark.parametrize(
    ("key", "value"),
    [("SIZE", [96]), ("SIZE", [0, 96]), ("CENTER_CROP", 0.0), ("CENTER_CROP", 1.5), ("MARGIN", -0.1),
     ("PIXELS", -1), ("JPEG_QUALITY", 101)],
)  # fmt: skip
def test_illegal_values_name_their_key(key, value):
    cfg = load_config(None, ["MODEL.META_ARCHITECTURE", "FaceNet"], datasets=False)
    cfg.INPUT.FACE[key] = value
    with pytest.raises(ValueError, match=f"INPUT.FACE.{key}"):
        FaceInput.from_config(cfg)


def test_a_run_as_detector_must_be_passed_and_is_used():
    cfg = load_config(None, ["INPUT.FACE.DETECTOR", "output/quick", "INPUT.FACE.MARGIN", "0.0"], datasets=False)
    with pytest.raises(ValueError, match="run_face_detector"):
        FaceInput.from_config(cfg)
    assert FaceInput.from_config(cfg, lambda image: [[1, 2, 3, 4]])(gradient()).box.tolist() == [1, 2, 3, 4]


def test_an_opencv_without_cascades_is_an_error_with_the_remedy(monkeypatch):
    monkeypatch.delattr(face_detectors.cv2, "CascadeClassifier")
    with pytest.raises(RuntimeError, match=r"opencv-python<5"):
        CascadeDetector()


def test_the_cascade_finds_real_faces(shared_data):
    face_input = FaceInput([96, 96], detector=CascadeDetector())
    found = []
    for person in range(1, 9):
        face = cv2.imread(str(shared_data / "att_faces" / f"s{person}" / "1.pgm"))
        face = cv2.resize(face, (184, 224))
        # On a grey canvas, so that the place is known.
        canvas = np.full((900, 1200, 3), 128, dtype=np.uint8)
        canvas[300:524, 700:884] = face
        crop = face_input(canvas)
        centre = (crop.box[:2] + crop.box[2:]) / 2
        found.append(crop.found and np.abs(centre - (792, 412)).max() < 60)
    assert sum(found) >= 6


def test_a_small_region_is_cropped_between_pixels():
    """On a ramp of grey, 4 per pixel, every pixel of the crop is known."""
    ramp = np.tile(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (60, 1, 3))
    region = np.array([20.25, 10.0, 30.25, 20.0])
    image = FaceInput((40, 40)).crop(ramp, region).image
    expected = 4 * (20.25 + (np.arange(40) + 0.5) / 4 - 0.5)
    assert np.abs(image[20, :, 0] - expected).max() <= 1


@pytest.mark.parametrize("angle", [0.0, 12.0, -30.0])
def test_enlarging_a_small_region_equals_cutting_it_and_resizing(angle):
    random = np.random.RandomState(0)
    smooth = cv2.resize(random.randint(0, 256, (8, 8, 3)).astype(np.uint8), (80, 80), interpolation=cv2.INTER_CUBIC)
    region = np.array([20.0, 24.0, 52.0, 56.0])
    image = FaceInput((64, 64)).crop(smooth, region, angle=angle).image
    plain = resize(_cut(smooth, region, angle), (64, 64))
    assert np.abs(image.astype(int) - plain).mean() < 1.5
