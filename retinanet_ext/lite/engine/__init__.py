"""The training loop, its hooks, and what a run consists of.

In reading order:

- ``run_setup.py``: command line, output folder, log, seeds
- ``default_trainer.py``: training as a config describes it
- ``train_loop.py``: the loop over iterations
- ``hooks.py``: times, rates, checkpoints, evaluation, writing
- ``default_predictor.py``: a model in use, one image at a time
"""

from . import hooks
from .default_predictor import DefaultPredictor
from .default_trainer import DefaultTrainer, create_ddp_model
from .run_setup import default_argument_parser, default_setup
from .train_loop import HookBase, TrainerBase

__all__ = [
    "DefaultPredictor",
    "DefaultTrainer",
    "HookBase",
    "TrainerBase",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "hooks",
]
