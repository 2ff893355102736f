"""The loop over iterations, with hooks around each, and one step of it."""

import logging
import math
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from .. import comm
from ..events import EventStorage, get_event_storage

logger = logging.getLogger(__name__)


class HookBase:
    """Something that happens around the iterations of a trainer; a subclass overrides what it needs.

    ``self.trainer`` is the trainer it is registered with. The order is::

        before_train()
        for each iteration:
            before_step()
            forward, backward
            after_backward()
            optimizer step
            after_step()
        after_train()
    """

    trainer: "TrainerBase" = None

    def before_train(self) -> None:
        """Before the first iteration."""

    def after_train(self) -> None:
        """At the end, also after an error: ``trainer.iter == trainer.max_iter`` means success."""

    def before_step(self) -> None:
        """Before each iteration."""

    def after_backward(self) -> None:
        """When gradients are there and the optimizer has not used them yet."""

    def after_step(self) -> None:
        """After each iteration; ``trainer.iter`` is its number."""

    def state_dict(self) -> dict[str, Any]:
        """What the hook must remember over a restart."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""


class TrainerBase:
    """Runs iterations and hooks; a subclass says in :meth:`run_step` what an iteration is.

    Attributes:
        iter: the current iteration; after a complete training, ``max_iter``.
        start_iter, max_iter: the iterations of the present training are ``start_iter`` to ``max_iter - 1``.
        storage: the active :class:`EventStorage`, during training.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter = 0
        self.start_iter = 0
        self.max_iter = 0
        self.storage: EventStorage = None

    def register_hooks(self, hooks: Iterable[HookBase | None]) -> None:
        """Add hooks, which run in the order of registration; ``None`` entries are ignored."""
        for hook in hooks:
            if hook is None:
                continue
            if not isinstance(hook, HookBase):
                raise TypeError(f"a hook must be a HookBase, found {type(hook).__name__}")
            # A proxy, so that trainer and hook do not keep each other, and the GPU memory behind them, alive.
            hook.trainer = weakref.proxy(self)
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run iterations ``start_iter`` to ``max_iter - 1``. Hooks close down also if one of them fails."""
        logger.info("Starting training from iteration %d", start_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                while self.iter < max_iter:
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    self.iter += 1
            except Exception:
                logger.exception("Training stopped at iteration %d by an error:", self.iter)
                raise
            finally:
                self.after_train()

    def run_step(self) -> None:
        raise NotImplementedError

    def before_train(self) -> None:
        for hook in self._hooks:
            hook.before_train()

    def after_train(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self) -> None:
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self) -> None:
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self) -> None:
        for hook in self._hooks:
            hook.after_step()

    def _named_hooks(self) -> Iterator[tuple[str, HookBase]]:
        """Hooks by class name; further ones of a class get a number, so that each keeps its own state."""
        seen: dict[str, int] = {}
        for hook in self._hooks:
            name = type(hook).__qualname__
            seen[name] = seen.get(name, 0) + 1
            yield (name if seen[name] == 1 else f"{name}#{seen[name]}"), hook

    def state_dict(self) -> dict[str, Any]:
        """``iteration`` (the last one begun) and the state of the hooks that have one."""
        states = {name: hook.state_dict() for name, hook in self._named_hooks()}
        states = {name: state for name, state in states.items() if state}
        return {"iteration": self.iter, **({"hooks": states} if states else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.iter = state_dict["iteration"]
        hooks = dict(self._named_hooks())
        for name, state in state_dict.get("hooks", {}).items():
            if name in hooks:
                hooks[name].load_state_dict(state)
            else:
                logger.warning("the checkpoint has the state of a hook %s, which this trainer does not have", name)


class SimpleTrainer(TrainerBase):
    """One model, one loader, one optimizer: forward, backward, step."""

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
    ):
        """
        Args:
            model: takes what the loader yields, returns a dict of scalar losses, or one scalar. Put into
                training mode here.
            data_loader: yields batches without end. Its iterator is made at the first step.
            optimizer: over the parameters of ``model``.
        """
        super().__init__()
        model.train()
        self.model, self.data_loader, self.optimizer = model, data_loader, optimizer
        self._iterator: Iterator[Any] | None = None

    def run_step(self) -> None:
        start = time.perf_counter()
        data = self._next_batch()
        data_time = time.perf_counter() - start
        losses = self._compute_losses(data)
        if isinstance(losses, torch.Tensor):
            losses = {"total_loss": losses}
        self.optimizer.zero_grad()
        self._backward(sum(losses.values()))
        self.after_backward()
        self._write_metrics(losses, data_time)
        self._optimizer_step()

    # What mixed precision does otherwise.

    def _compute_losses(self, data: Any) -> Mapping[str, torch.Tensor] | torch.Tensor:
        return self.model(data)

    def _backward(self, total_loss: torch.Tensor) -> None:
        total_loss.backward()

    def _optimizer_step(self) -> None:
        self.optimizer.step()

    def _next_batch(self) -> Any:
        if self._iterator is None:
            # A data loader draws a seed when it starts. Training must not see that, or a resumed run, which
            # starts one more loader, would draw other random numbers than the unbroken one.
            with torch.random.fork_rng(devices=[]):
                self._iterator = iter(self.data_loader)
        try:
            return next(self._iterator)
        except StopIteration:
            raise RuntimeError(
                f"the data loader ended before iteration {self.iter}; a loader for training must not end"
            ) from None

    def _write_metrics(self, losses: Mapping[str, torch.Tensor], data_time: float) -> None:
        """Average the losses over processes and put them into the storage of the main process.

        Raises:
            FloatingPointError: a loss is infinite or NaN on some process. All processes raise, so that none
                waits for another.
        """
        # One copy from the device for all losses.
        values = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
        by_rank = comm.all_gather((dict(zip(losses, values, strict=True)), data_time))
        self._check_finite([rank_losses for rank_losses, _ in by_rank])
        if not comm.is_main_process():
            return
        means = {name: sum(found[name] for found, _ in by_rank) / len(by_rank) for name in losses}
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time, cur_iter=self.iter)
        storage.put_scalar("data_time", max(seconds for _, seconds in by_rank), cur_iter=self.iter)
        storage.put_scalar("total_loss", sum(means.values()), cur_iter=self.iter)
        if len(means) > 1:
            storage.put_scalars(cur_iter=self.iter, **means)

    def _check_finite(self, losses_by_rank: list[dict[str, float]]) -> None:
        bad = [
            (f"rank {rank}: " if len(losses_by_rank) > 1 else "")
            + ", ".join(f"{name} = {value:g}" for name, value in losses.items())
            for rank, losses in enumerate(losses_by_rank)
            if not all(math.isfinite(value) for value in losses.values())
        ]
        if bad:
            raise FloatingPointError(
                f"a loss became infinite or NaN at iteration {self.iter}; {'; '.join(bad)}. The weights "
                "are those before this iteration. Usual causes: a learning rate too high for the batch size, "
                "too short a warm-up, boxes without area"
            )

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])


class AMPTrainer(SimpleTrainer):
    """:class:`SimpleTrainer` with the forward pass in mixed precision.

    In fp16 small gradients would vanish, so the loss is scaled; bf16 has the range of fp32 and needs no
    scaler.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: torch.optim.Optimizer,
        *,
        grad_scaler: "torch.amp.GradScaler | None" = None,
        precision: torch.dtype | None = None,
    ):
        """
        Args:
            precision: ``torch.float16`` (CUDA only) or ``torch.bfloat16``; ``None``: fp16 on CUDA, as
                Detectron2, and bf16 on a CPU.
            grad_scaler: a scaler for fp16 other than the default one.
        """
        super().__init__(model, data_loader, optimizer)
        self._device_type = next(model.parameters()).device.type
        on_cuda = self._device_type == "cuda"
        self.precision = precision or (torch.float16 if on_cuda else torch.bfloat16)
        if self.precision == torch.float16 and not on_cuda:
            raise ValueError(f"fp16 training needs CUDA, and the model is on {self._device_type}; use bfloat16")
        self.grad_scaler = grad_scaler or torch.amp.GradScaler(
            self._device_type, enabled=self.precision == torch.float16
        )

    def _compute_losses(self, data: Any) -> Mapping[str, torch.Tensor] | torch.Tensor:
        with torch.autocast(self._device_type, dtype=self.precision):
            return self.model(data)

    def _backward(self, total_loss: torch.Tensor) -> None:
        self.grad_scaler.scale(total_loss).backward()

    def _optimizer_step(self) -> None:
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # A run that changes to mixed precision midway has no scaler to restore.
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
