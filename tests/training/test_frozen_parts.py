"""Frozen layers without trained weights are refused before the first step."""

import pytest
import torch

from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import build_model
from retinanet_ext.training.frozen_parts import refuse_unfilled_frozen_parts
from retinanet_ext.training.trainer import Trainer
from tests.builders import shapes_config

FROZEN = ["MODEL.BACKBONE.FREEZE_AT", "2", "MODEL.RESNETS.NORM", "FrozenBN"]


def test_a_frozen_backbone_without_weights_does_not_start(shapes, tmp_path):
    trainer = Trainer(shapes_config(shapes, tmp_path, *FROZEN))
    remedies = "MODEL.BACKBONE.FREEZE_AT 0 and MODEL.RESNETS.NORM BN .*from_scratch.yaml"
    with pytest.raises(ValueError, match=f"frozen layers have no trained weights.*fine_tune.yaml.*{remedies}"):
        trainer.resume_or_load(resume=False)


def test_a_frozen_backbone_with_weights_starts(shapes, tmp_path):
    cfg = shapes_config(shapes, tmp_path, *FROZEN)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "pretrained.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "pretrained.pth")
    Trainer(cfg).resume_or_load(resume=False)


@pytest.mark.parametrize(
    ("freeze_at", "norm", "layers"),
    [
        ("0", "BN", 0),
        ("1", "BN", 2),  # the first convolution and its norm, which freezing makes a frozen one
        ("0", "FrozenBN", 20),  # the norms of 17 convolutions and 3 shortcuts
    ],
)
def test_which_layers_count_as_frozen(freeze_at, norm, layers):
    """Of a ResNet-18, whose layers are counted by hand."""
    words = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.DEVICE", "cpu"]
    words += ["MODEL.BACKBONE.FREEZE_AT", freeze_at, "MODEL.RESNETS.NORM", norm]
    model = build_model(load_config("configs/Base-RetinaNet.yaml", words, datasets=False))
    refuse_unfilled_frozen_parts(model, model.state_dict())
    if not layers:
        refuse_unfilled_frozen_parts(model, [])
        return
    with pytest.raises(ValueError, match=f"^{layers} frozen layers"):
        refuse_unfilled_frozen_parts(model, [])


def test_old_checkpoints_hold_only_scale_and_shift():
    words = ["MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64", "MODEL.DEVICE", "cpu"]
    model = build_model(load_config("configs/Base-RetinaNet.yaml", words, datasets=False))
    refuse_unfilled_frozen_parts(model, [name for name in model.state_dict() if "running_" not in name])


def test_a_model_of_80_classes_is_tuned_to_5(shapes, tmp_path, caplog):
    cfg = shapes_config(shapes, tmp_path, *FROZEN)
    other = cfg.clone()
    other.MODEL.RETINANET.NUM_CLASSES = 80
    source = build_model(other).state_dict()
    torch.save({"model": source}, tmp_path / "coco.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "coco.pth")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    for name, value in trainer.model.state_dict().items():
        if name.startswith("head.cls_score."):
            assert value.shape[0] == 9 * 5 and source[name].shape[0] == 9 * 80
            assert name in caplog.text
        elif not name.startswith("loss_normalizer"):
            assert torch.equal(value, source[name]), name
