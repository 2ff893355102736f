import pytest
import torch

from retinanet_ext.d2 import EventStorage, build_model, get_cfg, get_event_storage
from retinanet_ext.losses import CLS_LOSS_REGISTRY, giou_loss, sum_per_image
from tests.builders import batch, ground_truth, small_config


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(small_config())


def test_losses_fall_when_one_batch_is_repeated(generator):
    torch.manual_seed(0)
    model = build_model(small_config("MODEL.RETINANET.NORMALIZER", "foreground"))
    inputs = batch(generator, (96, 128), (128, 96))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9)
    totals = []
    for _ in range(30):
        loss = sum(model(inputs).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert totals[-1] < 0.5 * totals[0]


def test_every_parameter_gets_a_gradient(generator):
    model = build_model(small_config())
    sum(model(batch(generator, (96, 96), (96, 96))).values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert without == []


def test_prior_probability_sets_the_initial_scores(model, generator):
    features = model.backbone(model.preprocess_image(batch(generator, (64, 64))).tensor)
    logits, _ = model.head([features[name] for name in model.head_in_features])
    for level in logits:
        assert level.sigmoid().mean().item() == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize("norm", ["GN", "BN", "SyncBN", "FrozenBN"])
def test_head_norms_train(norm, generator):
    model = build_model(small_config("MODEL.RETINANET.NORM", norm))
    if norm == "SyncBN":
        model.eval()  # nothing to synchronise without a process group, but the layers must still run
        assert len(model(batch(generator, (64, 64)))) == 1
        return
    losses = model(batch(generator, (96, 96), (96, 96)))
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("box_loss", ["smooth_l1", "l1", "giou", "diou", "ciou"])
@pytest.mark.parametrize("normalizer", ["ema", "foreground"])
def test_empty_images_have_no_box_loss_and_a_graph(box_loss, normalizer, generator):
    model = build_model(
        small_config("MODEL.RETINANET.BOX_LOSS.NAME", box_loss, "MODEL.RETINANET.NORMALIZER", normalizer)
    )
    losses = model(batch(generator, (64, 64), (64, 64), num_objects=0))
    sum(losses.values()).backward()
    assert losses["loss_box_reg"].item() == 0
    assert losses["loss_cls"].item() > 0  # the background still has to be learnt
    assert torch.isfinite(model.head.cls_score.weight.grad).all()
    assert (model.head.bbox_pred.weight.grad == 0).all()


def test_no_images_at_all(model):
    losses = model([])
    sum(losses.values()).backward()
    assert {name: loss.item() for name, loss in losses.items()} == {"loss_cls": 0.0, "loss_box_reg": 0.0}
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert model.eval()([]) == []


def test_foreground_normaliser_is_a_mean_over_images(generator):
    model = build_model(small_config("MODEL.RETINANET.NORMALIZER", "foreground"))
    inputs = batch(generator, (96, 96), (96, 96))
    together = model(inputs)
    alone = [model([image]) for image in inputs]
    for name, loss in together.items():
        torch.testing.assert_close(loss, (alone[0][name] + alone[1][name]) / 2, rtol=1e-4, atol=1e-6)


def test_detections_are_scaled_to_the_size_asked_for(model, generator):
    model.eval()
    model.test_score_thresh = 0.0
    image = batch(generator, (64, 96))[0]["image"]
    with torch.no_grad():
        plain = model([{"image": image}])[0]["instances"]
        doubled = model([{"image": image, "height": 128, "width": 192}])[0]["instances"]
    assert plain.image_size == (64, 96) and doubled.image_size == (128, 192)
    assert len(plain) == 100 and (plain.scores.diff() <= 0).all()
    torch.testing.assert_close(doubled.pred_boxes.tensor, 2 * plain.pred_boxes.tensor)


def test_a_loss_of_somebody_else_sees_boxes_and_anchors(generator, monkeypatch):
    class ScoreIsOverlap(torch.nn.Module):
        """The score of each foreground anchor should be the GIoU of its box; nothing for background."""

        def forward(self, predictions, targets):
            anchors = predictions.anchors[targets.anchor_index]
            boxes = predictions.decode(predictions.deltas[targets.image_index, targets.anchor_index], anchors)
            classes = targets.labels[targets.image_index, targets.anchor_index]
            scores = predictions.logits[targets.image_index, targets.anchor_index, classes].sigmoid()
            return sum_per_image((scores - (1 - giou_loss(boxes, targets.gt_boxes))).abs(), targets)

    monkeypatch.setitem(CLS_LOSS_REGISTRY._obj_map, "score_is_overlap", lambda cfg: ScoreIsOverlap())
    torch.manual_seed(0)
    theirs = build_model(small_config("MODEL.RETINANET.CLS_LOSS.NAME", "score_is_overlap"))
    inputs = batch(generator, (64, 96), (96, 64))
    losses = theirs(inputs)
    losses["loss_cls"].backward()
    assert 0 < losses["loss_cls"] < 20 and theirs.head.bbox_pred.weight.grad.any()


def test_images_of_a_batch_do_not_influence_each_other(model, generator):
    model.eval()
    model.test_score_thresh = 0.0
    inputs = [{"image": image["image"]} for image in batch(generator, (64, 96), (64, 96))]
    with torch.no_grad():
        together = model(inputs)
        for image, expected in zip(inputs, together):
            alone = model([image])[0]["instances"]
            torch.testing.assert_close(alone.scores, expected["instances"].scores)


def test_bfloat16_autocast_gives_float32_losses_near_the_exact_ones(model, generator):
    inputs = batch(generator, (96, 96), (96, 96))
    exact = model(inputs)
    model.loss_normalizer.average.fill_(100.0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(inputs)
    for name, loss in exact.items():
        assert rounded[name].dtype == torch.float32
        assert rounded[name].item() == pytest.approx(loss.item(), rel=0.05)


def test_reports_foreground_anchors_and_pictures(generator):
    model = build_model(small_config("VIS_PERIOD", "1"))
    with EventStorage(0) as storage:
        model(batch(generator, (96, 96)))
        assert get_event_storage().latest()["num_pos_anchors"][0] >= 2
        (_, picture, _) = storage._vis_data[0]
    assert tuple(picture.shape) == (3, 192, 96)


@pytest.mark.parametrize(
    "instances, message",
    [
        (None, "image_0.png: no 'instances'"),
        (ground_truth(64, 64, [[1, 1, 9, 9]], [3]), r"image_0.png: object 0 has class 3; legal are 0..2"),
        (ground_truth(64, 64, [[1, 1, 9, 9]], [-1]), "has class -1"),
        (ground_truth(64, 64, [[1, 1, 9, 9], [5, 5, 5, 9]], [0, 0]), r"object 1 has the box \[5.0, 5.0, 5.0, 9.0\]"),
        (ground_truth(64, 64, [[1, 1, float("nan"), 9]], [0]), "not finite"),
    ],
)
def test_unusable_ground_truth_is_refused(model, generator, instances, message):
    inputs = batch(generator, (64, 64))
    del inputs[0]["instances"]
    if instances is not None:
        inputs[0]["instances"] = instances
    with pytest.raises(ValueError, match=message):
        model(inputs)


@pytest.mark.parametrize(
    "opts, error, message",
    [
        (["MODEL.RETINANET.NORMALIZER", "em"], ValueError, "legal values: ema, foreground"),
        (["MODEL.RETINANET.HEAD.NAME", "RetinaHead"], KeyError, "registered: RetinaNetHead"),
        (["MODEL.RETINANET.CLS_LOSS.NAME", "focl"], KeyError, "registered: focal"),
        (["MODEL.RETINANET.MATCHER.NAME", "Matcher"], KeyError, "registered: .*IoUMatcher"),
        (["MODEL.RETINANET.MATCHER.LOW_QUALITY", "above"], ValueError, "above_low"),
        (["MODEL.RETINANET.PRIOR_PROB", "0.0"], ValueError, "PRIOR_PROB is 0.0"),
        (["MODEL.RETINANET.IN_FEATURES", "['p2', 'p3']"], ValueError, r"names \['p2'\]"),
        (["MODEL.RETINANET.BOX_LOSS.NAME", "l1", "MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "giou"], ValueError, "'l1'"),
    ],
)
def test_bad_settings(opts, error, message):
    with pytest.raises(error, match=message):
        build_model(small_config(*opts))


def test_a_config_without_our_keys():
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "FocalRetinaNet", "MODEL.DEVICE", "cpu"])
    with pytest.raises(KeyError, match="call retinanet_ext.add_retinanet_ext_config"):
        build_model(cfg)


def test_p6_from_p5():
    model = build_model(small_config("MODEL.BACKBONE.NAME", "build_retinanet_p5_resnet_fpn_backbone"))
    assert model.backbone.top_block.p6.in_channels == 32
    assert build_model(small_config()).backbone.top_block.p6.in_channels == 512
    assert len(model.eval()([{"image": torch.zeros(3, 64, 64)}])) == 1
