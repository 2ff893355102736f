import pytest
import torch

from retinanet_ext import d2
from retinanet_ext.config.keys import add_retinanet_ext_config
from retinanet_ext.d2 import ROI_MASK_HEAD_REGISTRY, ShapeSpec, get_cfg
from retinanet_ext.instance.mask_head import FCNMaskHead, MLPMaskHead, SoftmaxMaskHead, build_mask_head
from retinanet_ext.instance.mask_loss import mask_loss_reference
from tests.instance.rois import random_rois

SHAPE = ShapeSpec(channels=8, height=7, width=7)
NAMES = ["FCNMaskHead", "SoftmaxMaskHead", "MLPMaskHead"]


def make_head(name="FCNMaskHead", *overrides):
    cfg = get_cfg()
    add_retinanet_ext_config(cfg)
    cfg.merge_from_list(["MODEL.ROI_HEADS.NUM_CLASSES", 5, "MODEL.ROI_MASK_HEAD.CONV_DIM", 32])
    cfg.merge_from_list(["MODEL.ROI_MASK_HEAD.NUM_CONV", 2, "MODEL.ROI_MASK_HEAD.FC_DIM", 16])
    cfg.merge_from_list(["MODEL.ROI_MASK_HEAD.NAME", name, *overrides])
    torch.manual_seed(0)
    head = build_mask_head(cfg, SHAPE)
    # The predictor begins near 0, where all classes look alike.
    torch.nn.init.normal_(head.predictor.weight, std=0.3)
    torch.nn.init.normal_(head.predictor.bias)
    return head


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("agnostic", [False, True])
def test_training_and_inference(name, agnostic, generator):
    head = make_head(name, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", agnostic)
    rois = random_rois([3, 0, 2], generator, mask_size=14)
    x = torch.randn(5, 8, 7, 7, generator=generator)
    losses = head(x, rois)
    assert list(losses) == ["loss_mask"] and losses["loss_mask"].dtype == torch.float32 and losses["loss_mask"] > 0
    losses["loss_mask"].backward()
    assert all(parameter.grad is not None for parameter in head.parameters())

    found = head.eval()(x, rois)
    assert found is rois and [tuple(image.pred_masks.shape) for image in found] == [
        (3, 1, 14, 14), (0, 1, 14, 14), (2, 1, 14, 14)
    ]  # fmt: skip
    masks = torch.cat([image.pred_masks for image in found])
    assert masks.dtype == torch.float32 and masks.min() >= 0 and masks.max() <= 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("norm", ["", "GN", "BN"])
@pytest.mark.parametrize("counts", [[], [0, 0]])
def test_without_rois_every_parameter_is_in_the_graph(name, norm, counts, generator):
    head = make_head(name, "MODEL.ROI_MASK_HEAD.NORM", norm)
    rois = random_rois(counts, generator)  # without gt_masks
    x = torch.zeros(0, 8, 7, 7, requires_grad=True)
    loss = head(x, rois)["loss_mask"]
    loss.backward()
    assert loss == 0 and x.grad is not None
    for parameter in head.parameters():
        assert parameter.grad is not None and not parameter.grad.any()
    assert all(buffer.isfinite().all() for buffer in head.buffers())
    found = head.eval()(x, rois)
    assert [tuple(image.pred_masks.shape) for image in found] == [(0, 1, 14, 14)] * len(counts)


@pytest.mark.parametrize("channels_last", [False, True])
def test_one_channel_of_the_predictor_equals_all(channels_last, generator):
    """Forward and gradient, against a convolution that predicts all classes."""
    head = make_head().double()
    classes = torch.tensor([4, 0, 4, 2, 1])
    targets = torch.rand(5, 14, 14, generator=generator) < 0.5
    x = torch.randn(5, 8, 7, 7, generator=generator, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    features = head.features(x).detach().requires_grad_()
    all_logits = head.predictor(features)
    one = head.class_logits(features, classes)
    torch.testing.assert_close(one, all_logits[torch.arange(5), classes])
    wanted = [features, *head.predictor.parameters()]
    expected = torch.autograd.grad(mask_loss_reference(all_logits, classes, targets), wanted)
    actual = torch.autograd.grad(head.summed_loss(features, classes, targets), wanted)
    for one_grad, all_grad in zip(actual, expected, strict=True):
        torch.testing.assert_close(one_grad, all_grad, rtol=1e-5, atol=1e-6)


def test_gradcheck_of_one_channel(generator):
    head = make_head().double()
    features = torch.randn(3, 32, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    weight, bias = (p.detach().clone().requires_grad_() for p in head.predictor.parameters())

    def logits(features, weight, bias):
        parameters = {"predictor.weight": weight, "predictor.bias": bias}
        return torch.func.functional_call(Logits(head), {f"head.{k}": v for k, v in parameters.items()}, (features,))

    class Logits(torch.nn.Module):
        def __init__(self, head):
            super().__init__()
            self.head = head

        def forward(self, features):
            return self.head.class_logits(features, torch.tensor([1, 1, 4]))

    assert torch.autograd.gradcheck(logits, (features, weight, bias))


def test_the_mean_is_over_the_rois_and_pixels_of_the_batch(generator):
    head = make_head()
    rois = random_rois([3, 2], generator, mask_size=14)
    x = torch.randn(5, 8, 7, 7, generator=generator)
    joint = head(x, rois)["loss_mask"]
    # Weighted by their RoIs, the parts average to the whole.
    parts = head(x[:3], rois[:1])["loss_mask"] * 3 + head(x[3:], rois[1:])["loss_mask"] * 2
    torch.testing.assert_close(joint, parts / 5)


def test_a_softmax_mask_is_a_share(generator):
    head = make_head("SoftmaxMaskHead").eval()
    assert head.predictor.out_channels == 6
    features = torch.randn(5, 32, 14, 14, generator=generator)
    shares = [head.class_probabilities(features, torch.full((5,), label)) for label in range(5)]
    background = head.predictor(features).softmax(dim=1)[:, 5]
    torch.testing.assert_close(sum(shares) + background, torch.ones(5, 14, 14))


@pytest.mark.parametrize(("num_fc", "shapes"), [(2, [(16, 8 * 49), (16, 16)]), (3, [(16, 8 * 49), (16, 16), (16, 16)])])
def test_fully_connected_layers(num_fc, shapes):
    head = make_head("MLPMaskHead", "MODEL.ROI_MASK_HEAD.NUM_FC", num_fc)
    weights = {name: tuple(value.shape) for name, value in head.named_parameters() if name.endswith("weight")}
    expected = {f"fc{number}.weight": shape for number, shape in enumerate(shapes, start=1)}
    assert weights == {**expected, "predictor.weight": (5 * 14 * 14, 16)}


def test_losses_under_autocast_are_float32(generator):
    rois = random_rois([4], generator, mask_size=14)
    x = torch.randn(4, 8, 7, 7, generator=generator)
    for name in NAMES:
        head = make_head(name)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = head(x, rois)["loss_mask"]
            assert loss.dtype == torch.float32
            assert head.eval()(x, rois)[0].pred_masks.dtype == torch.float32
        torch.testing.assert_close(loss, head.train()(x, rois)["loss_mask"], rtol=0.05, atol=0.05)


def test_names():
    assert isinstance(make_head("MaskRCNNConvUpsampleHead"), FCNMaskHead)
    for head in (FCNMaskHead, SoftmaxMaskHead, MLPMaskHead):
        assert ROI_MASK_HEAD_REGISTRY.get(head.__name__) is head
    with pytest.raises(KeyError, match=r"MODEL\.ROI_MASK_HEAD\.NAME is 'FCNMaskHaed', .*registered: FCNMaskHead"):
        make_head("FCNMaskHaed")


def test_a_registered_head_of_somebody_else(generator):
    @ROI_MASK_HEAD_REGISTRY.register()
    def their_mask_head(cfg, input_shape):
        return FCNMaskHead(cfg, input_shape)

    assert isinstance(make_head("their_mask_head"), FCNMaskHead)


def equal_heads(generator, overrides, num_classes=5):
    """Detectron2's head and ours, with the same weights; and RoIs."""
    theirs = pytest.importorskip("detectron2.modeling.roi_heads.mask_head")
    from detectron2.config import get_cfg as detectron2_cfg

    cfg = detectron2_cfg()
    cfg.merge_from_list(["MODEL.ROI_HEADS.NUM_CLASSES", num_classes, "MODEL.ROI_MASK_HEAD.CONV_DIM", 32, *overrides])
    torch.manual_seed(0)
    expected = theirs.MaskRCNNConvUpsampleHead(cfg, SHAPE)
    torch.nn.init.normal_(expected.predictor.weight, std=0.3)
    actual = make_head("FCNMaskHead", *overrides)
    shapes = [{name: value.shape for name, value in head.state_dict().items()} for head in (actual, expected)]
    assert shapes[0] == shapes[1]
    actual.load_state_dict(expected.state_dict())
    rois = random_rois([4, 0, 3], generator, num_classes=num_classes, mask_size=14)
    return theirs, expected, actual, rois


@pytest.mark.parametrize(
    "overrides",
    [
        ["MODEL.ROI_MASK_HEAD.NUM_CONV", 4],
        ["MODEL.ROI_MASK_HEAD.NUM_CONV", 0],
        ["MODEL.ROI_MASK_HEAD.NUM_CONV", 2, "MODEL.ROI_MASK_HEAD.NORM", "GN"],
        ["MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", True],
    ],
)
def test_equals_detectron2(overrides, generator):
    theirs, expected, actual, rois = equal_heads(generator, overrides)
    from detectron2.utils.events import EventStorage

    x = torch.randn(7, 8, 7, 7, generator=generator).requires_grad_()
    losses, gradients = [], []
    for head in (expected, actual):
        with EventStorage():
            loss = head(x, [image for image in rois if len(image)] if head is expected else rois)["loss_mask"]
        losses.append(loss)
        gradients.append(torch.autograd.grad(loss, [x, *head.parameters()]))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    masks = []
    for head in (expected, actual):
        found = head.eval()(x, rois)
        masks.append(torch.cat([image.pred_masks for image in found]))
    torch.testing.assert_close(*masks, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(d2.ENGINE != "detectron2", reason="Detectron2's own model with our heads")
@pytest.mark.parametrize("name", NAMES)
def test_detectron2_trains_and_predicts_with_our_head(name):
    from detectron2 import model_zoo
    from detectron2.modeling import build_model
    from detectron2.structures import BitMasks, Boxes, Instances
    from detectron2.utils.events import EventStorage

    cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    add_retinanet_ext_config(cfg)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64])
    cfg.merge_from_list(["MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_HEADS.NUM_CLASSES", 5])
    cfg.merge_from_list(["MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16])
    cfg.merge_from_list(["MODEL.ROI_MASK_HEAD.FC_DIM", 16, "MODEL.ROI_MASK_HEAD.NAME", name, "MODEL.MASK_ON", True])
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    model = build_model(cfg)
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, 10:50, 10:50] = True
    truth = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[10.0, 10, 50, 50]])), gt_classes=torch.tensor([2]))
    truth.gt_masks = BitMasks(masks)
    inputs = [{"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "instances": truth, "height": 64, "width": 64}]
    with EventStorage():
        losses = model(inputs)
    assert losses["loss_mask"] > 0
    sum(losses.values()).backward()
    assert model.roi_heads.mask_head.predictor.weight.grad.any()
    found = model.eval()(inputs)[0]["instances"]
    assert len(found) > 0 and found.pred_masks.shape == (len(found), 64, 64)
