"""The embedded engine: the part of Detectron2's public API that this package uses.

It has the same names, call signatures, config keys, parameter names and numbers, on plain PyTorch and torchvision.

From the rest of the package it imports only modules that use no engine. ``d2.py`` lists the names that the package
uses. Models are not part of it: they are written once, for both engines.

In reading order:

- ``cfg_node.py``: the config tree, and classes that can be built from one
- ``config_defaults.py``: every key with its default
- ``two_stage_defaults.py``: those of proposals and of heads on regions of interest
- ``other_detectors.py``: keys of detectors that `lite` does not have, kept or refused
- ``structures``: boxes, instances, padded batches
- ``data``: catalogs, readers, augmentation, loaders
- ``layers.py``: convolutions and norms
- ``backbone``: ResNet, ResNeXt, FPN
- ``anchors.py``: the reference boxes of a dense detector
- ``meta_arch.py``: builds the model that a config names, and rescales detections to the original image
- ``engine``: the training loop, its hooks, the trainer
- ``solver.py``: optimizer and learning rate
- ``events.py``: storage of a run's numbers, and their writers
- ``checkpointer.py``: saves and loads checkpoints
- ``pretrained_names.py``: renames weights of other projects
- ``evaluation``: evaluators, and COCO's metrics
- ``visualizer.py``: pictures of boxes
- ``palette.py``: colours that tell classes apart
- ``comm.py``: ranks of a job's processes, and exchanges between them
- ``logger.py``: log lines
- ``env.py``: seeds, and a description of the machine
"""
