"""From a record of identity data to the input of FaceNet, with augmentation in training."""

import numpy as np
import torch

from retinanet_ext.d2 import CfgNode, detection_utils
from retinanet_ext.embedding.face_input import FaceInput

# A crop keeps a tenth of its side at least.
_LARGEST = {"SHIFT": 1.0, "SCALE": 0.9, "ROTATION": 180.0, "LIGHT": 1.0}


class IdentityMapper:
    """Reads the image of a record, crops its face, and in training augments the crop.

    All random numbers come from NumPy's global generator, which the loaders seed.
    """

    def __init__(
        self,
        face_input: FaceInput,
        *,
        is_train: bool,
        flip: str = "none",
        shift: float = 0.0,
        scale: float = 0.0,
        rotation: float = 0.0,
        light: float = 0.0,
    ) -> None:
        """
        Args:
            face_input: crops. Its detector is not used for records that have a ``face_box``.
            is_train: whether to augment.
            flip: "horizontal" or "vertical" mirrors every other image, "none" none.
            shift: largest shift of the crop in each direction, as a share of its side.
            scale: largest change of its sides, as a share of them.
            rotation: largest rotation, in degrees.
            light: largest change of the contrast, as a share of it, and of the brightness, as a share of 255.

        Raises:
            ValueError: a number is out of range; names its config key.
        """
        given = {"SHIFT": shift, "SCALE": scale, "ROTATION": rotation, "LIGHT": light}
        for name, value in given.items():
            if not 0 <= value <= _LARGEST[name]:
                raise ValueError(f"INPUT.FACE.{name}_JITTER is {value!r}; legal: a number from 0 to {_LARGEST[name]}")
        self.face_input = face_input
        self.is_train = is_train
        self.flip = flip if is_train else "none"
        self.shift, self.scale, self.rotation, self.light = (v if is_train else 0.0 for v in given.values())

    @classmethod
    def from_config(cls, cfg: CfgNode, face_input: FaceInput, is_train: bool) -> "IdentityMapper":
        """A mapper with the augmentation of INPUT.RANDOM_FLIP and INPUT.FACE."""
        return cls(
            face_input,
            is_train=is_train,
            flip=cfg.INPUT.RANDOM_FLIP,
            shift=cfg.INPUT.FACE.SHIFT_JITTER,
            scale=cfg.INPUT.FACE.SCALE_JITTER,
            rotation=cfg.INPUT.FACE.ROTATION_JITTER,
            light=cfg.INPUT.FACE.LIGHT_JITTER,
        )

    def __call__(self, record: dict) -> dict:
        """
        Args:
            record: ``file_name``; optional ``face_box``, XYXY of a face in the image, or None where none was found.

        Returns:
            A copy of the record with ``image``, uint8 tensor ``(C, h, w)``, ``face_found`` and the ``height`` and
            ``width`` of the whole image.
        """
        image = detection_utils.read_image(record["file_name"], format="BGR")
        size = image.shape[:2]
        face = record["face_box"] if "face_box" in record else self.face_input.find(image)
        found = self.face_input.detector is None or face is not None
        region = self.face_input.region(face, size)
        angle = np.random.uniform(-self.rotation, self.rotation) if self.rotation else 0.0
        crop = self.face_input.crop(image, self._jittered(region), angle=angle).image
        crop = self._mirrored(self._lit(crop))
        # Tensors need their own, writable memory.
        tensor = torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)).copy())
        return {**record, "image": tensor, "face_found": found, "height": size[0], "width": size[1]}

    def _jittered(self, region: np.ndarray) -> np.ndarray:
        if not self.shift and not self.scale:
            return region
        sides = region[2:] - region[:2]
        centre = (region[2:] + region[:2]) / 2 + np.random.uniform(-self.shift, self.shift, 2) * sides
        half = sides / 2 * np.random.uniform(1 - self.scale, 1 + self.scale)
        return np.concatenate([centre - half, centre + half])

    def _lit(self, crop: np.ndarray) -> np.ndarray:
        if not self.light:
            return crop
        contrast, brightness = np.random.uniform(-self.light, self.light, 2)
        mean = crop.mean()
        lit = (crop.astype(np.float32) - mean) * (1 + contrast) + mean + 255 * brightness
        return np.clip(np.rint(lit), 0, 255).astype(np.uint8)

    def _mirrored(self, crop: np.ndarray) -> np.ndarray:
        if self.flip == "none" or np.random.uniform() < 0.5:
            return crop
        return crop[:, ::-1] if self.flip == "horizontal" else crop[::-1]
