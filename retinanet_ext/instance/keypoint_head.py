"""The keypoint head: from the features of RoIs to a heatmap for each keypoint (Mask R-CNN, section 5).

Also in Detectron2's ROI_KEYPOINT_HEAD_REGISTRY, and called as Detectron2's head is. It runs, and its loss of 0 reaches
every parameter, without any RoI or visible keypoint too: the processes of a job then do the same in every step.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from retinanet_ext.d2 import ROI_KEYPOINT_HEAD_REGISTRY, Conv2d, Instances, ShapeSpec, configurable
from retinanet_ext.registry import find_registered

from .keypoint_heatmaps import heatmaps_to_keypoints, keypoints_to_heatmap_index
from .shared_count import average_over_processes


def keypoint_loss_reference(logits: torch.Tensor, index: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """The definition of `keypoint_loss`, keypoint by keypoint; it does not run in training. Logits ``(M, J, S, S)``."""
    total = logits.float().sum() * 0  # keeps the graph if there are no keypoints
    for heatmap, cell, counts in zip(logits.flatten(0, 1), index.flatten(), valid.flatten(), strict=True):
        if counts:
            values = heatmap.float().flatten()
            total = total - (values[cell].exp() / values.exp().sum()).log()
    return total


def keypoint_loss(logits: torch.Tensor, index: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Cross entropy of a softmax over all cells of a heatmap, of the visible keypoints, summed.

    Args:
        logits: ``(M, J, S, S)``.
        index: int64 ``(M, J)``, the cell of each keypoint.
        valid: bool ``(M, J)``, which keypoints have a loss.

    Returns:
        A float32 scalar.
    """
    # A negative label is left out. Choosing rows instead would wait for the device.
    labels = torch.where(valid, index, -1).flatten()
    return F.cross_entropy(logits.float().flatten(2).flatten(0, 1), labels, ignore_index=-1, reduction="sum")


