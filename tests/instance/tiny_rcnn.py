"""Two-stage models that run in a fraction of a second, and batches with masks and keypoints for them."""

import shlex

import torch

from retinanet_ext import d2
from retinanet_ext.config.loading import load_config
from tests.builders import batch, with_masks_and_keypoints

NUM_CLASSES, NUM_KEYPOINTS = 5, 4
# ResNet-50 with few channels, on images of about 100 pixels.
TINY = shlex.split(
    """
MODEL.DEVICE cpu MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16
MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.FPN.OUT_CHANNELS 16 MODEL.ANCHOR_GENERATOR.SIZES [[16],[24],[32],[48],[64]]
MODEL.RPN.PRE_NMS_TOPK_TRAIN 200 MODEL.RPN.PRE_NMS_TOPK_TEST 100 MODEL.RPN.POST_NMS_TOPK_TRAIN 100
MODEL.RPN.POST_NMS_TOPK_TEST 50 MODEL.RPN.BATCH_SIZE_PER_IMAGE 64 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 32
MODEL.ROI_BOX_HEAD.FC_DIM 32 MODEL.ROI_MASK_HEAD.CONV_DIM 8 MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS (8,8)
TEST.DETECTIONS_PER_IMAGE 20 MODEL.WEIGHTS ''
"""
)
TINY += ["MODEL.ROI_HEADS.NUM_CLASSES", str(NUM_CLASSES)]
TINY += ["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", str(NUM_KEYPOINTS)]


def tiny_config(file: str, meta_architecture: str, *opts: str):
    """The config of a YAML file, with few channels."""
    words = list(TINY)
    if "_FPN_" not in file:  # one feature map, with anchors of all sizes
        words[words.index("MODEL.ANCHOR_GENERATOR.SIZES") + 1] = "[[16,32,64]]"
    return load_config(file, [*words, "MODEL.META_ARCHITECTURE", meta_architecture, *opts], datasets=False)


FPN = shlex.split(
    """
MODEL.BACKBONE.NAME build_resnet_fpn_backbone MODEL.RESNETS.OUT_FEATURES "['res2','res3','res4','res5']"
MODEL.FPN.IN_FEATURES "['res2','res3','res4','res5']" MODEL.RPN.IN_FEATURES "['p2','p3','p4','p5','p6']"
MODEL.ROI_HEADS.NAME StandardROIHeads MODEL.ROI_HEADS.IN_FEATURES "['p2','p3','p4','p5']"
MODEL.ROI_BOX_HEAD.NAME FastRCNNConvFCHead MODEL.ROI_BOX_HEAD.NUM_FC 2 MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION 7
MODEL.ROI_MASK_HEAD.NUM_CONV 2
"""
)


def two_stage_config(form: str, *opts: str):
    """MaskRCNN with a backbone FPN or C4, with few channels; masks and keypoints are off."""
    words = [*TINY, "MODEL.META_ARCHITECTURE", "MaskRCNN", *(FPN if form == "FPN" else [])]
    if form == "C4":
        words[words.index("MODEL.ANCHOR_GENERATOR.SIZES") + 1] = "[[16,32,64]]"
    return load_config(None, [*words, *opts], datasets=False)


ONE_STAGE = shlex.split(
    """
MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.STEM_OUT_CHANNELS 32 MODEL.RESNETS.RES2_OUT_CHANNELS 64
MODEL.RESNETS.NORM GN MODEL.BACKBONE.FREEZE_AT 0
MODEL.RETINANET.NUM_CONVS 1 MODEL.RETINANET.PRIOR_PROB 0.2 MODEL.ROI_HEADS.IN_FEATURES "['p3','p4','p5']"
MODEL.ROI_MASK_HEAD.NAME FCNMaskHead MODEL.ROI_MASK_HEAD.NUM_CONV 2 MODEL.ROI_KEYPOINT_HEAD.NAME FCNKeypointHead
"""
)
ONE_STAGE += ["MODEL.RETINANET.NUM_CLASSES", str(NUM_CLASSES)]


def one_stage_config(*opts: str):
    """InstanceRetinaNet with few channels; masks and keypoints are off. Untrained, it detects something everywhere."""
    words = [*TINY, *ONE_STAGE, "MODEL.META_ARCHITECTURE", "InstanceRetinaNet", *opts]
    return load_config("configs/Base-RetinaNet.yaml", words, datasets=False)


@torch.no_grad()
def tame(model) -> None:
    """Give an untrained model sane features, and outputs that differ from RoI to RoI."""
    generator = torch.Generator().manual_seed(7)
    for name, values in [*model.named_buffers(), *model.named_parameters()]:
        if name.endswith("conv3.norm.weight"):
            values.fill_(0.3)  # untrained residual blocks would double the features
        if ".norm.bias" in name:
            values.copy_(0.1 * torch.randn(values.shape, generator=generator))
    model.eval()
    pixels = torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8, generator=generator)
    # Layer after layer, as each one sees what the one before it chooses.
    for layer, std in (("objectness_logits", 2.0), ("anchor_deltas", 0.2), ("cls_score", 1.5), ("bbox_pred", 0.5)):
        _scale_output(model, next(m for name, m in model.named_modules() if name.endswith(layer)), std, pixels)
    for name, values in model.roi_heads.named_parameters():
        if name in ("mask_head.predictor.weight", "keypoint_head.score_lowres.weight"):
            values.copy_(0.02 * torch.randn(values.shape, generator=generator))
    model.train()


def _scale_output(model, layer, std: float, pixels: torch.Tensor) -> None:
    outputs = []
    hook = layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model.inference([{"image": pixels}])
    hook.remove()
    # Per output channel, so that no class is that of all RoIs.
    values = outputs[0].transpose(0, 1).flatten(1)
    layer.bias.sub_(values.mean(dim=1))
    scale = std / values.std(dim=1).clamp(min=1e-6)
    layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
    layer.bias.mul_(scale)


def two_stage_batch(*sizes_hw: tuple[int, int], num_objects: int = 3, seed: int = 0) -> list[dict]:
    """Training inputs with boxes, polygons (an octagon in each box) and keypoints, some of them not labelled."""
    generator = torch.Generator().manual_seed(seed)
    inputs = batch(generator, *sizes_hw, num_objects=num_objects, num_classes=NUM_CLASSES)
    return with_masks_and_keypoints(generator, inputs, NUM_KEYPOINTS)


def micro_batch_losses(model) -> tuple[dict, dict, dict]:
    """Losses of four images in three micro-batches: their sum within ``as_one_batch``; the mean over the images, each
    micro-batch alone; and those of the whole batch. Asserts that afterwards a micro-batch alone gives the same again.
    """
    parts = [two_stage_batch((96, 96), num_objects=n, seed=n) for n in (1, 4)] + [two_stage_batch((96, 96), (96, 96))]
    with d2.EventStorage(0):
        alone = [model(part) for part in parts]
        with model.as_one_batch(parts):
            weighted = [model(part) for part in parts]
        whole = model(sum(parts, []))
        again = model(parts[0])
    for name in whole:
        torch.testing.assert_close(again[name], alone[0][name], rtol=1e-4, atol=1e-6)
    total = {name: sum(losses[name] for losses in weighted) for name in whole}
    mean = {name: sum(losses[name] * len(part) for losses, part in zip(alone, parts)) / 4 for name in whole}
    return total, mean, whole
