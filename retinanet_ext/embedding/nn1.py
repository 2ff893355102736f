"""NN1: the network of Zeiler & Fergus with 1x1 convolutions (FaceNet paper, table 1)."""

import torch

from retinanet_ext.d2 import BACKBONE_REGISTRY, Backbone, ShapeSpec

from .network_layers import MaxoutLinear, convolution, flattened_map, local_response_norm, max_pool

MAP_SIZE = (7, 7)
NUM_FEATURES = 4096


class NN1(Backbone):
    """Maps images ``(N, in_channels, 220, 220)`` to ``{"fc2": (N, 4096, 1, 1)}``.

    The layers have the paper's names; its ``fc7128`` is the projection of ``FaceNet``. Any height and width from 193 to
    224 gives the 7x7 map that the fully connected layers take.

    Args:
        in_channels: channels of the images.
        norm: as ``MODEL.FACENET.NORM``. If empty, convolutions have biases, and local response normalisation stands
            where table 1 has "norm".
    """

    def __init__(self, in_channels: int, norm: str = ""):
        super().__init__()
        self.has_lrn = not norm
        self.conv1 = convolution(in_channels, 64, 7, norm, stride=2)
        self.conv2a = convolution(64, 64, 1, norm)
        self.conv2 = convolution(64, 192, 3, norm)
        self.conv3a = convolution(192, 192, 1, norm)
        self.conv3 = convolution(192, 384, 3, norm)
        self.conv4a = convolution(384, 384, 1, norm)
        self.conv4 = convolution(384, 256, 3, norm)
        self.conv5a = convolution(256, 256, 1, norm)
        self.conv5 = convolution(256, 256, 3, norm)
        self.conv6a = convolution(256, 256, 1, norm)
        self.conv6 = convolution(256, 256, 3, norm)
        self.fc1 = MaxoutLinear(256 * MAP_SIZE[0] * MAP_SIZE[1], NUM_FEATURES)
        self.fc2 = MaxoutLinear(NUM_FEATURES, NUM_FEATURES)
        self._out_features = ["fc2"]
        self._out_feature_channels = {"fc2": NUM_FEATURES}
        self._out_feature_strides = {"fc2": 32 * MAP_SIZE[0]}

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self._norm(max_pool(self.conv1(images)))
        x = max_pool(self._norm(self.conv2(self.conv2a(x))))
        x = max_pool(self.conv3(self.conv3a(x)))
        x = self.conv4(self.conv4a(x))
        x = self.conv5(self.conv5a(x))
        x = max_pool(self.conv6(self.conv6a(x)))
        x = self.fc2(self.fc1(flattened_map(x, MAP_SIZE, images)))
        return {"fc2": x[:, :, None, None]}

    def _norm(self, maps: torch.Tensor) -> torch.Tensor:
        return local_response_norm(maps) if self.has_lrn else maps


@BACKBONE_REGISTRY.register()
def build_facenet_nn1_backbone(cfg, input_shape: ShapeSpec) -> NN1:
    """NN1 for 220x220 images: 140M parameters, 1.6 billion multiply-adds."""
    return NN1(input_shape.channels, cfg.MODEL.FACENET.NORM)
