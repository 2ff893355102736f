"""InstanceRetinaNet with an embedding branch: the branch, its loss, and both engines."""

import os
import subprocess
import sys

import pytest
import torch

from retinanet_ext import d2
from retinanet_ext.embedding import EMBEDDING_LOSS_REGISTRY
from retinanet_ext.inference.fast_copy import optimize_for_inference
from retinanet_ext.instance.roi_targets import with_known_identities
from tests.conftest import REPO_ROOT
from tests.instance.tiny_rcnn import one_stage_config, tame, two_stage_batch, two_stage_config

BRANCHES = ["MODEL.MASK_ON", "True", "MODEL.KEYPOINT_ON", "True"]
EMBEDDING = ["MODEL.EMBEDDING_ON", "True", "MODEL.EMBEDDING.DIM", "6", "MODEL.ROI_EMBEDDING_HEAD.NUM_CONV", "1"]
EMBEDDING += ["MODEL.ROI_EMBEDDING_HEAD.CONV_DIM", "8", "MODEL.ROI_EMBEDDING_HEAD.POOLER_RESOLUTION", "7"]
ALL = [*BRANCHES, *EMBEDDING]
LOSSES = {"loss_cls", "loss_box_reg", "loss_mask", "loss_keypoint", "loss_embedding"}


@EMBEDDING_LOSS_REGISTRY.register(name="test_pairs")
def build_pairs(cfg):
    return Pairs()


class Pairs(torch.nn.Module):
    """Mean squared distance of all pairs of one identity, and of no pairs 0."""

    def forward(self, embeddings, identities):
        distances = (embeddings[:, None] - embeddings[None]).square().sum(dim=2)
        same = (identities[:, None] == identities[None]).float()
        return {"loss_pairs": (distances * same).sum() / same.sum().clamp(min=1)}, {"pairs": same.sum()}


PAIRS = [*ALL, "MODEL.EMBEDDING.LOSS.NAME", "test_pairs"]


def build(*opts: str):
    torch.manual_seed(0)
    return spread(d2.build_model(one_stage_config(*opts)))


@torch.no_grad()
def spread(model):
    """Outputs that differ from place to place."""
    generator = torch.Generator().manual_seed(7)
    for name, values in model.named_parameters():
        if name in ("head.cls_score.weight", "head.bbox_pred.weight"):
            values.copy_(0.05 * torch.randn(values.shape, generator=generator))
        if name.endswith("embedding_head.projection.weight"):
            values.copy_(torch.randn(values.shape, generator=generator))
    return model


def identified(*sizes, identities=(0, 1, -1), **options) -> list[dict]:
    """A batch whose objects have these identities, in each image."""
    inputs = two_stage_batch(*sizes, num_objects=len(identities), **options)
    for image in inputs:
        image["instances"].gt_identities = torch.tensor(identities, dtype=torch.int64)
    return inputs


def train(model, inputs) -> dict:
    torch.manual_seed(0)
    with d2.EventStorage(0):
        losses = model(inputs)
        sum(losses.values()).backward()
    return losses


def test_a_branch_that_is_off_is_absent_and_the_others_are_as_before():
    off, on = build(*BRANCHES), build(*ALL)
    added = on.state_dict().keys() - off.state_dict().keys()
    head = "roi_heads.embedding_head."
    assert added == {head + name for name in ("conv1.weight", "conv1.bias", "projection.weight", "projection.bias")}
    assert not [name for name in off.state_dict() if "embedding" in name]
    on.load_state_dict(off.state_dict(), strict=False)
    inputs = identified((96, 128), (112, 80))
    expected, found = train(off, inputs), train(on, inputs)
    assert expected.keys() == LOSSES - {"loss_embedding"} and found.keys() == LOSSES
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    with torch.no_grad():
        (a,), (b,) = ([output["instances"] for output in model.eval()(inputs[:1])] for model in (off, on))
    assert not a.has("embeddings") and b.get_fields().keys() == a.get_fields().keys() | {"embeddings"}
    assert torch.equal(a.pred_masks, b.pred_masks) and torch.equal(a.pred_keypoints, b.pred_keypoints)


def test_the_branch_needs_no_other_branch():
    model = build(*EMBEDDING)
    assert train(model, identified((96, 96))).keys() == {"loss_cls", "loss_box_reg", "loss_embedding"}


