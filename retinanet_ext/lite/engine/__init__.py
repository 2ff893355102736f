"""The training loop, its hooks, the trainer that a config describes, set-up, and a predictor."""

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
