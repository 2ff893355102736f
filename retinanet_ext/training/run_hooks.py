"""The hooks of a run: the engine's, and what this package adds around them."""

import weakref
from functools import partial

from retinanet_ext.d2 import DefaultTrainer, comm, hooks
from retinanet_ext.data.doctor.coverage_warning import warn_of_poor_coverage

from .average_weights import model_of_metric, start_average
from .bad_images import bad_images_hooks
from .best_checkpoints import BestCheckpoints, UntaggedCheckpointer
from .early_stop import early_stop_hooks
from .finite_weights import FiniteWeightsHook
from .incidents.nonfinite_guard import NonFiniteGuard
from .processes.running_statistics import AverageBuffersHook
from .progress_line import FirstProgress
from .stop_hook import SaveTimer, StopHook
from .threshold_storage import StoreThresholds, threshold_entries


def with_run_hooks(trainer: DefaultTrainer, engine_hooks: list) -> list:
    """The hooks of a run in their order.

    Averaged statistics, and the check that weights are finite, come before each checkpoint, the best checkpoint after
    each evaluation, an evaluation with TTA, if enabled, at the end. The engine's writers stay last, so that they see
    what the evaluation stored.

    Args:
        trainer: has ``cfg``, ``model``, ``checkpointer``, ``data_loader`` and ``test_with_tta``. The hooks keep no
            strong reference to it, which would make a cycle.
        engine_hooks: the engine's own, writers last on the main process.
    """
    hook_list = list(engine_hooks)
    hook_list[1:1] = bad_images_hooks(trainer)  # after the timer, before what may save a checkpoint
    _insert_before_savers(hook_list, start_average(trainer))
    _insert_average_buffers(trainer, hook_list)
    extra, early_stop = [*_average(trainer), *_tta(trainer)], early_stop_hooks(trainer)
    extra.append(NonFiniteGuard(trainer.cfg))
    if not comm.is_main_process():
        return _with_stops(trainer, hook_list + extra + early_stop)
    _look_at_anchors(trainer)
    extra += [*_best_checkpoint(trainer), _first_progress(trainer)]
    extra += [StoreThresholds(trainer.cfg), *early_stop]
    return _with_stops(trainer, hook_list[:-1] + extra + hook_list[-1:])


def _with_stops(trainer, hook_list: list) -> list:
    """Add the hooks of a stop: one before the checkpointer, and one between it and the evaluation."""
    hook_list = [hook for hook in hook_list if hook is not None]
    savers = [index for index, hook in enumerate(hook_list) if isinstance(hook, hooks.PeriodicCheckpointer)]
    evaluations = [index for index, hook in enumerate(hook_list) if isinstance(hook, hooks.EvalHook)]
    first, last = (savers or evaluations)[0], (evaluations or savers)[0]
    timer, later = SaveTimer(), hook_list[last:]
    # A subclass of the trainer may have other writers; processes but the main one have none.
    stop = StopHook(timer, trainer.cfg.TEST.EVAL_PERIOD, later, getattr(trainer, "metrics_file", None))
    return [*hook_list[:first], timer, *hook_list[first:last], stop, *later]


def _look_at_anchors(trainer) -> None:
    loader = trainer.data_loader
    sample = getattr(loader, "coverage_sample", None)
    if sample:
        loader.coverage_sample = []  # frees memory
        model = getattr(trainer.model, "module", trainer.model)
        warn_of_poor_coverage(trainer.cfg, sample, loader.num_images, getattr(model, "backbone", None))


def _insert_average_buffers(trainer, hook_list: list) -> None:
    if comm.get_world_size() == 1:
        return
    period = trainer.cfg.SOLVER.CHECKPOINT_PERIOD
    _insert_before_savers(hook_list, [AverageBuffersHook(period), FiniteWeightsHook(period)])


def _insert_before_savers(hook_list: list, new: list) -> None:
    # Just before the checkpointer: hooks before that one may change the statistics (Detectron2's PreciseBN).
    savers = (hooks.PeriodicCheckpointer, hooks.EvalHook)
    place = next(index for index, hook in enumerate(hook_list) if isinstance(hook, savers))
    hook_list[place:place] = new


def _average(trainer) -> list:
    if trainer.average is None or not trainer.cfg.DATASETS.TEST:
        return []
    weak = weakref.proxy(trainer)
    return [hooks.EvalHook(trainer.cfg.TEST.EVAL_PERIOD, lambda: weak.test_average(weak.cfg, weak.model, weak.average))]


def _tta(trainer) -> list:
    if not trainer.cfg.TEST.AUG.ENABLED:
        return []
    weak = weakref.proxy(trainer)
    return [hooks.EvalHook(0, lambda: weak.test_with_tta(weak.cfg, weak.model))]


def _best_checkpoint(trainer) -> list:
    cfg = trainer.cfg
    metric, names = cfg.TEST.BEST_METRIC, cfg.DATASETS.TEST
    if not metric or not names:
        return []
    if len(names) > 1:  # then the engines prefix metrics with the dataset's name
        metric = f"{names[0]}/{metric}"
    best = UntaggedCheckpointer(trainer.model, cfg.OUTPUT_DIR)
    best.model = model_of_metric(trainer, metric)
    best.entries = trainer.checkpointer.entries  # the same object: the trainer fills it in later
    best.more_entries = partial(threshold_entries, cfg)
    return [BestCheckpoints(best, metric, period=cfg.TEST.EVAL_PERIOD, keep=cfg.TEST.BEST_KEPT)]


def _first_progress(trainer) -> FirstProgress:
    return FirstProgress(
        images_per_batch=trainer.cfg.SOLVER.IMS_PER_BATCH,
        num_images=getattr(trainer.data_loader, "num_images", None),
        device=trainer.cfg.MODEL.DEVICE,
    )
