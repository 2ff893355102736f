"""The embedded engine: the part of Detectron2's public API that this package uses, with the same names,
call signatures, config keys, parameter names and numbers, on plain PyTorch and torchvision.

Of the rest of the package only `registry` and `config_files` are imported here; neither knows an engine. The
list of names that the package uses is `retinanet_ext/d2.py`.
"""