def test_each_detection_has_an_embedding_of_length_1_also_at_another_size():
    model, inputs = build(*ALL).eval(), identified((96, 128))
    with torch.no_grad():
        plain = model(inputs)[0]["instances"]
        inputs[0].update(height=192, width=256)
        scaled = model(inputs)[0]["instances"]
    assert len(plain) > 5 and plain.embeddings.shape == (len(plain), 6) and plain.embeddings.dtype == torch.float32
    torch.testing.assert_close(plain.embeddings.norm(dim=1), torch.ones(len(plain)))
    assert torch.equal(plain.embeddings, scaled.embeddings)
    kept = plain[plain.scores > plain.scores.median()]
    assert torch.equal(kept.embeddings, plain.embeddings[plain.scores > plain.scores.median()])


def test_an_image_without_detections_has_no_embeddings():
    model = build(*ALL, "MODEL.RETINANET.SCORE_THRESH_TEST", "1.0").eval()
    with torch.no_grad():
        assert model(identified((96, 128)))[0]["instances"].embeddings.shape == (0, 6)
    assert model([]) == []


@pytest.mark.parametrize("loss", ["triplet", "test_pairs"])
def test_every_parameter_has_a_gradient_whatever_is_missing(loss):
    one, unknown, none = ((0, 0, 0), (-1, -1, -1), ())
    for identities in (one, unknown, none, None):
        model = build(*ALL, "MODEL.EMBEDDING.LOSS.NAME", loss)
        losses = train(model, [] if identities is None else identified((96, 128), identities=identities))
        assert losses.keys() == LOSSES and losses["loss_embedding"].isfinite()
        if identities != one:
            assert losses["loss_embedding"] == 0
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_loss_reaches_the_backbone_and_moves_identities_apart():
    model = build(*ALL)
    inputs = identified((96, 128), (112, 80), identities=(0, 1, 2))
    optimizer = torch.optim.Adam(model.roi_heads.embedding_head.parameters(), lr=0.01)
    values = []
    for step in range(40):
        optimizer.zero_grad()
        torch.manual_seed(0)
        with d2.EventStorage(0):
            loss = model(inputs)["loss_embedding"]
        loss.backward()
        if step == 0:
            assert model.backbone.bottom_up.stem.conv1.weight.grad.any()
        optimizer.step()
        values.append(loss.item())
    assert sum(values[-5:]) < 0.5 * sum(values[:5])


def foreground(indices, identities):
    image = d2.Instances((64, 64), proposal_boxes=d2.Boxes(torch.arange(4.0 * len(indices)).view(-1, 4)))
    image.gt_index, image.gt_identities = torch.tensor(indices), torch.tensor(identities)
    return image


def test_at_most_so_many_rois_of_an_object_and_none_of_unknown_identity():
    # Objects 0 and 2 have the same identity, and object 1 has none.
    image = foreground([0, 1, 0, 2, 0, 1, 2, 0], [5, -1, 5, 5, 5, -1, 5, 5])
    seen = set()
    for _ in range(50):
        kept, empty = with_known_identities([image, foreground([], [])], 2)
        rows = (kept.proposal_boxes.tensor[:, 0] / 4).long().tolist()
        assert kept.gt_index.tolist() == [image.gt_index[row] for row in rows] and len(empty) == 0
        assert sorted(kept.gt_index.tolist()) == [0, 0, 2, 2] and rows == sorted(rows)
        seen.update(rows)
    assert seen == {0, 2, 3, 4, 6, 7}  # any of an object's boxes may be drawn
    (every,) = with_known_identities([image], 100)
    assert len(every) == 6
    assert with_known_identities([], 2) == []


def test_the_loss_sees_as_many_boxes_of_an_object_as_the_config_says():
    seen = {}
    for limit in (1, 2):
        model = build(*ALL, "MODEL.ROI_EMBEDDING_HEAD.ROIS_PER_OBJECT", str(limit), *MANY)
        loss = model.roi_heads.embedding_head.loss
        loss.register_forward_pre_hook(lambda _, inputs, limit=limit: seen.update({limit: inputs[1].tolist()}))
        train(model, identified((96, 128), (112, 80), identities=(3, 4, -1)))
    assert sorted(seen[1]) == [3, 3, 4, 4]
    assert 4 < len(seen[2]) <= 8 and {2 <= seen[2].count(identity) <= 4 for identity in set(seen[2])} == {True}


