"""The loop over iterations, and the hooks around each iteration."""

import logging
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from ..events import EventStorage

logger = logging.getLogger(__name__)


class HookBase:
    """Code that runs around the iterations of a trainer; a subclass overrides the methods it needs.

    ``self.trainer`` is the trainer it is registered with. Order of calls; the indented ones run in every iteration::

        before_train
            before_step
            (forward and backward pass)
            after_backward
            (optimizer step)
            after_step
        after_train
    """

    trainer: "TrainerBase" = None

    def before_train(self) -> None:
        """Before the first iteration."""

    def after_train(self) -> None:
        """At the end, also after an error: ``trainer.iter == trainer.max_iter`` means success."""

    def before_step(self) -> None:
        """Before each iteration."""

    def after_backward(self) -> None:
        """After gradients are computed, and before the optimizer uses them."""

    def after_step(self) -> None:
        """After each iteration; ``trainer.iter`` is its number."""

    def state_dict(self) -> dict[str, Any]:
        """State that the hook must keep across a restart."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""


class TrainerBase:
    """Runs iterations and hooks; a subclass defines an iteration in :meth:`run_step`.

    Attributes:
        iter: the current iteration; after a complete training, ``max_iter``.
        start_iter, max_iter: this training runs the iterations ``start_iter`` to ``max_iter - 1``.
        storage: the active :class:`EventStorage`, during training.
    """

    def __init__(self) -> None:
        self.iter = self.start_iter = self.max_iter = 0
        self.storage: EventStorage = None
        self._hooks: list[HookBase] = []

    def register_hooks(self, hooks: Iterable[HookBase | None]) -> None:
        """Add hooks, which run in the order of registration; ``None`` entries are ignored."""
        added = [hook for hook in hooks if hook is not None]
        for hook in added:
            if not isinstance(hook, HookBase):
                raise TypeError(f"a hook must be a HookBase, found {type(hook).__name__}")
            # A strong reference would keep an unused trainer and its model in memory until the garbage collector
            # looks for cycles.
            hook.trainer = weakref.proxy(self)
        self._hooks += added

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run iterations ``start_iter`` to ``max_iter - 1``. :meth:`after_train` runs even after an error."""
        self.iter, self.start_iter, self.max_iter = start_iter, start_iter, max_iter
        logger.info("Training: iterations %d to %d", start_iter, max_iter - 1)
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                self.iter = max(start_iter, max_iter)
            except Exception:
                logger.exception("Training stopped at iteration %d by an error:", self.iter)
                raise
            finally:
                self.after_train()

    def run_step(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define run_step, which runs one iteration")

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
        """Hooks by class name; the second hook of a class is `Name#2`, so that each keeps its own state."""
        seen = Counter()
        for hook in self._hooks:
            name = type(hook).__qualname__
            seen[name] += 1
            yield (name if seen[name] == 1 else f"{name}#{seen[name]}"), hook

    def state_dict(self) -> dict[str, Any]:
        """``iteration`` (the last one begun) and, if any hook has a state, ``hooks``."""
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
                logger.warning("the checkpoint holds state of the hook %s, which this trainer does not have", name)
