import numpy as np
import pytest
import torch
from PIL import Image

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import Boxes, Instances
from retinanet_ext.inference.predictor import Predictor


class Recorder(torch.nn.Module):
    """A detector that finds one box: the whole image, with the mean of the first channel as its score."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, batch):
        self.batches.append(batch)
        outputs = []
        for item in batch:
            instances = Instances((item["height"], item["width"]))
            instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, item["width"], item["height"]]]))
            instances.scores = item["image"][0].float().mean().reshape(1)
            instances.pred_classes = torch.zeros(1, dtype=torch.int64)
            outputs.append({"instances": instances})
        return outputs


def make(batch_size=2, **settings):
    settings = {"MODEL.META_ARCHITECTURE": "FocalRetinaNet", **settings}
    cfg = load_config(None, [word for pair in settings.items() for word in pair])
    return Predictor(cfg, Recorder(), batch_size=batch_size)


def images(count):
    for k in range(count):
        image = np.zeros((30 + k, 60, 3), np.uint8)
        image[:] = (k, 100 + k, 200)
        yield image


def test_order_batches_and_sizes():
    predictor = make(**{"INPUT.MIN_SIZE_TEST": 15, "INPUT.MAX_SIZE_TEST": 100})
    results = list(predictor.predict(images(5)))
    assert [r.image_size for r in results] == [(30 + k, 60) for k in range(5)]
    assert [float(r.scores[0]) for r in results] == pytest.approx([0, 1, 2, 3, 4])
    assert [len(batch) for batch in predictor.model.batches] == [2, 2, 1]
    first = predictor.model.batches[0][0]
    # Short side 30 -> 15, so 60 -> 30.
    assert first["image"].shape == (3, 15, 30) and first["image"].dtype == torch.uint8
    assert not predictor.model.training


def test_rgb_models_get_rgb():
    predictor = make(**{"INPUT.FORMAT": "RGB"})
    (result,) = predictor.predict(images(1))
    assert float(result.scores[0]) == pytest.approx(200)


def test_images_are_consumed_lazily():
    taken = []

    def source():
        for image in images(60):
            taken.append(1)
            yield image

    next(make(batch_size=2).predict(source()))
    assert len(taken) < 20


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), 3],
)
def test_what_is_no_image(image):
    with pytest.raises(TypeError, match=r"uint8 BGR array of shape \(H, W, 3\), a Pillow image or a path, found"):
        list(make().predict([image]))


def test_bad_settings():
    with pytest.raises(ValueError, match="batch_size must be at least 1, found 0"):
        make(batch_size=0)
    with pytest.raises(ValueError, match="INPUT.FORMAT is 'L'"):
        make(**{"INPUT.FORMAT": "L"})
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        Predictor(load_config(None, ["MODEL.META_ARCHITECTURE", "FocalRetinaNet", "MODEL.DEVICE", "cpu",
                                          "MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone",
                                          "MODEL.RESNETS.OUT_FEATURES", "['res3', 'res4', 'res5']",
                                          "MODEL.FPN.IN_FEATURES", "['res3', 'res4', 'res5']"]))  # fmt: skip


def test_an_image_of_which_resizing_leaves_nothing():
    predictor = make(**{"INPUT.MIN_SIZE_TEST": 800, "INPUT.MAX_SIZE_TEST": 1333})
    # One pixel times 1333 / 4000 is less than half a pixel; two pixels times that are more.
    for shape in ((1, 4000, 3), (4000, 1, 3)):
        with pytest.raises(ValueError, match=f"image of {shape[1]}x{shape[0]} .* too thin"):
            predictor.check_image(np.zeros(shape, np.uint8))
    predictor.check_image(np.zeros((2, 4000, 3), np.uint8))
    make(**{"INPUT.MIN_SIZE_TEST": 0}).check_image(np.zeros((1, 4000, 3), np.uint8))


def test_one_image_or_many_in_every_form(tmp_path):
    """The detector's score is the mean blue value, which says which image a result belongs to."""
    predictor = make(**{"MODEL.CLASS_NAMES": "['only']", "MODEL.RETINANET.NUM_CLASSES": "1"})
    first, second, _ = images(3)
    second = second[:30]
    paths = [tmp_path / "a.png", str(tmp_path / "b.png")]
    for path, image in zip(paths, (first, second)):
        Image.fromarray(image[:, :, ::-1]).save(path)

    def blue(results):
        return [float(result.scores[0]) for result in results]

    assert blue([predictor(first)]) == [0.0]
    assert blue([predictor(paths[1])]) == [1.0] and predictor(paths[1]).file_name == paths[1]
    assert blue([predictor(Image.fromarray(second[:, :, ::-1]))]) == [1.0]
    assert blue(predictor([paths[0], second])) == [0.0, 1.0]
    assert blue(predictor(np.stack([first, second]))) == [0.0, 1.0]
    assert predictor([]) == [] and predictor(first).names == ["only"]


def test_a_result_is_instances_that_can_be_filtered_drawn_and_saved(tmp_path):
    result = make()(next(images(1)))
    assert isinstance(result, Instances) and result["instances"] is result
    assert len(result[result.scores > 1e9]) == 0 and result[:1].file_name == result.file_name
    picture = result.draw()
    assert picture.shape == result.image.shape and (picture != result.image).any()
    result.save(tmp_path / "new" / "out.png")
    with Image.open(tmp_path / "new" / "out.png") as saved:
        assert np.asarray(saved).shape == picture.shape
        assert (np.asarray(saved)[:, :, ::-1] != result.image).any()
    with pytest.raises(ValueError, match="has the suffix '.xyz'.*ends in .jpg, .png"):
        result.save(tmp_path / "out.xyz")
    with pytest.raises(KeyError, match="the one key 'instances'"):
        result["boxes"]


def test_without_ids_of_the_data_categories_count_from_1():
    (record,) = make()(next(images(1))).to_coco("a")
    assert (record["image_id"], record["category_id"], record["bbox"]) == ("a", 1, [0.0, 0.0, 60.0, 30.0])