# Nearly all anchors of all classes are offered to the branches.
MANY = ["MODEL.RETINANET.ROIS.MAX_PER_IMAGE", "5000", "MODEL.RETINANET.ROIS.NMS_THRESH", "0.95"]
MANY += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "1000"]


def test_micro_batches_are_mined_one_by_one_and_weighted_by_their_images():
    model = build(*PAIRS, "MODEL.ROI_EMBEDDING_HEAD.ROIS_PER_OBJECT", "100", *MANY)
    parts = [identified((96, 96), identities=(0, 1), seed=1), identified((96, 96), (96, 96), seed=2)]
    with d2.EventStorage(0):
        alone = [model(part)["loss_embedding"] for part in parts]
        with model.as_one_batch(parts):
            weighted = [model(part)["loss_embedding"] for part in parts]
    torch.testing.assert_close(sum(weighted), (alone[0] + 2 * alone[1]) / 3)
    assert alone[0] > 0 and alone[1] > 0


def test_a_batch_without_identities_names_the_file():
    with pytest.raises(ValueError, match=r"image_0.png: no gt_identities, but MODEL.EMBEDDING_ON is True; wrap the"):
        build(*ALL)(two_stage_batch((96, 96)))


def test_embeddings_are_float32_under_autocast_and_in_a_bfloat16_copy():
    model, inputs = build(*ALL), identified((96, 128))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert train(model, inputs)["loss_embedding"].dtype == torch.float32
        with torch.no_grad():
            found = model.eval()(inputs)[0]["instances"]
    with torch.no_grad():
        copied = optimize_for_inference(model, dtype="bfloat16")(inputs)[0]["instances"]
    for instances in (found, copied):
        assert instances.embeddings.dtype == torch.float32 and len(instances) > 5
        torch.testing.assert_close(instances.embeddings.norm(dim=1), torch.ones(len(instances)))


def test_the_fast_copy_gives_the_same_embeddings():
    model, inputs = build(*ALL, "MODEL.ROI_EMBEDDING_HEAD.NORM", "BN").eval(), identified((96, 128))
    with torch.no_grad():
        found, expected = (m(inputs)[0]["instances"] for m in (optimize_for_inference(model), model))
    torch.testing.assert_close(found.embeddings, expected.embeddings, rtol=1e-4, atol=1e-4)


def test_test_time_augmentation_refuses_embeddings():
    from retinanet_ext.inference.tta import DenseDetectorWithTTA

    with pytest.raises(ValueError, match="MODEL.EMBEDDING_ON is True"):
        DenseDetectorWithTTA(one_stage_config(*EMBEDDING), build(*EMBEDDING))


def test_two_stages_have_the_branch_too():
    torch.manual_seed(0)
    model = d2.build_model(two_stage_config("FPN", *EMBEDDING))
    tame(model)
    inputs = identified((96, 128), (128, 96))
    assert "loss_embedding" in train(model, inputs)
    with torch.no_grad():
        assert model.eval()(inputs)[0]["instances"].embeddings.shape[1] == 6
    with pytest.raises(ValueError, match="MODEL.EMBEDDING_ON is True, but Res5ROIHeads has no embedding branch"):
        d2.build_model(two_stage_config("C4", *EMBEDDING))


def test_an_unknown_head_is_refused():
    with pytest.raises(KeyError, match="MODEL.ROI_EMBEDDING_HEAD.NAME is 'Other'.*ConvEmbeddingHead"):
        build(*EMBEDDING, "MODEL.ROI_EMBEDDING_HEAD.NAME", "Other")


def test_both_engines_give_the_same_embeddings_from_one_checkpoint(tmp_path):
    pytest.importorskip("detectron2", reason="Detectron2 is not installed")
    torch.save({"model": build(*ALL).state_dict()}, tmp_path / "model.pth")
    for engine in ("lite", "detectron2"):
        command = [sys.executable, "-m", "tests.instance.embedding_worker", str(tmp_path)]
        subprocess.run(command, cwd=REPO_ROOT, env={**os.environ, "RETINANET_EXT_ENGINE": engine}, check=True)
    ours, theirs = torch.load(tmp_path / "lite.pth"), torch.load(tmp_path / "detectron2.pth")
    assert len(ours["embeddings"]) > 5
    assert ours["fingerprint"] == theirs["fingerprint"]  # one gallery for both engines
    torch.testing.assert_close(ours["embeddings"], theirs["embeddings"], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours["loss"], theirs["loss"], rtol=1e-5, atol=1e-6)
