#!/usr/bin/env python
"""Train or evaluate a model of this package; the flags are those of Detectron2's training script.

python train_net.py --config-file configs/quick/retinanet.yaml
python train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_best.pth
torchrun --nproc-per-node 8 train_net.py --config-file ...
"""

from retinanet_ext.checkpoint.weights import load_weights
from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import DetectionCheckpointer, comm, default_argument_parser, default_setup, setup_logger
from retinanet_ext.training.launch import launch
from retinanet_ext.training.trainer import Trainer


def setup(args):
    cfg = load_config(args.config_file, args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    # Detectron2's default_setup sets up Detectron2's log only.
    setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="retinanet_ext")
    return cfg


def evaluate(cfg, resume: bool) -> dict:
    """Evaluate MODEL.WEIGHTS or, with ``resume``, the last checkpoint in the output folder if one exists."""
    if not cfg.DATASETS.TEST:
        raise ValueError("--eval-only needs a dataset, but DATASETS.TEST names no dataset")
    model = Trainer.build_model(cfg)
    checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    weights = checkpointer.get_checkpoint_file() if resume and checkpointer.has_checkpoint() else cfg.MODEL.WEIGHTS
    load_weights(model, weights, strict=True)
    results = Trainer.test(cfg, model)
    return {**results, **Trainer.test_with_tta(cfg, model)} if cfg.TEST.AUG.ENABLED else results


def main(args):
    cfg = setup(args)
    if args.eval_only:
        evaluate(cfg, args.resume)
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


if __name__ == "__main__":
    launch(main, default_argument_parser().parse_args())
