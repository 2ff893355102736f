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
- ``detection``: RetinaNet
- ``losses``: the loss formulas and their fast forms
- ``ops``: boxes and their overlaps, NMS
- ``report``: documents, pages, plots
- ``machine``: devices, cores, processes
- ``lite``: the embedded engine
"""

__version__ = "0.1.0"

from . import detection  # noqa: F401  (registers FocalRetinaNet)
from .config.keys import add_retinanet_ext_config
from .config.loading import load_config

__all__ = ["add_retinanet_ext_config", "load_config"]
