"""The engine's trainer with what this extension adds: checked data, load reports, loss guard, progress, records."""

import logging
import os

from retinanet_ext.checkpoint import load_weights
from retinanet_ext.d2 import (
    COCOEvaluator,
    DatasetMapper,
    DefaultTrainer,
    DetectionCheckpointer,
    JSONWriter,
    MetadataCatalog,
    TensorboardXWriter,
    build_detection_test_loader,
    build_detection_train_loader,
    comm,
    hooks,
)
from retinanet_ext.data.loading import load_checked_dicts
from retinanet_ext.data.mapper import CheckedMapper
from retinanet_ext.detection import DenseDetectorWithTTA
from retinanet_ext.loss_guard import guard_losses
from retinanet_ext.progress import ProgressWriter
from retinanet_ext.run_record import write_results, write_run_record

logger = logging.getLogger(__name__)

# By the evaluator_type in a dataset's metadata: obj(dataset_name, output_dir=...) -> evaluator.
EVALUATORS = {"coco": COCOEvaluator}


class _BestCheckpointer(DetectionCheckpointer):
    """Saves without becoming the checkpoint that a resumed run goes on from."""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        pass


class Trainer(DefaultTrainer):
    """Trains and evaluates the meta-architectures of this package, on either engine."""

    def __init__(self, cfg):
        super().__init__(cfg)
        guard_losses(self.model)
        if comm.is_main_process():
            write_run_record(cfg, comm.get_world_size())

    def resume_or_load(self, resume: bool = True) -> None:
        """Continue from the last checkpoint in the output folder if asked to, else load ``MODEL.WEIGHTS``."""
        if resume and self.checkpointer.has_checkpoint():
            super().resume_or_load(resume=True)
            logger.info(
                "resumed from %s, going on at iteration %d of %d; MODEL.WEIGHTS is not read",
                self.checkpointer.get_checkpoint_file(),
                self.start_iter,
                self.max_iter,
            )
            return
        if resume:
            logger.warning("nothing to resume in %s; starting from MODEL.WEIGHTS", self.cfg.OUTPUT_DIR)
        load_weights(self.model, self.cfg.MODEL.WEIGHTS)

    @classmethod
    def build_train_loader(cls, cfg):
        dicts = load_checked_dicts(cfg, cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
        mapper = CheckedMapper(DatasetMapper(cfg, is_train=True), cfg.DATASETS.ON_BAD_IMAGE)
        loader = build_detection_train_loader(cfg, mapper=mapper, dataset=dicts)
        # For the epoch in the progress line; the engines' loaders do not tell.
        loader.num_images = len(dicts)
        return loader

    @classmethod
    def build_test_loader(cls, cfg, dataset_name: str):
        dicts = load_checked_dicts(cfg, [dataset_name], filter_empty=False)
        # No sample may take the place of an unreadable one here: it would be evaluated twice.
        mapper = CheckedMapper(DatasetMapper(cfg, is_train=False), on_bad_image="error")
        return build_detection_test_loader(dataset=dicts, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name: str, output_folder: str | None = None):
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
        if kind not in EVALUATORS:
            raise ValueError(
                f"dataset {dataset_name!r} has evaluator_type {kind!r}; known are {', '.join(sorted(EVALUATORS))}. "
                "Set it in the dataset's metadata, or add to retinanet_ext.trainer.EVALUATORS."
            )
        output_folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        return EVALUATORS[kind](
            dataset_name, output_dir=output_folder, max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE
        )

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """Evaluate on all of ``DATASETS.TEST`` and keep the metrics in ``results.json``."""
        results = super().test(cfg, model, evaluators)
        if comm.is_main_process():
            write_results(cfg.OUTPUT_DIR, results)
        return results

    @classmethod
    def test_with_tta(cls, cfg, model) -> dict:
        """Evaluate with test-time augmentation; tasks are named ``bbox_TTA`` and so on."""
        results = super().test(cfg, DenseDetectorWithTTA(cfg, model))
        return {f"{task}_TTA": metrics for task, metrics in results.items()}

    def build_hooks(self):
        """The engine's hooks, the best checkpoint after each evaluation, and a last evaluation with TTA if enabled."""
        hook_list = super().build_hooks()
        extra = []
        if self.cfg.TEST.AUG.ENABLED:
            extra.append(hooks.EvalHook(0, lambda: self.test_with_tta(self.cfg, self.model)))
        if not comm.is_main_process():
            return hook_list + extra
        if self.cfg.TEST.BEST_METRIC and self.cfg.DATASETS.TEST:
            best = _BestCheckpointer(self.model, self.cfg.OUTPUT_DIR)
            extra.append(hooks.BestCheckpointer(self.cfg.TEST.EVAL_PERIOD, best, self.cfg.TEST.BEST_METRIC))
        # The writers come last, so that they see what the evaluation stored.
        return hook_list[:-1] + extra + hook_list[-1:]

    def build_writers(self):
        output_dir = self.cfg.OUTPUT_DIR
        progress = ProgressWriter(
            max_iter=self.max_iter,
            images_per_batch=self.cfg.SOLVER.IMS_PER_BATCH,
            num_images=getattr(self.data_loader, "num_images", None),
        )
        return [progress, JSONWriter(os.path.join(output_dir, "metrics.json")), TensorboardXWriter(output_dir)]
