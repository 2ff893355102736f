"""RetinaNet and its relatives for Detectron2, or for the embedded engine where Detectron2 is not installed.

- ``d2.py``: the seam. Only this file imports Detectron2; all others import the engine's names from it
- ``registry.py``: name -> object, with errors that list the legal names

The packages, from those that a user starts to those that they build on:

- ``cli``: the command `retinanet-ext`
- ``ablation``: studies: arms x seeds, their runs and their report
- ``analysis``: the paper's figures
- ``training``: one run
- ``inference``: a trained model in use
- ``config``: keys, legal values, safe YAML
- ``data``: data sets from the config, their checks, generated shapes
- ``checkpoint``: weights from files
- ``instance``: Mask R-CNN, and masks and keypoints on RetinaNet
- ``embedding``: FaceNet
- ``detection``: RetinaNet
- ``losses``: the loss formulas and their fast forms
- ``ops``: boxes and their overlaps, NMS
- ``report``: documents, pages, plots
- ``machine``: devices, cores, processes
- ``lite``: the embedded engine

``import retinanet_ext`` alone imports nothing else, so that ``retinanet-ext --help`` answers at once. The
config keys and ``retinanet_ext.detection`` bring the models: importing either registers them.
"""

import importlib

__version__ = "0.1.0"

# Public name -> the module that has it.
_HOMES = {
    "add_retinanet_ext_config": ".config.keys",
    "load_config": ".config.loading",
    "load": ".inference.trained_model",
}
_PACKAGES = {"analysis", "checkpoint", "config", "data", "detection", "embedding", "inference", "losses", "ops"}
_PACKAGES |= {"training"}

__all__ = ["add_retinanet_ext_config", "load", "load_config"]


def __getattr__(name: str):
    if name not in _HOMES and name not in _PACKAGES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its functions: {', '.join(__all__)}")
    if name in _PACKAGES:
        return importlib.import_module(f".{name}", __name__)
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
