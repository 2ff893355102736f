"""What a run does about a loss or gradient that is not finite: examine it, save it, then stop, skip or roll back."""

import logging
from pathlib import Path
from typing import Any

import torch

from retinanet_ext.d2 import comm, hooks
from retinanet_ext.machine.processes import bare_model

from . import incident_files
from .diagnosis import StepAgain, norms_by_part, weights_summary
from .incident_text import incident_text
from .likely_causes import Circumstances, image_facts, rank_causes
from .nonfinite_losses import NonFiniteStep, describe_nonfinite, norms_by_parameter
from .rollback import RollBack, RunRollback, make_steps_go_back

logger = logging.getLogger(__name__)


class NonFiniteGuard(hooks.HookBase):
    """Handles steps that are not finite, by ``SOLVER.NONFINITE``. All processes of a job do the same.

    Attributes:
        skipped: steps left out so far, also before a resume.
        rollbacks: how often the run went back to a checkpoint so far, also before a resume.
    """

    def __init__(self, cfg: Any):
        """``cfg``: the run's, scaled to the number of processes."""
        self._cfg = cfg
        self._policy, self._budget = cfg.SOLVER.NONFINITE.POLICY, cfg.SOLVER.NONFINITE.BUDGET
        self.skipped = self.rollbacks = 0
        self._rollback = RunRollback(cfg) if self._policy == "rollback" else None

    def before_train(self) -> None:
        self.trainer._trainer.on_nonfinite = self._handle
        if self._rollback:
            self._rollback.remember_start(self.trainer)
            make_steps_go_back(self.trainer)

    def state_dict(self) -> dict[str, int]:
        """The counters; empty while they are 0."""
        counters = {"skipped": self.skipped, "rollbacks": self.rollbacks}
        return counters if any(counters.values()) else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.skipped, self.rollbacks = state_dict["skipped"], state_dict["rollbacks"]

    def go_back(self) -> int:
        """Load the last good checkpoint, with a lower learning rate; returns its iteration.

        Raises:
            FloatingPointError: there is none.
        """
        rollbacks, skipped = self.rollbacks, self.skipped
        # Loading sets the counter to that of the checkpoint, whose learning rate was lowered as often.
        self.rollbacks = 0
        reached = self._rollback.load_last_good(self.trainer)
        applied, self.rollbacks, self.skipped = self.rollbacks, rollbacks, skipped
        factor = self._cfg.SOLVER.NONFINITE.LR_FACTOR
        self._rollback.lower_rates(self.trainer, factor ** (rollbacks - applied))
        self._rollback.save(self.trainer, reached)
        logger.warning(
            "rolled back to the weights after iteration %d, learning rate times %g (rollback %d of %d)",
            reached, factor**rollbacks, rollbacks, self._budget,
        )  # fmt: skip
        return reached

    def _handle(self, failed: NonFiniteStep) -> None:
        """Save the incident; then raise, or return to leave the step out."""
        where, text, facts = self._save(failed)
        used = self.skipped + self.rollbacks
        if self._policy == "stop":
            raise FloatingPointError(text)
        if used >= self._budget:
            raise FloatingPointError(f"{text}\nSOLVER.NONFINITE.BUDGET {self._budget} is used up, so training stops.")
        if self._policy == "rollback":
            self.rollbacks += 1
            logger.warning("%s", text)
            # Tells the gradient scaler that this step is over; without mixed precision it does nothing.
            failed.step.grad_scaler.update()
            raise RollBack(self)
        if facts["weights"]["nonfinite_tensors"]:
            raise FloatingPointError(f"{text}\nThe weights are not finite, so leaving out steps cannot help.")
        self.skipped += 1
        self.trainer.storage.put_scalar("skipped_steps", self.skipped, smoothing_hint=False)
        logger.warning("%s\nThis step is left out (%d of %d).", text, self.skipped, self._budget)

    def _save(self, failed: NonFiniteStep) -> tuple[Path, str, dict[str, Any]]:
        """Examine the step and write its files. Returns the folder, the report and the facts, in all processes."""
        what = describe_nonfinite(failed)
        # Before the gradients are cleared.
        norms = norms_by_part(norms_by_parameter(failed))
        step, model = failed.step, bare_model(failed.step.model)
        again = StepAgain(
            model, failed.micro_batches, failed.before.restore, precision=step._precision,
            accumulate=step._accumulate, loss_scale=step.grad_scaler.get_scale(),
        )  # fmt: skip
        found = again.examine(gradients=failed.has_finite_losses)
        ranks = comm.all_gather({**found, "images": [image_facts(inputs) for inputs in failed.batch]})
        facts = self._facts(failed, ranks, norms, weights_summary(model))
        folder = Path(self._cfg.OUTPUT_DIR) / "incidents"
        folder /= comm.all_gather(incident_files.incident_name(folder, self.trainer.iter))[0]
        problems = comm.all_gather(self._write(folder, failed, facts))
        text = incident_text(what, facts, folder, [problem for problem in problems if problem])
        return folder, text, facts

    def _facts(self, failed: NonFiniteStep, ranks: list[dict], norms: dict, weights: dict) -> dict[str, Any]:
        step = failed.step
        known = Circumstances(
            iteration=self.trainer.iter,
            lr=max(group["lr"] for group in step.optimizer.param_groups),
            history=list(step.history),
            weights=weights,
            ranks=ranks,
            images=[image for rank in ranks for image in rank["images"]],
            loss_scale=step.grad_scaler.get_scale(),
        )
        return {
            "iteration": known.iteration,
            "kind": "gradient" if failed.has_finite_losses else "loss",
            "policy": self._policy,
            "losses_by_rank": failed.losses_by_rank,
            "learning_rate": known.lr,
            "gradient_norms": norms,
            "weights": weights,
            "causes": [cause._asdict() for cause in rank_causes(self._cfg, known)],
            "history": [dict(zip(("iteration", "loss", "gradient_norm", "lr"), row)) for row in known.history],
            "ranks": ranks,
            "step": {
                "precision": None if step._precision is None else str(step._precision).removeprefix("torch."),
                "accumulate": step._accumulate,
                "loss_scale": known.loss_scale,
                "device": self._cfg.MODEL.DEVICE,
            },
        }

    def _write(self, folder: Path, failed: NonFiniteStep, facts: dict[str, Any]) -> str:
        """Write this process's files. Returns why that failed; empty if it did not."""
        content = {
            "micro_batches": incident_files.encode(failed.micro_batches),
            "random": failed.before.random.as_plain(),
            "buffers": failed.before.buffers(),
        }
        try:
            incident_files.write_tensors(folder / incident_files.batch_file(comm.get_rank()), content)
            if comm.is_main_process():
                weights = {name: value.cpu() for name, value in _tensors(bare_model(failed.step.model)).items()}
                incident_files.write_tensors(folder / incident_files.WEIGHTS, {"model": weights})
                (folder / incident_files.CONFIG).write_text(self._cfg.dump(), encoding="utf-8")
                incident_files.write_json(folder / incident_files.FACTS, facts)
        except OSError as error:  # a full disk must not hide the incident itself
            return f"rank {comm.get_rank()}: {type(error).__name__}: {error}"
        return ""


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
