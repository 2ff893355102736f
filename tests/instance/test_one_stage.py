"""InstanceRetinaNet: RetinaNet's boxes with masks and keypoints on them."""

import math

import pytest
import torch

from retinanet_ext import d2
from retinanet_ext.training.step import TrainStep
from tests.instance.tiny_rcnn import (
    NUM_CLASSES,
    micro_batch_losses,
    one_stage_config,
    two_stage_batch,
    two_stage_config,
)

BRANCHES = ["MODEL.MASK_ON", "True", "MODEL.KEYPOINT_ON", "True"]
LOSSES = {"loss_cls", "loss_box_reg", "loss_mask", "loss_keypoint"}


def build(*opts: str):
    torch.manual_seed(0)
    model = d2.build_model(one_stage_config(*opts))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, values in model.named_parameters():  # outputs that differ from place to place
            if name in ("head.cls_score.weight", "head.bbox_pred.weight"):
                values.copy_(0.05 * torch.randn(values.shape, generator=generator))
            if name.endswith(("mask_head.predictor.weight", "keypoint_head.score_lowres.weight")):
                values.copy_(0.1 * torch.randn(values.shape, generator=generator))
    return model


def plain_twin(model):
    """FocalRetinaNet with the weights of ``model``."""
    twin = d2.build_model(one_stage_config("MODEL.META_ARCHITECTURE", "FocalRetinaNet"))
    missing = twin.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert missing == []
    return twin


def train(model, inputs) -> dict:
    torch.manual_seed(0)
    with d2.EventStorage(0):
        losses = model(inputs)
        sum(losses.values()).backward()
    return losses


def without_gradient(model) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_boxes_scores_and_detection_losses_are_those_of_focal_retinanet():
    model = build(*BRANCHES)
    with torch.no_grad():
        model.head.bbox_pred.bias.view(-1, 4)[:, 3] = 1.0  # tall boxes, so that some leave the image
    twin, inputs = plain_twin(model), two_stage_batch((96, 128), (112, 80))
    losses, expected = train(model, inputs), train(twin, inputs)
    assert losses.keys() == LOSSES and expected.keys() == {"loss_cls", "loss_box_reg"}
    for name in expected:
        assert torch.equal(losses[name], expected[name])
    model.eval(), twin.eval()
    for height, width in ((96, 128), (133, 201), (227, 71), (200, 299)):  # float32: 112 * (227 / 112) < 227
        for image in inputs:
            image.update(height=height, width=width)
        with torch.no_grad():
            pairs = list(zip(model(inputs), twin(inputs), strict=True))
        for found, wanted in ((a["instances"], b["instances"]) for a, b in pairs):
            assert (wanted.pred_boxes.tensor[:, 3] == height).any()
            assert torch.equal(found.pred_boxes.tensor, wanted.pred_boxes.tensor)
            assert torch.equal(found.scores, wanted.scores) and torch.equal(found.pred_classes, wanted.pred_classes)


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("keypoint", [True, False])
def test_a_branch_that_is_off_is_absent(mask, keypoint):
    model = build("MODEL.MASK_ON", str(mask), "MODEL.KEYPOINT_ON", str(keypoint))
    on = {name for name, is_on in (("mask", mask), ("keypoint", keypoint)) if is_on}
    parts = {name.split(".")[1] for name, _ in model.named_parameters() if name.startswith("roi_heads.")}
    assert parts == {f"{name}_head" for name in on}
    inputs = two_stage_batch((96, 96))
    for name in {"mask", "keypoint"} - on:  # data that are not needed may be absent
        inputs[0]["instances"].remove(f"gt_{name}s")
    for batch in (inputs, []):
        assert train(model, batch).keys() == {"loss_cls", "loss_box_reg"} | {f"loss_{name}" for name in on}
    with torch.no_grad():
        found = model.eval()(inputs)[0]["instances"]
    assert {name for name in ("mask", "keypoint") if found.has(f"pred_{name}s")} == on


