"""Backbones that Detectron2 has no builder for."""

from retinanet_ext.d2 import BACKBONE_REGISTRY, FPN, LastLevelP6P7, build_resnet_backbone


@BACKBONE_REGISTRY.register()
def build_retinanet_p5_resnet_fpn_backbone(cfg, input_shape) -> FPN:
    """ResNet with FPN whose P6 is made from P5 rather than from C5.

    The paper and ``build_retinanet_resnet_fpn_backbone`` take C5; torchvision's RetinaNet and others take P5, which
    is cheaper and hardly differs in AP. Selected by ``MODEL.BACKBONE.NAME``; reads the same keys as the builder above.
    """
    out_channels = cfg.MODEL.FPN.OUT_CHANNELS
    return FPN(
        bottom_up=build_resnet_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=out_channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelP6P7(out_channels, out_channels, in_feature="p5"),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
