"""Harmonic embeddings: a new model, v2, whose embeddings can be compared with those of an older one, v1.

FaceNet (Schroff et al., 2015), appendix. B images per batch, D numbers per embedding.
"""

import logging
from collections.abc import Callable

import torch
from torch import nn

from retinanet_ext.d2 import META_ARCH_REGISTRY, configurable

from .facenet import FaceNet
from .harmonic_loss import HarmonicLoss
from .selection import TRIPLET_SELECTION_REGISTRY

STAGES = ("embedding", "network")
# Entry of a checkpoint: fingerprints of the models whose embeddings may be compared with this one's.
COMPATIBLE_WITH = "compatible_with"
_GREY = {"BGR": (0.114, 0.587, 0.299), "RGB": (0.299, 0.587, 0.114)}

logger = logging.getLogger(__name__)


class FrozenV1:
    """A trained FaceNet that embeds the input images of v2, in evaluation mode, in float32 and without gradient.

    v1 sees v2's image, with its augmentation, converted to v1's channels and resized to v1's input size. This is not
    quite what v1 sees when it crops the photo itself: the face was resampled twice, and an enlarged image has no more
    detail than v2's. It is no ``nn.Module``, so a model that holds it does not list it among its parts.
    """

    def __init__(
        self, model: FaceNet, *, size: tuple[int, int], image_format: str, input_format: str, fingerprint: str = ""
    ):
        """
        Args:
            model: changed in place: no parameter needs a gradient.
            size: height and width of its input.
            image_format: of its input: "BGR", "RGB" or "L".
            input_format: of v2's input.
            fingerprint: identifies its weights; see ``Embedder``.

        Raises:
            ValueError: there is no conversion between these formats.
        """
        self.model = model.requires_grad_(False).eval()
        self.size = tuple(size)
        self.fingerprint = fingerprint
        self._convert = _conversion(input_format, image_format)

    @property
    def dim(self) -> int:
        """D."""
        return self.model.projection.out_features

    @torch.no_grad()
    def __call__(self, batched_inputs: list[dict]) -> torch.Tensor:
        """Embeddings, float32 ``(B, D)``, of v2's images: ``image``, ``(C, H, W)`` of one size, 0..255."""
        device = self.model.device
        if not batched_inputs:
            return torch.zeros(0, self.dim, device=device)
        # Mixed precision would give other embeddings than those that galleries of v1 hold.
        with torch.autocast(device.type, enabled=False):
            images = torch.stack([inputs["image"] for inputs in batched_inputs]).to(device, torch.float32)
            images = self._convert(images)
            if images.shape[2:] != self.size:
                images = nn.functional.interpolate(images, self.size, mode="bilinear", antialias=True)
            return self.model.embed(self.model.preprocess_image([{"image": image} for image in images]))


@META_ARCH_REGISTRY.register()
class HarmonicFaceNet(FaceNet):
    """v2: a FaceNet trained with the harmonic triplet loss against a fixed v1.

    v1 comes from :meth:`attach_v1` and is no part of the state dict, the parameters or the optimizer; it moves with the
    model to other devices. Without it the model embeds as any FaceNet and cannot be trained. Its parameters have the
    names of FaceNet's, so that a checkpoint of either loads into the other.
    """

    # On the class, because FaceNet's constructor already converts the model.
    v1: FrozenV1 | None = None

    @configurable
    def __init__(self, *, stage: str = "network", **facenet):
        """
        Args:
            stage: "embedding": only the projection is trained, and the network stays in evaluation mode, with its
                statistics of batch norms. "network": everything is trained.
            facenet: see :class:`FaceNet`; ``loss`` is a :class:`HarmonicLoss`.

        Raises:
            ValueError: no such stage, or an argument of FaceNet is not legal.
        """
        if stage not in STAGES:
            raise ValueError(f"MODEL.EMBEDDING.HARMONIC.STAGE is {stage!r}; legal values: {', '.join(STAGES)}")
        super().__init__(**facenet)
        self.stage = stage
        if stage == "embedding":
            self.backbone.requires_grad_(False)

    @classmethod
    def from_config(cls, cfg):
        embedding = cfg.MODEL.EMBEDDING
        if embedding.LOSS.NAME != "triplet" or embedding.WARMUP.LOSS:
            raise ValueError(
                f"MODEL.EMBEDDING.LOSS.NAME is {embedding.LOSS.NAME!r} and MODEL.EMBEDDING.WARMUP.LOSS "
                f"{embedding.WARMUP.LOSS!r}, but HarmonicFaceNet mixes triplets of two models: set them to 'triplet' "
                "and ''. Train v2 by itself first, as FaceNet, with any loss"
            )
        selection = TRIPLET_SELECTION_REGISTRY.get(embedding.LOSS.SELECTION)()
        settings = super().from_config(cfg)
        return {**settings, "loss": HarmonicLoss(embedding.LOSS.MARGIN, selection), "stage": embedding.HARMONIC.STAGE}

    def attach_v1(self, v1: FrozenV1) -> None:
        """Train against ``v1``, and give its embeddings beside the own ones.

        Raises:
            ValueError: its embeddings have another number of numbers.
        """
        dim = self.projection.out_features
        if v1.dim != dim:
            raise ValueError(
                f"v1 gives {v1.dim} numbers per embedding, and MODEL.EMBEDDING.DIM of v2 is {dim}; embeddings of two "
                f"sizes cannot be compared, so set MODEL.EMBEDDING.DIM {v1.dim}"
            )
        v1.model.to(self.device)
        self.v1 = v1

    def forward(self, batched_inputs: list[dict]):
        """As :class:`FaceNet`; with v1 attached, each output also has ``embedding_v1``, float32 ``(D,)``.

        Raises:
            RuntimeError: in training without v1.
            ValueError: see :class:`FaceNet`.
        """
        if self.training:
            if self.v1 is None:
                raise RuntimeError(
                    "HarmonicFaceNet is trained against v1, and none is attached; train with Trainer and "
                    "MODEL.EMBEDDING.HARMONIC.V1, or call attach_v1"
                )
            embeddings, identities = self.training_embeddings(batched_inputs)
            return self.loss(embeddings, self.v1(batched_inputs), identities)
        outputs = super().forward(batched_inputs)
        if self.v1 is not None:
            for output, embedding in zip(outputs, self.v1(batched_inputs), strict=True):
                output["embedding_v1"] = embedding
        return outputs

    def train(self, mode: bool = True):
        """As ``nn.Module``; in the stage "embedding" the network stays in evaluation mode."""
        super().train(mode)
        if self.stage == "embedding":
            self.backbone.eval()
        return self

    def checkpoint_entries(self) -> dict:
        """What a checkpoint of this model holds beside its weights."""
        return {COMPATIBLE_WITH: [self.v1.fingerprint]} if self.v1 is not None else {}

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        if self.v1 is not None:
            self.v1.model._apply(fn, recurse)
        return self


def _conversion(source: str, target: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Maps images ``(B, C, H, W)`` of a format to another format."""
    if source == target:
        return lambda images: images
    if {source, target} == {"BGR", "RGB"}:
        return lambda images: images.flip(1)
    if target == "L" and source in _GREY:
        return lambda images: (images * images.new_tensor(_GREY[source]).view(-1, 1, 1)).sum(dim=1, keepdim=True)
    if source == "L" and target in _GREY:
        logger.warning("v2 takes grey images, so v1, which takes colours, sees grey ones too.")
        return lambda images: images.expand(-1, 3, -1, -1)
    raise ValueError(f"INPUT.FORMAT is {source!r} for v2 and {target!r} for v1; legal: BGR, RGB, L")
