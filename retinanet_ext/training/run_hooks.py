"""The hooks of a run: the engine's, and what this package adds around them."""

import weakref

from retinanet_ext.checkpoint.checked_checkpointer import CheckedCheckpointer
from retinanet_ext.d2 import DefaultTrainer, comm, hooks

from .progress_line import FirstProgress
from .running_statistics import AverageBuffersHook
from .stop_hook import SaveTimer, StopHook


class _BestCheckpointer(CheckedCheckpointer):
    """Saves checkpoints that a resumed run does not continue from."""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        pass


def with_run_hooks(trainer: DefaultTrainer, engine_hooks: list) -> list:
    """The hooks of a run in their order.

    Averaged statistics come before each checkpoint, the best checkpoint after each evaluation, an evaluation with
    TTA, if enabled, at the end. The engine's writers stay last, so that they see what the evaluation stored.

    Args:
        trainer: has ``cfg``, ``model``, ``data_loader`` and ``test_with_tta``. The hooks keep no strong reference to
            it, which would make a cycle.
        engine_hooks: the engine's own, writers last on the main process.
    """
    hook_list = list(engine_hooks)
    _insert_average_buffers(trainer, hook_list)
    extra = [*_tta(trainer)]
    if not comm.is_main_process():
        return _with_stops(trainer, hook_list + extra)
    extra += [*_best_checkpoint(trainer), _first_progress(trainer)]
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


def _insert_average_buffers(trainer, hook_list: list) -> None:
    if comm.get_world_size() == 1:
        return
    # Just before the checkpointer: hooks before that one may change the statistics (Detectron2's PreciseBN).
    savers = (hooks.PeriodicCheckpointer, hooks.EvalHook)
    place = next(index for index, hook in enumerate(hook_list) if isinstance(hook, savers))
    hook_list.insert(place, AverageBuffersHook(trainer.cfg.SOLVER.CHECKPOINT_PERIOD))


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
    best = _BestCheckpointer(trainer.model, cfg.OUTPUT_DIR)
    return [hooks.BestCheckpointer(cfg.TEST.EVAL_PERIOD, best, metric)]


def _first_progress(trainer) -> FirstProgress:
    return FirstProgress(
        images_per_batch=trainer.cfg.SOLVER.IMS_PER_BATCH,
        num_images=getattr(trainer.data_loader, "num_images", None),
        device=trainer.cfg.MODEL.DEVICE,
    )
