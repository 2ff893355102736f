"""The embedded engine: the part of Detectron2's public API that this package uses, with the same names,
call signatures, config keys, parameter names and numbers, on plain PyTorch and torchvision.

Nothing here imports the rest of the package except `retinanet_ext.ops`. The list of names that are used, and
so the reason why each of them exists, is `retinanet_ext/d2.py`.
"""
