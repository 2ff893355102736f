#!/usr/bin/env python
"""Train or evaluate a model of this package; the flags are those of Detectron2's training script.

python train_net.py --config-file configs/quick/retinanet.yaml
python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_best.pth
torchrun --nproc-per-node 8 train_net.py --config-file ...

Where only the package is installed, `retinanet-ext train` does the same.
"""

from retinanet_ext.d2 import default_argument_parser
from retinanet_ext.training.launch import launch, main

if __name__ == "__main__":
    launch(main, default_argument_parser().parse_args())
