"""RetinaNet and its relatives for Detectron2, or for the embedded engine where Detectron2 is not installed."""

__version__ = "0.1.0"

from . import detection  # noqa: F401  (registers FocalRetinaNet)
from .config.keys import add_retinanet_ext_config
from .config.loading import load_config

__all__ = ["add_retinanet_ext_config", "load_config"]
