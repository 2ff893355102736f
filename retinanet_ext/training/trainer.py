"""The engine's trainer with what this extension adds: checked data, load reports, loss guard, progress, records."""

import contextlib
import inspect
import logging
import os
import warnings
import weakref

import torch

from retinanet_ext.checkpoint.checked_checkpointer import CheckedCheckpointer
from retinanet_ext.checkpoint.load_report import refuse_incomplete
from retinanet_ext.config.batch_scaling import say_scaled, scaled_to_batch
from retinanet_ext.d2 import (
    BACKBONE_REGISTRY,
    ENGINE,
    META_ARCH_REGISTRY,
    DatasetMapper,
    DefaultTrainer,
    MetadataCatalog,
    TensorboardXWriter,
    build_detection_test_loader,
    build_detection_train_loader,
    comm,
    get_event_storage,
)
from retinanet_ext.data.annotation_identities import ObjectIdentityMapper, identity_numbers
from retinanet_ext.data.checked_mapper import CheckedMapper, mapper_for_test
from retinanet_ext.data.checked_records import (
    data_counts,
    dataset_for_evaluation,
    load_checked_dicts,
    load_training_dicts,
)
from retinanet_ext.data.doctor.coverage_warning import quick_sample
from retinanet_ext.data.identity_datasets import embeds_identities
from retinanet_ext.data.keypoint_metadata import check_keypoints_are_named
from retinanet_ext.data.record_store import RecordStore
from retinanet_ext.data.replacing_mapper import ReplacingMapper
from retinanet_ext.embedding.verification_evaluator import VerificationEvaluator
from retinanet_ext.inference.encoded_mask_output import encoded_masks
from retinanet_ext.inference.fast_copy import check_inference_model, inference_model
from retinanet_ext.inference.tta import DenseDetectorWithTTA, check_has_boxes_only
from retinanet_ext.machine.cpu import keep_freed_memory
from retinanet_ext.machine.devices import check_device
from retinanet_ext.machine.processes import bare_model
from retinanet_ext.registry import check_registered

from .average_weights import evaluate_average, is_of_average
from .bad_images import ReportingLoader
from .compact_evaluator import DefaultCOCOEvaluator
from .early_stop import EarlyStop
from .explained_results import with_reasons
from .first_model import attach_v1, load_start_weights
from .frozen_parts import refuse_unfilled_frozen_parts
from .identity_loaders import check_pairs, identity_test_loader, identity_train_loader
from .metrics_file import MetricsFile
from .optimizers import with_optimizer
from .overlapped_evaluation import OverlappedEvaluator
from .processes.process_checks import check_processes
from .processes.running_statistics import average_buffers
from .progress_line import ProgressWriter
from .provenance import provenance
from .run_hooks import with_run_hooks
from .run_record import write_results, write_run_record
from .step import TrainStep, mixed_precision
from .stop_hook import StoppableLoader, StoppableTraining

logger = logging.getLogger(__name__)

# Makes an evaluator, by the evaluator_type in a dataset's metadata. A maker with an argument named cfg is called as
# obj(dataset_name, output_dir=..., cfg=...) -> evaluator, others like COCOEvaluator: obj(dataset_name, output_dir=...,
# max_dets_per_image=..., kpt_oks_sigmas=..., allow_cached_coco=...) -> evaluator.
EVALUATORS = {"coco": DefaultCOCOEvaluator, "verification": VerificationEvaluator}


