"""The hooks of a run: the engine's, and what this package adds around them."""

import weakref

from retinanet_ext.checkpoint.checked_checkpointer import CheckedCheckpointer
from retinanet_ext.d2 import DefaultTrainer, comm, hooks

from .average_weights import model_of_metric, start_average
from .bad_images import bad_images_hooks
from .early_stop import early_stop_hooks
from .progress_line import FirstProgress
from .running_statistics import AverageBuffersHook


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
    hook_list[1:1] = bad_images_hooks(trainer)  # after the timer, before what may save a checkpoint
    _insert_before_savers(hook_list, start_average(trainer))
    _insert_average_buffers(trainer, hook_list)
    extra, early_stop = [*_average(trainer), *_tta(trainer)], early_stop_hooks(trainer)
    if not comm.is_main_process():
        return hook_list + extra + early_stop
    extra += [*_best_checkpoint(trainer), _first_progress(trainer), *early_stop]
    return hook_list[:-1] + extra + hook_list[-1:]


def _insert_average_buffers(trainer, hook_list: list) -> None:
    if comm.get_world_size() == 1:
        return
    _insert_before_savers(hook_list, [AverageBuffersHook(trainer.cfg.SOLVER.CHECKPOINT_PERIOD)])


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
    best = _BestCheckpointer(trainer.model, cfg.OUTPUT_DIR)
    best.model = model_of_metric(trainer, metric)
    return [hooks.BestCheckpointer(cfg.TEST.EVAL_PERIOD, best, metric)]


def _first_progress(trainer) -> FirstProgress:
    return FirstProgress(
        images_per_batch=trainer.cfg.SOLVER.IMS_PER_BATCH,
        num_images=getattr(trainer.data_loader, "num_images", None),
        device=trainer.cfg.MODEL.DEVICE,
    )
