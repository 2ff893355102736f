"""MaskRCNN without another engine beside it: batches without objects, refusals, options, formats of masks."""

import math

import pytest
import torch

from retinanet_ext import d2
from retinanet_ext.training.step import TrainStep
from tests.instance.tiny_rcnn import NUM_CLASSES, NUM_KEYPOINTS, tame, two_stage_batch, two_stage_config

BRANCHES = ["MODEL.MASK_ON", "True", "MODEL.KEYPOINT_ON", "True"]
LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask", "loss_keypoint"}


def build(*opts: str, form: str = "FPN"):
    torch.manual_seed(0)
    model = d2.build_model(two_stage_config(form, *opts))
    tame(model)
    return model


def train(model, inputs) -> dict:
    torch.manual_seed(0)
    with d2.EventStorage(0) as storage:
        losses = model(inputs)
        sum(losses.values()).backward()
    return {**losses, "storage": storage}


def test_every_parameter_has_a_gradient_without_objects_and_without_images():
    for inputs in (two_stage_batch((96, 128), num_objects=0), []):
        model = build(*BRANCHES)
        losses = train(model, inputs)
        assert losses.keys() - {"storage"} == LOSSES
        for name in ("loss_rpn_loc", "loss_box_reg", "loss_mask", "loss_keypoint"):
            assert losses[name] == 0
        assert (losses["loss_cls"] == 0) == (not inputs)
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert model.eval()([]) == []


PARTS = ["proposal_generator.rpn_head.anchor_deltas", "proposal_generator.rpn_head.objectness_logits"]
PARTS += ["roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred", "roi_heads.mask_head.predictor"]


@pytest.mark.parametrize("part", PARTS)
def test_a_network_that_is_not_finite_stops_with_its_losses_and_images(part):
    model = build(*BRANCHES)
    model.get_parameter(f"{part}.bias").data.fill_(math.nan)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    step = TrainStep(model, [two_stage_batch((96, 96))], optimizer, storage=d2.get_event_storage)
    with d2.EventStorage(0), pytest.raises(FloatingPointError, match=r"loss_\w+ = nan.*image_0.png"):
        step.run_step()


def test_one_wild_anchor_outside_the_sample_makes_the_loss_nan():
    model = build("MODEL.RPN.BATCH_SIZE_PER_IMAGE", "2")
    rpn, inputs = model.proposal_generator, two_stage_batch((96, 96))
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    logits, deltas = rpn.dense_outputs(features)
    deltas[0].data[0, 7, 2] = math.inf
    with d2.EventStorage(0):
        _, losses = rpn(images, features, [inputs[0]["instances"]], outputs=(logits, deltas))
    assert all(loss.isnan() for loss in losses.values())


@pytest.mark.parametrize("form", ["FPN", "C4"])
def test_no_positive_roi(form):
    opts = ["MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", "False", "MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.99]"]
    model = build(*opts, *(BRANCHES if form == "FPN" else BRANCHES[:2]), form=form)
    losses = train(model, two_stage_batch((96, 128)))
    assert losses["loss_cls"] > 0
    assert losses["loss_box_reg"] == losses["loss_mask"] == losses.get("loss_keypoint", 0) == 0
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_sampled_rois_have_the_fraction_of_foreground_and_include_the_objects():
    model = build("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "MODEL.ROI_HEADS.POSITIVE_FRACTION", "0.25")
    target = two_stage_batch((96, 128), num_objects=6)[0]["instances"]
    boxes = torch.cat([target.gt_boxes.tensor + shift for shift in (0.5, 1.0)] + [torch.rand(40, 4).cumsum(dim=1) * 9])
    proposals = d2.Instances((96, 128), proposal_boxes=d2.Boxes(boxes), objectness_logits=torch.zeros(len(boxes)))
    (sampled,) = model.roi_heads.sampler([proposals], [target])
    assert len(sampled) == 16
    assert (sampled.gt_classes < NUM_CLASSES).tolist() == [True] * 4 + [False] * 12
    # Only the objects themselves reach an IoU of 0.999.
    model.roi_heads.sampler.matcher.thresholds = (0.999,)
    (sampled,) = model.roi_heads.sampler([proposals], [target])
    assert (sampled.gt_classes < NUM_CLASSES).sum() == 4
    assert torch.equal(sampled.proposal_boxes.tensor[:4], sampled.gt_boxes.tensor[:4])
    assert torch.equal(sampled.gt_classes[:4], target.gt_classes[sampled.gt_index[:4]])


def test_keypoints_train_only_rois_that_contain_one():
    from retinanet_ext.instance.roi_targets import with_visible_keypoints

    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30]])
    points = torch.tensor([[[10.0, 10, 2]], [[5, 5, 0]], [[10.5, 5, 1]], [[20, 25, 1]]])
    image = d2.Instances((40, 40), proposal_boxes=d2.Boxes(boxes), gt_keypoints=d2.Keypoints(points))
    (kept,) = with_visible_keypoints([image])
    assert torch.equal(kept.proposal_boxes.tensor, boxes[[0, 3]])  # on the border; not labelled; outside; on the border