class Trainer(StoppableTraining, DefaultTrainer):
    """Trains and evaluates the meta-architectures of this package, on either engine."""

    def __init__(self, cfg):
        cfg, scaling = scaled_to_batch(cfg)  # nothing is left to do if `launch` has made the config
        say_scaled(scaling)
        check_device(cfg.MODEL.DEVICE)
        if torch.device(cfg.MODEL.DEVICE).type == "cpu":
            keep_freed_memory()
        check_processes(cfg)
        if mixed_precision(cfg) is None and cfg.SOLVER.AMP.ENABLED:
            logger.info("SOLVER.AMP: this processor has no instructions for bfloat16, so training is in float32.")
        self.check_test_data(cfg)
        with warnings.catch_warnings():
            # Detectron2 makes a CUDA gradient scaler even for a model on the CPU; `_use_our_step` replaces it.
            warnings.filterwarnings("ignore", message=".*GradScaler.*")
            super().__init__(cfg)
        if ENGINE == "detectron2":
            self._use_our_step()
        # An impossible TEST.DTYPE, COMPILE, CUDA_GRAPHS or AUG fails here, not at the first evaluation.
        check_inference_model(cfg, self.model)
        if cfg.TEST.AUG.ENABLED:
            check_has_boxes_only(cfg)
        self.checkpointer.keep = cfg.SOLVER.CHECKPOINTS_KEPT
        if comm.is_main_process():
            self.checkpointer.entries["provenance"] = provenance(cfg)
            write_run_record(cfg, comm.get_world_size())
            self._announce_single_checkpoint()

    def _announce_single_checkpoint(self) -> None:
        period = self.cfg.SOLVER.CHECKPOINT_PERIOD  # of the config as scaled to the number of processes
        if period > self.max_iter:
            logger.info(
                "SOLVER.CHECKPOINT_PERIOD is %d, above SOLVER.MAX_ITER %d: only the final checkpoint will be written",
                period, self.max_iter,
            )  # fmt: skip

    def _use_our_step(self) -> None:
        """Run :class:`TrainStep`, as `lite`'s own trainer does, in place of Detectron2's own step."""
        outer = weakref.proxy(self)  # a strong reference would make a cycle that keeps the model alive
        self._trainer = TrainStep.from_config(
            self.cfg, self.model, self.data_loader, self.optimizer,
            storage=get_event_storage, after_backward=lambda: outer.after_backward(),
        )  # fmt: skip

    @property
    def checkpointer(self) -> CheckedCheckpointer:
        """Saves and loads the run. Never the engine's own one: Detectron2's would run code from a file."""
        return self._checkpointer

    @checkpointer.setter
    def checkpointer(self, checkpointer) -> None:
        earlier = getattr(self, "_checkpointer", None)
        self._checkpointer = CheckedCheckpointer.like(checkpointer)
        if earlier is not None:
            self._checkpointer.keep, self._checkpointer.entries = earlier.keep, earlier.entries

    def resume_or_load(self, resume: bool = True) -> None:
        """With `resume`, continue from the output folder's last checkpoint, if any; else load ``MODEL.WEIGHTS``."""
        # If only some processes see a checkpoint, all must still call the engine, which refuses this case.
        if resume and any(comm.all_gather(self.checkpointer.has_checkpoint())):
            self._resume()
            return
        if resume:
            logger.warning("nothing to resume in %s; starting from MODEL.WEIGHTS", self.cfg.OUTPUT_DIR)
        report = load_start_weights(self.model, self.cfg.MODEL.WEIGHTS)
        refuse_unfilled_frozen_parts(self.model, report.loaded if report else [])

    def _resume(self) -> None:
        try:
            super().resume_or_load(resume=True)
            path = self.checkpointer.get_checkpoint_file()
            # The engines skip weights that do not fit, and the optimizer would fail later.
            refuse_incomplete(bare_model(self.model), self.checkpointer.report, path)
        # The exception type depends on which part of the config differs from the checkpoint's.
        except Exception as error:
            path = self.checkpointer.get_checkpoint_file() or self.cfg.OUTPUT_DIR
            raise ValueError(
                f"cannot resume from {path}: {type(error).__name__}: {error}\nCheck that the file is complete and that "
                "the config is that of the run. To start a new run from its weights, set MODEL.WEIGHTS and leave out "
                "--resume."
            ) from error
        logger.info(
            "resumed from %s, going on at iteration %d of %d; MODEL.WEIGHTS is not read",
            path,
            self.start_iter,
            self.max_iter,
        )
        if self.start_iter >= self.max_iter:
            logger.warning("that run is complete: raise SOLVER.MAX_ITER, now %d, to train longer", self.max_iter)

    @classmethod
    def build_model(cls, cfg):
        check_device(cfg.MODEL.DEVICE)
        if ENGINE == "detectron2":  # `lite` checks this itself
            check_registered("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY)
        check_registered("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY)
        model = super().build_model(cfg)
        if cfg.MODEL.GRADIENT_CHECKPOINTING and not getattr(model, "gradient_checkpointing", False):
            raise ValueError(
                f"MODEL.GRADIENT_CHECKPOINTING is True, which the meta-architecture {type(model).__name__} does not "
                "support; use FocalRetinaNet, or set it to False"
            )
        attach_v1(cfg, model)
        return model

    @classmethod
    def _keeps(cls, method: str) -> bool:
        """Whether a subclass leaves this class method of Trainer as it is."""
        return getattr(cls, method).__func__ is getattr(Trainer, method).__func__

    @classmethod
    def build_optimizer(cls, cfg, model):
        """The engine's SGD, or the optimizer that SOLVER.OPTIMIZER names with the same parameter groups."""
        return with_optimizer(cfg, super().build_optimizer(cfg, model))

    @classmethod
    def check_test_data(cls, cfg) -> None:
        """Check ``DATASETS.TEST`` and make its evaluators, so that bad data fail before the model runs, not after it.

        Data of a subclass with a loader of its own are left to that loader.
        """
        if not cls._keeps("build_test_loader"):
            return
        if cls._keeps("build_evaluator"):
            _check_best_metric(cfg)
        for name in cfg.DATASETS.TEST:
            load_checked_dicts(cfg, [name], filter_empty=False)
            if embeds_identities(cfg):
                check_pairs(cfg, name)
            with contextlib.suppress(NotImplementedError):  # a subclass without an evaluator for this dataset
                cls.build_evaluator(cfg, name)

    @classmethod
    def build_train_loader(cls, cfg):
        if embeds_identities(cfg):
            return identity_train_loader(cfg)
        dicts = load_training_dicts(cfg)
        if cfg.MODEL.KEYPOINT_ON:
            check_keypoints_are_named(cfg.DATASETS.TRAIN)
        mapper = DatasetMapper(cfg, is_train=True)
        if cfg.MODEL.EMBEDDING_ON:
            mapper = ObjectIdentityMapper(mapper, identity_numbers(dicts, cfg.DATASETS.TRAIN))
        records = RecordStore(dicts)
        loader = build_detection_train_loader(cfg, mapper=ReplacingMapper(mapper, records), dataset=records)
        # The progress line needs this for the epoch; the engines' loaders do not know it.
        loader.num_images = len(records)
        loader.coverage_sample = quick_sample(cfg, dicts) if comm.is_main_process() else []
        return ReportingLoader(loader)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name: str):
        if embeds_identities(cfg):
            return StoppableLoader(identity_test_loader(cfg, dataset_name))
        dicts = load_checked_dicts(cfg, [dataset_name], filter_empty=False)
        # Here no other image may replace an unreadable one, because it would be evaluated twice.
        mapper = CheckedMapper(mapper_for_test(cfg))
        loader = build_detection_test_loader(dataset=dicts, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS)
        return StoppableLoader(loader)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name: str, output_folder: str | None = None):
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
        if kind not in EVALUATORS:
            raise ValueError(
                f"dataset {dataset_name!r} has evaluator_type {kind!r}; legal values: {', '.join(sorted(EVALUATORS))}. "
                "Set it in the dataset's metadata, or add yours to retinanet_ext.training.trainer.EVALUATORS."
            )
        output_folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        name, maker = dataset_for_evaluation(cfg, dataset_name), EVALUATORS[kind]
        if "cfg" in inspect.signature(maker).parameters:
            evaluator = maker(name, output_dir=output_folder, cfg=cfg)
        else:
            evaluator = maker(
                name,
                output_dir=output_folder,
                max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
                kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS,
                # A file left by an earlier run may hold other annotations under the same name.
                allow_cached_coco=False,
            )
        # On a CPU, a second thread would take time from the model.
        return OverlappedEvaluator(evaluator) if cfg.MODEL.DEVICE.startswith("cuda") else evaluator

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """Evaluate on all of ``DATASETS.TEST`` and keep the metrics in ``results.json``.

        Under ``data`` that file has the number of images that were evaluated, and how many images and annotations the
        policies of the config left out; under ``reasons`` why metrics are undefined.
        In a job of several processes the model's running statistics are averaged over them first, in place.
        """
        average_buffers(model)
        model = inference_model(cfg, model)
        with encoded_masks(model):
            results = super().test(cfg, model, evaluators)
        if comm.is_main_process():
            write_results(cfg.OUTPUT_DIR, cls._with_data_counts(cfg, with_reasons(cfg, results)))
        return results

    @classmethod
    def _with_data_counts(cls, cfg, results: dict) -> dict:
        if not cls._keeps("build_test_loader"):
            return results
        counts = {name: {"data": data_counts(cfg, name)} for name in cfg.DATASETS.TEST}
        if len(counts) == 1:  # then the engines leave out the dataset's name
            return {**results, **next(iter(counts.values()))}
        return {name: {**results.get(name, {}), **counts[name]} for name in counts}

    @classmethod
    def test_with_tta(cls, cfg, model) -> dict:
        """Evaluate with test-time augmentation; ``results.json`` gets further entries, ``bbox_TTA`` and so on."""
        evaluators = [
            cls.build_evaluator(cfg, name, os.path.join(cfg.OUTPUT_DIR, "inference_TTA", name))
            for name in cfg.DATASETS.TEST
        ]
        average_buffers(model)
        results = super().test(cfg, DenseDetectorWithTTA(cfg, inference_model(cfg, model)), evaluators)
        if comm.is_main_process():
            write_results(cfg.OUTPUT_DIR, with_reasons(cfg, results, "inference_TTA", "_TTA"), add=True)
        return {f"{entry}_TTA": metrics for entry, metrics in results.items()}

    @classmethod
    def test_average(cls, cfg, model, average) -> dict:
        """Evaluate the average weights; ``results.json`` gets further entries, ``bbox_EMA`` and so on."""
        return evaluate_average(cfg, model, average, super().test, cls.build_evaluator)

    def train(self):
        """As the engine's; an early stop is the end of the run."""
        try:
            return super().train()
        except EarlyStop:
            return getattr(self, "_last_eval_results", None)

    def build_hooks(self):
        """The engine's hooks, and what this package adds; see :func:`with_run_hooks`."""
        return with_run_hooks(self, super().build_hooks())

    def build_writers(self):
        output_dir = self.cfg.OUTPUT_DIR
        progress = ProgressWriter(
            max_iter=self.max_iter,
            images_per_batch=self.cfg.SOLVER.IMS_PER_BATCH,
            num_images=getattr(self.data_loader, "num_images", None),
        )
        self.metrics_file = MetricsFile(os.path.join(output_dir, "metrics.json"))
        return [progress, self.metrics_file, TensorboardXWriter(output_dir)]


def _check_best_metric(cfg) -> None:
    """Refuse a metric of masks, keypoints or average weights from a model without them: it would never be found."""
    for key, metric in {"BEST_METRIC": cfg.TEST.BEST_METRIC, "EARLY_STOP.METRIC": cfg.TEST.EARLY_STOP.METRIC}.items():
        if is_of_average(metric) and not cfg.MODEL.EMA.ENABLED:
            raise ValueError(f"TEST.{key} is {metric!r}, but MODEL.EMA.ENABLED is False; set it to True")
        task = metric.partition("/")[0].removesuffix("_EMA")
        switch = {"segm": "MASK_ON", "keypoints": "KEYPOINT_ON"}.get(task)
        if switch and not cfg.MODEL[switch]:
            raise ValueError(
                f"TEST.{key} is {metric!r}, but MODEL.{switch} is False; set it to True, or choose a metric of boxes, "
                "such as bbox/AP"
            )