class FCNKeypointHead(nn.Module):
    """Eight 3x3 convolutions, a 4x4 deconvolution of stride 2, and bilinear interpolation to twice the size."""

    @configurable
    def __init__(
        self,
        *,
        input_shape: ShapeSpec,
        num_keypoints: int,
        conv_dims: Sequence[int] = (512,) * 8,
        loss_weight: float = 1.0,
        keypoints_per_image: float | None = None,
    ):
        """
        Args:
            input_shape: channels of the features of a RoI.
            num_keypoints: J.
            conv_dims: output channels of the 3x3 convolutions.
            loss_weight: factor of the loss.
            keypoints_per_image: the loss of a batch is divided by this number for each image; None: by the number of
                visible keypoints in the batch.
        """
        super().__init__()
        self.num_conv, self.loss_weight, self.keypoints_per_image = len(conv_dims), loss_weight, keypoints_per_image
        in_channels = input_shape.channels
        for number, out_channels in enumerate(conv_dims, start=1):
            # In place is safe: no layer before it needs its output for the gradient.
            layer = Conv2d(in_channels, out_channels, kernel_size=3, padding=1, activation=nn.ReLU(inplace=True))
            self.add_module(f"conv_fcn{number}", layer)
            in_channels = out_channels
        self.score_lowres = nn.ConvTranspose2d(in_channels, num_keypoints, kernel_size=4, stride=2, padding=1)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    @classmethod
    def from_config(cls, cfg, input_shape: ShapeSpec):
        head, rois = cfg.MODEL.ROI_KEYPOINT_HEAD, cfg.MODEL.ROI_HEADS
        # As many as an image has if the sampler finds all positive RoIs it may, and all keypoints are visible.
        most = head.NUM_KEYPOINTS * rois.BATCH_SIZE_PER_IMAGE * rois.POSITIVE_FRACTION
        return {
            "input_shape": input_shape,
            "num_keypoints": head.NUM_KEYPOINTS,
            "conv_dims": head.CONV_DIMS,
            "loss_weight": head.LOSS_WEIGHT,
            "keypoints_per_image": None if head.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS else most,
        }

    def forward(self, x: torch.Tensor, instances: list[Instances]) -> dict[str, torch.Tensor] | list[Instances]:
        """
        Args:
            x: features of all RoIs, ``(M, C, h, w)``, in the order of the images.
            instances: the RoIs of each image; in training those of objects, with ``proposal_boxes`` and
                ``gt_keypoints``, whose tensor is ``(M_i, J, 3)``: x, y, visibility; else with ``pred_boxes``.

        Returns:
            In training ``{"loss_keypoint": scalar}``. Else the instances themselves, with new ``pred_keypoints``,
            ``(M_i, J, 3)``: x, y in pixels of the input, and score.
        """
        heatmaps = self.heatmaps(x)
        if self.training:
            return {"loss_keypoint": self._loss(heatmaps, instances)}
        boxes = torch.cat([x.new_zeros(0, 4, dtype=torch.float32), *(found.pred_boxes.tensor for found in instances)])
        keypoints = heatmaps_to_keypoints(heatmaps, boxes)[:, :, [0, 1, 3]]
        counts = [len(image) for image in instances]
        for image, image_keypoints in zip(instances, keypoints.split(counts), strict=True):
            image.pred_keypoints = image_keypoints
        return instances

    def heatmaps(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(M, J, 4h, 4w)``, float32, of features ``(M, C, h, w)``."""
        x = x.contiguous(memory_format=torch.channels_last)
        for number in range(1, self.num_conv + 1):
            x = getattr(self, f"conv_fcn{number}")(x)
        x = self.score_lowres(x).float().contiguous()
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    def _loss(self, heatmaps: torch.Tensor, instances: Sequence[Instances]) -> torch.Tensor:
        size, device = heatmaps.shape[-1], heatmaps.device
        index = [torch.zeros(0, heatmaps.shape[1], dtype=torch.int64, device=device)]
        valid = [torch.zeros(0, heatmaps.shape[1], dtype=torch.bool, device=device)]
        for image in instances:
            if len(image) > 0:
                keypoints = image.gt_keypoints.tensor.to(device)
                self._check(keypoints, heatmaps)
                cells = keypoints_to_heatmap_index(keypoints, image.proposal_boxes.tensor, size)
                index.append(cells[0])
                valid.append(cells[1])
        index, valid = torch.cat(index), torch.cat(valid)
        if self.keypoints_per_image is None:
            divisor = average_over_processes(valid.sum(), device)
        else:
            divisor = average_over_processes(len(instances), device) * self.keypoints_per_image
        return keypoint_loss(heatmaps, index, valid) * (self.loss_weight / divisor)

    @staticmethod
    def _check(keypoints: torch.Tensor, heatmaps: torch.Tensor) -> None:
        if keypoints.shape[1] != heatmaps.shape[1]:
            raise ValueError(
                f"an image has objects with {keypoints.shape[1]} keypoints, but MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS "
                f"is {heatmaps.shape[1]}; set it to the number of the data"
            )


# Detectron2's name for the same head, with the same parameters. Not registered: on Detectron2 the name is taken.
_SAME_HEADS = {"KRCNNConvDeconvUpsampleHead": FCNKeypointHead}
ROI_KEYPOINT_HEAD_REGISTRY.register(FCNKeypointHead)


def build_keypoint_head(cfg, input_shape: ShapeSpec) -> nn.Module:
    """The head that MODEL.ROI_KEYPOINT_HEAD.NAME names, for RoIs of ``input_shape``.

    Raises:
        KeyError: no such head; the message lists the registered names.
    """
    name = cfg.MODEL.ROI_KEYPOINT_HEAD.NAME
    head = _SAME_HEADS.get(name) or find_registered("MODEL.ROI_KEYPOINT_HEAD.NAME", name, ROI_KEYPOINT_HEAD_REGISTRY)
    return head(cfg, input_shape)
