"""Mask heads: from the features of RoIs to their masks (Mask R-CNN, Fig. 4 and Table 2).

Every head is also in Detectron2's ROI_MASK_HEAD_REGISTRY, and is called as Detectron2's heads are. A head runs, and its
loss of 0 reaches every parameter, without any RoI too: the processes of a job then do the same in every step.
"""

import torch
import torch.nn.functional as F
from torch import nn

from retinanet_ext.d2 import ROI_MASK_HEAD_REGISTRY, Conv2d, Instances, ShapeSpec, configurable, get_norm
from retinanet_ext.registry import find_registered

from .mask_loss import mask_loss, mask_targets, softmax_mask_loss
from .shared_count import average_over_processes


class MaskHead(nn.Module):
    """What the heads share: the steps of training and inference. A mask has twice the cells of a RoI on each side.

    Subclasses define `features` and `class_logits`.
    """

    def forward(self, x: torch.Tensor, instances: list[Instances]) -> dict[str, torch.Tensor] | list[Instances]:
        """
        Args:
            x: features of all RoIs, ``(M, C, h, w)``, in the order of the images.
            instances: the RoIs of each image; in training those of objects, with ``proposal_boxes``, ``gt_classes``
                and ``gt_masks``; else with ``pred_classes``.

        Returns:
            In training ``{"loss_mask": scalar}``: the mean over all RoIs and pixels of all processes. Else the
            instances themselves, with new ``pred_masks``, probabilities ``(M_i, 1, S, S)`` in float32.
        """
        features = self.features(x)
        if self.training:
            size = 2 * x.shape[-1]
            classes, targets = mask_targets(instances, size, x.device)
            count = average_over_processes(len(classes), x.device)
            return {"loss_mask": self.summed_loss(features, classes, targets) / (count * size * size)}
        classes = [image.pred_classes for image in instances]
        # The empty tensor makes `cat` work without images.
        classes = torch.cat([torch.zeros(0, dtype=torch.int64, device=x.device), *classes])
        masks = self.class_probabilities(features, classes)[:, None]
        counts = [len(image) for image in instances]
        for image, image_masks in zip(instances, masks.split(counts), strict=True):
            image.pred_masks = image_masks
        return instances

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The input of the predictor, from the features of RoIs ``(M, C, h, w)``."""
        raise NotImplementedError

    def class_logits(self, features: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Logits ``(M, S, S)`` of one mask for each RoI: that of its class, for classes ``(M,)``."""
        raise NotImplementedError

    def summed_loss(self, features: torch.Tensor, classes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The sum of the losses of all RoIs and pixels, a scalar, for classes ``(M,)`` and masks ``(M, S, S)``."""
        return mask_loss(self.class_logits(features, classes), targets)

    def class_probabilities(self, features: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Probabilities ``(M, S, S)``, float32, of one mask for each RoI: that of its class, for classes ``(M,)``."""
        return self.class_logits(features, classes).float().sigmoid()


def _upsampling_convolutions(head: nn.Module, in_channels: int, conv_dim: int, num_conv: int, norm: str) -> None:
    """Add the layers up to the predictor, under Detectron2's names."""
    for number in range(1, num_conv + 1):
        layer = Conv2d(
            in_channels,
            conv_dim,
            kernel_size=3,
            padding=1,
            bias=not norm,
            norm=get_norm(norm, conv_dim),
            # In place is safe: no layer before it needs its output for the gradient.
            activation=nn.ReLU(inplace=True),
        )
        head.add_module(f"mask_fcn{number}", layer)
        in_channels = conv_dim
    head.deconv = nn.ConvTranspose2d(in_channels, conv_dim, kernel_size=2, stride=2)


class FCNMaskHead(MaskHead):
    """3x3 convolutions, a 2x2 deconvolution of stride 2 and a 1x1 predictor: K independent masks (Fig. 4, right).

    Only the mask of the ground truth class has a loss, and only that of the predicted class is wanted: the predictor
    computes just this one of its K channels, with the weights gathered for each RoI. Its results and gradients are
    those of a convolution, for a K-th of the memory and time.
    """

    @configurable
    def __init__(
        self, *, input_shape: ShapeSpec, num_masks: int, conv_dim: int = 256, num_conv: int = 4, norm: str = ""
    ):
        """
        Args:
            input_shape: channels of the features of a RoI.
            num_masks: K, or 1 for one mask that all classes share.
            conv_dim: channels of the convolutions.
            num_conv: 3x3 convolutions before the deconvolution; 4 with an FPN, 0 after C4's res5.
            norm: layer after each 3x3 convolution: ``""`` (none), ``GN``, ``BN``, ``SyncBN`` or ``FrozenBN``.
        """
        super().__init__()
        self.num_conv = num_conv
        _upsampling_convolutions(self, input_shape.channels, conv_dim, num_conv, norm)
        self.predictor = nn.Conv2d(conv_dim, num_masks, kernel_size=1)
        _initialize(self, self.predictor)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        head = cfg.MODEL.ROI_MASK_HEAD
        return {
            "input_shape": input_shape,
            "num_masks": _num_masks(cfg),
            "conv_dim": head.CONV_DIM,
            "num_conv": head.NUM_CONV,
            "norm": head.NORM,
        }

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """``(M, C, 2h, 2w)`` of ``(M, C', h, w)``, channels-last."""
        x = x.contiguous(memory_format=torch.channels_last)
        for number in range(1, self.num_conv + 1):
            x = getattr(self, f"mask_fcn{number}")(x)
        return F.relu_(self.deconv(x))

    def class_logits(self, features: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """``(M, S, S)``, one class of each RoI, of features ``(M, C, S, S)``. Other classes are not computed."""
        weight, bias = self.predictor.weight.flatten(1), self.predictor.bias
        if len(weight) == 1:
            return self.predictor(features)[:, 0]
        pixels = features.permute(0, 2, 3, 1).flatten(1, 2)  # (M, S*S, C), a view
        logits = torch.bmm(pixels, weight[classes].unsqueeze(2).to(pixels.dtype))
        return logits.view(len(features), *features.shape[2:]) + bias[classes].view(-1, 1, 1)


class SoftmaxMaskHead(FCNMaskHead):
    """The same layers, but the classes compete for every pixel: a softmax and a multinomial loss (Table 2b).

    The predictor has K + 1 channels, the last for background. A multinomial needs a class for every pixel, and a RoI
    also has pixels that are not of its object; without background they could only be given to wrong classes, and no
    threshold would separate the object. In FCN's semantic segmentation background is a class for the same reason.
    A mask is the probability of the predicted class, which is lost where another class is as likely.
    """

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        return {**super().from_config(cfg, input_shape), "num_masks": _num_masks(cfg) + 1}

    def summed_loss(self, features: torch.Tensor, classes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """See `softmax_mask_loss`: a scalar."""
        return softmax_mask_loss(self.predictor(features), self._channels(classes), targets)

    def class_probabilities(self, features: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """``(M, S, S)``, of a softmax over all channels."""
        logits = self.predictor(features).float()
        index = self._channels(classes).view(-1, 1, 1, 1).expand(-1, 1, *logits.shape[2:])
        return (logits.gather(1, index) - logits.logsumexp(dim=1, keepdim=True)).exp()[:, 0]

    def _channels(self, classes: torch.Tensor) -> torch.Tensor:
        return classes.clamp(max=self.predictor.out_channels - 2)  # all 0 if the classes share a mask


class MLPMaskHead(MaskHead):
    """Fully connected layers instead of convolutions: fc 1024, fc 1024, fc K * 28 * 28 (Table 2e)."""

    @configurable
    def __init__(self, *, input_shape: ShapeSpec, num_masks: int, fc_dim: int = 1024, num_fc: int = 2):
        """
        Args:
            input_shape: channels, height and width of the features of a RoI; height and width are equal.
            num_masks: K, or 1 for one mask that all classes share.
            fc_dim: outputs of the hidden layers.
            num_fc: hidden layers; 2 or 3 in the paper.
        """
        super().__init__()
        self.size, self.num_masks, self.num_fc = 2 * input_shape.width, num_masks, num_fc
        in_features = input_shape.channels * input_shape.height * input_shape.width
        for number in range(1, num_fc + 1):
            self.add_module(f"fc{number}", nn.Linear(in_features, fc_dim))
            in_features = fc_dim
        self.predictor = nn.Linear(in_features, num_masks * self.size**2)
        _initialize(self, self.predictor)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        return {
            "input_shape": input_shape,
            "num_masks": _num_masks(cfg),
            "fc_dim": cfg.MODEL.ROI_MASK_HEAD.FC_DIM,
            "num_fc": cfg.MODEL.ROI_MASK_HEAD.NUM_FC,
        }

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """``(M, fc_dim)`` of ``(M, C, h, w)``."""
        x = x.flatten(1)
        for number in range(1, self.num_fc + 1):
            x = F.relu_(getattr(self, f"fc{number}")(x))
        return x

    def class_logits(self, features: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """``(M, S, S)``, one class of each RoI. All classes are computed: one call costs less than one per class."""
        logits = self.predictor(features).view(-1, self.num_masks, self.size, self.size)
        if self.num_masks == 1:
            return logits[:, 0]
        return logits[torch.arange(len(logits), device=logits.device), classes]


def _num_masks(cfg) -> int:
    return 1 if cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES


def _initialize(head: nn.Module, predictor: nn.Module) -> None:
    """He's initialisation of all layers but the predictor, which begins near 0."""
    for module in head.modules():
        # No draw for the predictor here: equal seeds shall give Detectron2's weights.
        if module is not predictor and isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.normal_(predictor.weight, std=0.001)
    nn.init.zeros_(predictor.bias)


# Detectron2's name for the same head, with the same parameters. Not registered: on Detectron2 the name is taken.
_SAME_HEADS = {"MaskRCNNConvUpsampleHead": FCNMaskHead}
for _head in (FCNMaskHead, SoftmaxMaskHead, MLPMaskHead):
    ROI_MASK_HEAD_REGISTRY.register(_head)


def build_mask_head(cfg, input_shape: ShapeSpec) -> nn.Module:
    """The head that MODEL.ROI_MASK_HEAD.NAME names, for RoIs of ``input_shape``.

    Raises:
        KeyError: no such head; the message lists the registered names.
    """
    name = cfg.MODEL.ROI_MASK_HEAD.NAME
    head = _SAME_HEADS.get(name) or find_registered("MODEL.ROI_MASK_HEAD.NAME", name, ROI_MASK_HEAD_REGISTRY)
    return head(cfg, input_shape)
