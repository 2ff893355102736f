import torch

from retinanet_ext.d2 import Boxes, Instances, build_model
from retinanet_ext.inference.tta import DenseDetectorWithTTA
from tests.builders import small_config

AUG = ["TEST.AUG.MIN_SIZES", "(64, 128)", "TEST.AUG.MAX_SIZE", "256", "TEST.AUG.FLIP", "True"]


class FindsTheBrightBox(torch.nn.Module):
    """Stands in for a detector: finds the bounding box of the bright pixels, in pixels of its input image."""

    def forward(self, inputs):
        outputs = []
        for item in inputs:
            y, x = torch.nonzero(item["image"][0] > 128, as_tuple=True)
            found = Instances(tuple(item["image"].shape[1:]))
            found.pred_boxes = Boxes(torch.tensor([[x.min(), y.min(), x.max() + 1, y.max() + 1]], dtype=torch.float32))
            found.scores = torch.tensor([0.5 + item["image"].shape[1] / 1000])
            found.pred_classes = torch.tensor([1])
            outputs.append({"instances": found})
        return outputs


def test_views_are_mapped_back_and_merged():
    image = torch.zeros(3, 128, 192, dtype=torch.uint8)
    image[:, 40:80, 32:64] = 255
    detector = DenseDetectorWithTTA(small_config(*AUG), FindsTheBrightBox())
    # The original image was twice as large. Boxes come back in its pixels; both sizes and both flips merge into one.
    found = detector([{"image": image, "height": 256, "width": 384}])[0]["instances"]
    assert found.image_size == (256, 384)
    assert len(found) == 1 and found.pred_classes.tolist() == [1]
    torch.testing.assert_close(found.pred_boxes.tensor, torch.tensor([[64.0, 80.0, 128.0, 160.0]]), atol=2.0, rtol=0)


def test_runs_the_real_detector():
    cfg = small_config(*AUG)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    model.test_score_thresh = 0.0
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = DenseDetectorWithTTA(cfg, model)([{"image": image}])[0]["instances"]
    assert len(found) == 100 and (found.scores.diff() <= 0).all()
    boxes = found.pred_boxes.tensor
    assert (boxes >= 0).all() and (boxes[:, 2] <= 96).all() and (boxes[:, 3] <= 64).all()


def test_nothing_found():
    cfg = small_config(*AUG)
    model = build_model(cfg).eval()
    model.test_score_thresh = 1.0
    detector = DenseDetectorWithTTA(cfg, model)
    assert len(detector([{"image": torch.zeros(3, 64, 96, dtype=torch.uint8)}])[0]["instances"]) == 0