def test_bad_ground_truth_names_the_file():
    model, inputs = build(*BRANCHES), two_stage_batch((96, 96))
    inputs[0]["instances"].gt_classes[1] = NUM_CLASSES
    with pytest.raises(ValueError, match=r"image_0.png: object 1 has class 5; .*MODEL.ROI_HEADS.NUM_CLASSES is 5"):
        model(inputs)
    inputs = two_stage_batch((96, 96))
    inputs[0]["instances"].gt_keypoints = d2.Keypoints(torch.zeros(3, NUM_KEYPOINTS + 1, 3))
    with pytest.raises(ValueError, match=r"image_0.png: 5 keypoints per object, but .*NUM_KEYPOINTS is 4"):
        model(inputs)
    for field, key in (("gt_keypoints", "KEYPOINT_ON"), ("gt_masks", "MASK_ON")):
        inputs[0]["instances"].remove(field)
        with pytest.raises(ValueError, match=rf"image_0.png: no {field}, but MODEL.{key} is True"):
            model(inputs)


@pytest.mark.parametrize(
    ("form", "opts", "message"),
    [
        ("FPN", ["MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"], "PROPOSAL_GENERATOR.NAME is 'RRPN'.*registered: RPN"),
        ("FPN", ["MODEL.LOAD_PROPOSALS", "True"], "LOAD_PROPOSALS is True"),
        ("FPN", ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads"], "ROI_HEADS.NAME is 'Cascade.*Res5ROIHeads"),
        ("FPN", ["MODEL.ROI_HEADS.IN_FEATURES", "['p9']"], r"ROI_HEADS.IN_FEATURES names \['p9'\].* maps p2, p3"),
        ("FPN", ["MODEL.ROI_BOX_HEAD.USE_FED_LOSS", "True"], "USE_FED_LOSS is True"),
        ("FPN", ["MODEL.ROI_BOX_HEAD.NAME", "MyHead"], "ROI_BOX_HEAD.NAME is 'MyHead'; legal"),
        ("FPN", ["MODEL.ROI_BOX_HEAD.NUM_FC", "0"], "NUM_CONV and NUM_FC are both 0"),
        ("FPN", ["MODEL.ROI_HEADS.IOU_LABELS", "[0, 1, 1]"], "MODEL.ROI_HEADS: IOU_LABELS needs 2 entries"),
        ("C4", ["MODEL.KEYPOINT_ON", "True"], "Res5ROIHeads has no keypoint branch"),
        ("C4", ["MODEL.ROI_HEADS.RES5_STRIDE", "3"], "RES5_STRIDE is 3; legal values: 1, 2"),
    ],
)
def test_refusals(form, opts, message):
    with pytest.raises((KeyError, ValueError), match=message):
        build(*opts, form=form)


def test_a_config_without_our_keys():
    cfg = d2.get_cfg()
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "MaskRCNN", "MODEL.DEVICE", "cpu"])
    with pytest.raises(KeyError, match="call retinanet_ext.add_retinanet_ext_config"):
        d2.build_model(cfg)


def test_encoded_masks_are_the_dense_ones():
    model, inputs = build(*BRANCHES).eval(), two_stage_batch((96, 128))
    inputs[0].update(height=133, width=201)
    with torch.no_grad():
        dense = model(inputs)[0]["instances"]
        model.encode_masks = True
        encoded = model(inputs)[0]["instances"]
    assert len(dense) > 5 and dense.pred_masks.any()
    assert torch.equal(encoded.pred_masks.tensor, dense.pred_masks)


