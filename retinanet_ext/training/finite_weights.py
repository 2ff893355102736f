"""Stops all processes together when the weights of a job are not finite before a checkpoint."""

from retinanet_ext.checkpoint.checkpoint_writing import first_nonfinite
from retinanet_ext.d2 import comm, hooks
from retinanet_ext.machine.processes import bare_model


class FiniteWeightsHook(hooks.HookBase):
    """Checks the weights of every process before a checkpoint. Register it before the checkpointer, on every process.

    Only the main process has the checkpointer, which would refuse such weights alone; the others would wait for it.
    """

    def __init__(self, period: int) -> None:
        """``period``: that of the checkpointer, which saves after the last iteration too."""
        self._period = period

    def after_step(self) -> None:
        iterations_done = self.trainer.iter + 1
        is_last = iterations_done >= self.trainer.max_iter
        if not is_last and (self._period < 1 or iterations_done % self._period):
            return
        found = comm.all_gather(first_nonfinite(bare_model(self.trainer.model).state_dict()))
        bad = [f"rank {rank}: {name}" for rank, name in enumerate(found) if name is not None]
        if bad:
            raise FloatingPointError(
                f"the weights are not finite after iteration {self.trainer.iter} (first {'; '.join(bad)}), so no "
                "checkpoint is written and the earlier ones stay. Training has diverged: lower SOLVER.BASE_LR or "
                "lengthen SOLVER.WARMUP_ITERS, then go on from the last checkpoint with --resume"
            )
