#!/usr/bin/env python
"""Train or evaluate a model of this package.

The flags are those of Detectron2's training script, --time-limit and --strict.

python train_net.py --config-file configs/quick/retinanet.yaml
python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_best.pth
torchrun --nproc-per-node 8 train_net.py --config-file ...

Where only the package is installed, `retinanet-ext train` does the same.
"""

import argparse
import sys

from retinanet_ext.training.arguments import add_train_arguments
from retinanet_ext.training.command import run_command

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_train_arguments(parser)
    sys.exit(run_command(parser.parse_args()))