def test_detections_are_scaled_as_the_boxes_and_empty_ones_are_dropped():
    from retinanet_ext.instance.postprocess import scale_detections

    boxes = d2.Boxes(torch.tensor([[0.0, 0, 10, 20], [5, 5, 5, 9], [10, 10, 30, 90]]))
    points = torch.tensor([[[1.0, 2, 7]], [[0, 0, 0]], [[20, 40, -1]]])
    found = d2.Instances((100, 50), pred_boxes=boxes, pred_keypoints=points, pred_masks=torch.ones(3, 1, 4, 4))
    scaled = scale_detections(found, 50, 100)
    assert scaled.image_size == (50, 100)
    assert scaled.pred_boxes.tensor.tolist() == [[0, 0, 20, 10], [20, 5, 60, 45]]
    assert scaled.pred_keypoints.tolist() == [[[2, 1, 7]], [[40, 20, -1]]]
    assert scaled.pred_masks.shape == (2, 50, 100)
    # Pixel centres strictly within the outermost cell centres are 1 for certain.
    assert scaled.pred_masks[1, 12:38, 28:52].all() and not scaled.pred_masks[1, :, 62:].any()
    assert len(found) == 3 and found.pred_masks.shape == (3, 1, 4, 4)


def test_the_papers_c4_form_has_the_same_parameters_and_map_sizes():
    paper = ["MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "7", "MODEL.ROI_HEADS.RES5_STRIDE", "1"]
    models = [build("MODEL.MASK_ON", "True", *opts, form="C4") for opts in ([], paper)]
    shapes = [{name: p.shape for name, p in model.state_dict().items()} for model in models]
    assert shapes[0] == shapes[1]
    for model, side in zip(models, (14, 7)):
        sizes = []
        for module in (model.roi_heads.pooler, model.roi_heads.res5):
            module.register_forward_hook(lambda *call, sizes=sizes: sizes.append(call[-1].shape[-2:]))
        losses = train(model, two_stage_batch((96, 96)))
        assert losses["loss_mask"] > 0
        assert sizes == [(side, side), (7, 7)]


def test_gradient_checkpointing_changes_nothing():
    for form in ("FPN", "C4"):
        models = [build("MODEL.GRADIENT_CHECKPOINTING", flag, form=form) for flag in ("False", "True")]
        assert (
            "Recomputed"
            in type(models[1].backbone.bottom_up.res2 if form == "FPN" else models[1].roi_heads.res5).__name__
        )
        plain, checkpointed = (train(model, two_stage_batch((96, 96))) for model in models)
        for name in plain.keys() & LOSSES:
            torch.testing.assert_close(checkpointed[name], plain[name])
        for (name, a), b in zip(models[0].named_parameters(), models[1].parameters()):
            if a.grad is not None:
                torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-5 * a.grad.abs().max().item(), msg=name)


def test_sigmoid_losses_by_config_train_and_detect():
    opts = ["MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", "focal", "MODEL.ROI_BOX_HEAD.CLS_LOSS.PRIOR_PROB", "0.01"]
    opts += ["MODEL.RPN.CLS_LOSS.NAME", "focal", "MODEL.ROI_BOX_HEAD.BOX_LOSS.NAME", "giou"]
    torch.manual_seed(0)
    model = d2.build_model(two_stage_config("FPN", *opts))
    assert torch.sigmoid(model.roi_heads.box_predictor.cls_score.bias).tolist() == pytest.approx([0.01] * 6)
    tame(model)
    assert train(model, two_stage_batch((96, 128)))["loss_cls"] > 0
    with torch.no_grad():
        scores = model.eval()(two_stage_batch((96, 128)))[0]["instances"].scores
    assert len(scores) > 5 and scores.max() < 1


def test_losses_and_detections_are_float32_under_autocast():
    model, inputs = build(*BRANCHES), two_stage_batch((96, 128))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = train(model, inputs)
        with torch.no_grad():
            found = model.eval()(inputs)[0]["instances"]
    assert {losses[name].dtype for name in LOSSES} == {torch.float32}
    dtypes = {name: getattr(value, "tensor", value).dtype for name, value in found.get_fields().items()}
    assert dtypes == {
        "pred_boxes": torch.float32,
        "scores": torch.float32,
        "pred_classes": torch.int64,
        "pred_masks": torch.bool,
        "pred_keypoints": torch.float32,
    }


def test_a_picture_of_training():
    model = build("VIS_PERIOD", "1")
    storage = train(model, two_stage_batch((96, 128)))["storage"]
    (picture,) = storage._vis_data
    assert picture[1].shape == (3, 2 * 96, 128)
    assert storage.latest()["roi_head/num_fg_samples"][0] > 0