def iou(a, b) -> float:
    """Of two boxes, by hand."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def sampled(model, inputs) -> list:
    """The RoIs that the branches learn on."""
    seen = []
    model.sample_rois, sample = lambda *arguments: seen.append(sample(*arguments)) or seen[0], model.sample_rois
    train(model, inputs)
    return seen[0]


def test_each_sampled_roi_overlaps_the_object_that_it_carries():
    # Nearly all anchors of all classes are detected.
    opts = ["MODEL.RETINANET.ROIS.MAX_PER_IMAGE", "5000", "MODEL.RETINANET.ROIS.NMS_THRESH", "0.95"]
    model = build(*BRANCHES, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "1000", *opts)
    inputs = two_stage_batch((96, 128), (112, 80))
    for image, inputs_of_image in zip(sampled(model, inputs), inputs, strict=True):
        truth = inputs_of_image["instances"]
        boxes = truth.gt_boxes.tensor.tolist()
        rois = image.proposal_boxes.tensor.tolist()
        assert all(box in rois for box in boxes) and len(rois) > len(boxes) + 3
        for index, roi in enumerate(rois):
            height, width = truth.image_size
            assert 0 <= roi[0] <= roi[2] <= width and 0 <= roi[1] <= roi[3] <= height
            carried = boxes.index(image.gt_boxes.tensor[index].tolist())
            overlaps = [iou(roi, box) for box in boxes]
            assert overlaps[carried] >= 0.5 and overlaps[carried] == max(overlaps)
            assert image.gt_classes[index] == truth.gt_classes[carried]
            assert (image.gt_masks.polygons[index][0] == truth.gt_masks.polygons[carried][0]).all()
            assert torch.equal(image.gt_keypoints.tensor[index], truth.gt_keypoints.tensor[carried])


def test_without_detections_the_objects_alone_are_sampled():
    inputs = two_stage_batch((96, 128))
    (image,) = sampled(build(*BRANCHES, "MODEL.RETINANET.SCORE_THRESH_TEST", "1.0"), inputs)
    found, wanted = image.proposal_boxes.tensor.tolist(), inputs[0]["instances"].gt_boxes.tensor.tolist()
    assert sorted(found) == sorted(wanted)


def test_at_most_the_fraction_of_foreground_is_sampled():
    opts = ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "16", "MODEL.ROI_HEADS.POSITIVE_FRACTION", "0.25"]
    images = sampled(build(*BRANCHES, *opts), two_stage_batch((96, 128), (112, 80), num_objects=6))
    assert [len(image) for image in images] == [4, 4]


def test_every_parameter_has_a_gradient_without_objects_images_or_positives():
    no_positives = ["MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", "False", "MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.999]"]
    empty = two_stage_batch((96, 128), num_objects=0)
    for inputs, opts in ((empty, []), ([], []), (two_stage_batch((96, 128)), no_positives)):
        model = build(*BRANCHES, *opts)
        losses = train(model, inputs)
        assert losses.keys() == LOSSES and losses["loss_mask"] == losses["loss_keypoint"] == 0
        assert (losses["loss_cls"] == 0) == (not inputs)
        assert without_gradient(model) == []
    assert model.eval()([]) == []


def test_masks_lie_in_their_clipped_box_in_both_forms():
    model, inputs = build(*BRANCHES).eval(), two_stage_batch((96, 128))
    inputs[0].update(height=133, width=201)
    with torch.no_grad():
        dense = model(inputs)[0]["instances"]
        model.encode_masks = True
        encoded = model(inputs)[0]["instances"]
    assert dense.pred_masks.shape == (len(dense), 133, 201) and dense.pred_masks.any(dim=(1, 2)).sum() > 5
    assert dense.pred_keypoints.shape == (len(dense), 4, 3)
    for mask, (x0, y0, x1, y1) in zip(dense.pred_masks, dense.pred_boxes.tensor.tolist()):
        rows, columns = mask.nonzero().unbind(dim=1)
        assert 0 <= x0 <= x1 <= 201 and 0 <= y0 <= y1 <= 133
        if len(rows):
            # A mask may extend half a cell of 28 beyond its outermost cell centres, and is drawn at pixel centres.
            assert columns.min() >= math.floor(x0) - 1 and columns.max() <= math.ceil(x1)
            assert rows.min() >= math.floor(y0) - 1 and rows.max() <= math.ceil(y1)
    assert torch.equal(encoded.pred_masks.tensor, dense.pred_masks)
    assert torch.equal(encoded.pred_boxes.tensor, dense.pred_boxes.tensor)


@pytest.mark.parametrize("encode", [False, True])
def test_an_image_without_detections_has_no_masks_and_no_keypoints(encode):
    model = build(*BRANCHES, "MODEL.RETINANET.SCORE_THRESH_TEST", "1.0").eval()
    model.encode_masks = encode
    with torch.no_grad():
        found = model(two_stage_batch((96, 128)))[0]["instances"]
    assert len(found) == len(found.pred_masks) == 0 and found.pred_keypoints.shape == (0, 4, 3)
    assert found.pred_masks.tensor.shape == (0, 96, 128) if encode else found.pred_masks.shape == (0, 96, 128)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.ROI_HEADS.NUM_CLASSES", "4"], "RETINANET.NUM_CLASSES is 5 and MODEL.ROI_HEADS.NUM_CLASSES is 4"),
        (["MODEL.ROI_HEADS.IN_FEATURES", "['p2', 'p3']"], r"IN_FEATURES names \['p2'\].* maps p3, p4, p5"),
        (["MODEL.RETINANET.IN_FEATURES", "['p3', 'p4', 'p5', 'p6']", "MODEL.ROI_HEADS.IN_FEATURES", "['p7']",
          "MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [24], [32], [48]]"], r"IN_FEATURES names \['p7'\]"),
        (["MODEL.ROI_HEADS.IN_FEATURES", "[]"], "IN_FEATURES is empty; name one or more"),
    ],
)  # fmt: skip
def test_refusals(opts, message):
    with pytest.raises(ValueError, match=message):
        build(*BRANCHES, *opts)


def test_bad_ground_truth_names_the_file():
    model, inputs = build(*BRANCHES), two_stage_batch((96, 96))
    inputs[0]["instances"].gt_classes[1] = NUM_CLASSES
    with pytest.raises(ValueError, match=r"image_0.png: object 1 has class 5; .*MODEL.RETINANET.NUM_CLASSES is 5"):
        model(inputs)
    for field, key in (("gt_keypoints", "KEYPOINT_ON"), ("gt_masks", "MASK_ON")):
        inputs = two_stage_batch((96, 96))
        inputs[0]["instances"].remove(field)
        with pytest.raises(ValueError, match=rf"image_0.png: no {field}, but MODEL.{key} is True"):
            model(inputs)


def branch_weights(model) -> dict:
    return {
        name: value
        for name, value in model.state_dict().items()
        if name.startswith(("roi_heads.mask_head.", "roi_heads.keypoint_head."))
    }


def test_branches_have_the_names_and_take_the_weights_of_mask_rcnn(tmp_path):
    from retinanet_ext.checkpoint.weights import load_weights

    torch.manual_seed(1)
    two_stage = d2.build_model(two_stage_config("FPN", *BRANCHES))
    one_stage, expected = build(*BRANCHES), branch_weights(two_stage)
    assert {n: v.shape for n, v in branch_weights(one_stage).items()} == {n: v.shape for n, v in expected.items()}
    assert len(expected) > 8
    torch.save({"model": two_stage.state_dict()}, tmp_path / "mask_rcnn.pth")
    load_weights(one_stage, str(tmp_path / "mask_rcnn.pth"))
    for name, value in branch_weights(one_stage).items():
        assert torch.equal(value, expected[name]), name


def test_micro_batches_add_up():
    model = build(*BRANCHES, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "1000", "MODEL.RETINANET.NORMALIZER", "foreground")
    total, mean, whole = micro_batch_losses(model)
    for names, expected in ((("loss_cls", "loss_box_reg"), whole), (("loss_mask", "loss_keypoint"), mean)):
        for name in names:
            torch.testing.assert_close(total[name], expected[name], rtol=1e-4, atol=1e-6)


def test_accumulated_steps_train_all_parts():
    model = build(*BRANCHES)
    inputs = two_stage_batch((96, 96), (96, 128))
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    step = TrainStep(model, [inputs], optimizer, storage=d2.get_event_storage, accumulate=2)
    with d2.EventStorage(0) as storage:
        step.run_step()
    assert storage.latest().keys() >= LOSSES
    assert [n for n, p in model.named_parameters() if p.grad.any() and torch.equal(p, before[n])] == []
    assert model.roi_heads.mask_head.predictor.weight.grad.any()


def test_gradient_checkpointing_changes_nothing():
    models = [build(*BRANCHES, "MODEL.GRADIENT_CHECKPOINTING", flag) for flag in ("False", "True")]
    plain, checkpointed = (train(model, two_stage_batch((96, 96))) for model in models)
    for name in LOSSES:
        torch.testing.assert_close(checkpointed[name], plain[name])
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters()):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-5 * a.grad.abs().max().item(), msg=name)


def test_losses_and_detections_are_float32_under_autocast():
    model, inputs = build(*BRANCHES), two_stage_batch((96, 128))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = train(model, inputs)
        with torch.no_grad():
            found = model.eval()(inputs)[0]["instances"]
    assert {losses[name].dtype for name in LOSSES} == {torch.float32}
    assert found.pred_boxes.tensor.dtype == found.scores.dtype == found.pred_keypoints.dtype == torch.float32
    assert found.pred_masks.dtype == torch.bool


def test_a_copy_in_bfloat16_has_masks_and_keypoints():
    from retinanet_ext.inference.fast_copy import optimize_for_inference

    model, inputs = build(*BRANCHES).eval(), two_stage_batch((96, 128))
    fast = optimize_for_inference(model, dtype="bfloat16")
    with torch.no_grad():
        found = fast(inputs)[0]["instances"]
    assert len(found) > 5 and found.pred_masks.any() and found.pred_keypoints.dtype == torch.float32


@pytest.mark.parametrize("part", ["head.bbox_pred.bias", "head.cls_score.bias", "roi_heads.mask_head.predictor.bias"])
def test_a_network_that_is_not_finite_stops_with_its_losses_and_images(part):
    model = build(*BRANCHES)
    model.get_parameter(part).data.fill_(math.nan)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    step = TrainStep(model, [two_stage_batch((96, 96))], optimizer, storage=d2.get_event_storage)
    with d2.EventStorage(0), pytest.raises(FloatingPointError, match=r"loss_\w+ = nan.*image_0.png"):
        step.run_step()
