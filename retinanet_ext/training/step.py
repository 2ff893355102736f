"""One training step, the same on both engines: micro-batches, mixed precision, refusal of non-finite losses, metrics.

This file imports no engine: `lite`'s own trainer runs this step, and so does this package's trainer on Detectron2.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from retinanet_ext.machine.cpu import computes_in_bfloat16
from retinanet_ext.machine.processes import bare_model

from . import stops
from .incidents.nonfinite_losses import NonFiniteStep, raise_nonfinite
from .incidents.state_before_step import StateBeforeStep


def mixed_precision(cfg: Any) -> torch.dtype | None:
    """The type that ``SOLVER.AMP`` asks for; None for float32 everywhere.

    It is None if ``SOLVER.AMP`` is not enabled, and if it names no type on a CPU without instructions for bfloat16.

    Raises:
        ValueError: float16 on another device than CUDA.
    """
    amp, device = cfg.SOLVER.AMP, torch.device(cfg.MODEL.DEVICE).type
    if not amp.ENABLED:
        return None
    # A config without this package's keys has no DTYPE.
    name = amp.get("DTYPE", "")
    if not name and device == "cpu" and not computes_in_bfloat16():
        return None
    name = name or ("float16" if device == "cuda" else "bfloat16")
    if name == "float16" and device != "cuda":
        raise ValueError(
            f"SOLVER.AMP.DTYPE is 'float16', which trains on CUDA only, and MODEL.DEVICE is {cfg.MODEL.DEVICE!r}; set "
            "`SOLVER.AMP.DTYPE bfloat16`"
        )
    return getattr(torch, name)


class TrainStep:
    """Forward, backward, optimizer step, over the micro-batches of a batch.

    It replaces the object that runs the steps in Detectron2's ``DefaultTrainer``. Its state has the same keys, so the
    checkpoints of either can be resumed. On CUDA this class makes the host wait for the device once per step: for the
    losses and the norms of the gradients, at the end of the backward pass (with float16 once more, for the gradient
    scaler). The model may wait
    too: RetinaNet waits for the numbers of foreground anchors, and some of its parts wait more often.

    Attributes:
        on_nonfinite: called with a :class:`NonFiniteStep` in place of the update, in all processes together, if a loss
            or a gradient is not finite. It raises; or it returns, and this step leaves the weights as they are.
        history: iteration, total loss (mean over the processes), norm of all gradients and learning rate of the last
            steps, oldest first.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict]],
        optimizer: torch.optim.Optimizer,
        *,
        storage: Callable[[], Any],
        precision: torch.dtype | None = None,
        accumulate: int = 1,
        after_backward: Callable[[], None] = lambda: None,
    ):
        """
        Args:
            model: takes a batch and returns a dict of scalar losses, or one scalar. It may be wrapped in
                ``DistributedDataParallel``. Put into training mode here.
            data_loader: yields batches without end. Its iterator is made at the first step.
            optimizer: over the parameters of ``model``.
            storage: returns the ``EventStorage`` that metrics go to: the engine's ``get_event_storage``.
            precision: type of the forward pass, ``torch.float16`` or ``torch.bfloat16``; None: float32.
            accumulate: number of micro-batches that each batch is split into. The step equals that of the whole batch:
                the model's ``as_one_batch`` makes the losses of the micro-batches add up to those of the batch (losses
                of RoIs to a mean over the micro-batches; see ``as_one_batch`` of ``MaskRCNN`` and
                ``InstanceRetinaNet``). Only batch norms compute their statistics from one micro-batch at a time, and
                images of different sizes are padded to the common size of their micro-batch. In a job of several
                processes ``as_one_batch`` is also called for a batch that fits into one micro-batch, and for one
                without images.
            after_backward: called after the gradients are computed and before the optimizer uses them.

        Raises:
            ValueError: ``accumulate`` is above 1, and the model has no ``as_one_batch``.
        """
        self.iter = 0
        # Why to stop after this step: the same in all processes, because it travels with the losses.
        self.stop_reason: str | None = None
        # Whether the loader of any process has news (`has_news`), which travels with the losses too.
        self.loader_has_news = False
        self._storage, self._after_backward = storage, after_backward
        self._precision, self._accumulate = precision, accumulate
        self.model, self.data_loader, self.optimizer = model, data_loader, optimizer
        # Small gradients vanish in float16, so the loss is scaled; bfloat16 has the range of float32.
        self.grad_scaler = torch.amp.GradScaler(self._device.type, enabled=precision == torch.float16)
        self.on_nonfinite: Callable[[NonFiniteStep], None] = raise_nonfinite
        self.history: deque[tuple[int, float, float, float]] = deque(maxlen=50)

    @property
    def model(self) -> nn.Module:
        """The model of the next step. A new one is put into training mode."""
        return self._model

    @model.setter
    def model(self, model: nn.Module) -> None:
        bare = bare_model(model)
        if self._accumulate > 1 and not hasattr(bare, "as_one_batch"):
            raise ValueError(_no_micro_batches(bare, self._accumulate))
        model.train()
        self._model = model
        self._device = next(model.parameters()).device
        self._as_one_batch = bare.as_one_batch if self._accumulate > 1 else None
        self._before = StateBeforeStep(bare, self._device)

    @property
    def data_loader(self) -> Iterable[list[dict]]:
        """The loader of the next step. A new one starts from its beginning."""
        return self._data_loader

    @data_loader.setter
    def data_loader(self, data_loader: Iterable[list[dict]]) -> None:
        self._data_loader = data_loader
        self._iterator: Iterator[list[dict]] | None = None

    @classmethod
    def from_config(cls, cfg: Any, *args: Any, **kwargs: Any) -> "TrainStep":
        """Take precision and micro-batches from ``SOLVER.AMP`` and ``SOLVER.ACCUMULATE``; other arguments as above."""
        accumulate = cfg.SOLVER.get("ACCUMULATE", 1)
        return cls(*args, precision=mixed_precision(cfg), accumulate=accumulate, **kwargs)

    def run_step(self) -> None:
        """One step on the loader's next batch.

        Raises:
            FloatingPointError: a loss of any process or a gradient is not finite, and `on_nonfinite` is the default.
                All processes raise, before the weights change.
            RuntimeError: the loader ended, or the model is in evaluation mode.
        """
        if not self.model.training:
            raise RuntimeError("the model is in evaluation mode; call model.train() after whatever switched it")
        start = time.perf_counter()
        batch = self._next_batch()
        data_time = time.perf_counter() - start
        # Clear the gradients before the forward pass, so that they do not take memory beside its activations.
        self.optimizer.zero_grad()
        self._before.record()
        micro_batches = self._split(batch)
        losses = self._backward(micro_batches, data_time)
        # Hooks, and gradient clipping inside the step of a fused optimizer, must see unscaled gradients.
        self.grad_scaler.unscale_(self.optimizer)
        self._after_backward()
        # The one wait for the device: behind the norms, the losses have arrived too.
        norms = _GradientNorms(self.optimizer).read()
        losses_by_rank, data_times = losses.read()
        self.stop_reason, self.loader_has_news = losses.stop_reason, losses.loader_has_news
        all_finite = all(math.isfinite(loss) for losses in losses_by_rank for loss in losses.values())
        if all_finite and (math.isfinite(sum(norms)) or not self._has_nonfinite_gradient()):
            # The device gets its next work before the host writes.
            self.grad_scaler.step(self.optimizer)
        else:
            self.on_nonfinite(NonFiniteStep(self, batch, micro_batches, losses_by_rank, norms, self._before))
            self.optimizer.zero_grad()
        self.grad_scaler.update()
        if all_finite:
            self._remember(losses_by_rank, norms)
            self._write_metrics(losses_by_rank, data_times)

    def _has_nonfinite_gradient(self) -> bool:
        """Whether a norm that is not finite is a fault. All processes agree, because they have exchanged gradients."""
        if self.grad_scaler.is_enabled() and self.grad_scaler.get_scale() > 1:
            return False  # normal in float16: the scaler leaves the step out and lowers its scale
        # The norm of finite numbers can be infinite.
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        return not all(gradient.isfinite().all() for gradient in gradients)

    def _remember(self, losses_by_rank: list[dict[str, float]], norms: list[float]) -> None:
        total = sum(sum(losses.values()) for losses in losses_by_rank) / len(losses_by_rank)
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        self.history.append((self.iter, total, math.hypot(*norms), lr))

    def _next_batch(self) -> list[dict]:
        if self._iterator is None:
            # A loader draws a random seed when it starts, and a resumed run starts it once more than an unbroken run.
            # The random numbers that training itself draws must not depend on that.
            with torch.random.fork_rng(devices=[]):
                self._iterator = iter(self.data_loader)
        try:
            return next(self._iterator)
        except StopIteration:
            raise RuntimeError(
                f"the data loader ended at iteration {self.iter}; a loader for training must not end"
            ) from None

    def _split(self, batch: list[dict]) -> list[list[dict]]:
        if self._accumulate == 1:
            return [batch]
        size = max(1, -(-len(batch) // self._accumulate))
        return [batch[start : start + size] for start in range(0, len(batch), size)] or [batch]

    def _backward(self, micro_batches: list[list[dict]], data_time: float) -> "_AsyncLosses":
        """Leave the gradients of the whole batch in the parameters, and return its losses."""
        totals: dict[str, torch.Tensor] = {}
        # Also for a single micro-batch: processes may have different numbers of them, and all must exchange the
        # normaliser and what the model itself exchanges in the same order.
        with self._as_one_batch(micro_batches) if self._as_one_batch else nullcontext():
            for micro_batch in micro_batches[:-1]:
                with self._without_exchange():
                    self.grad_scaler.scale(self._forward(micro_batch, totals)).backward()
            loss = self._forward(micro_batches[-1], totals)
        # The copy to the host starts before the backward pass, so that reading the losses does not wait for its end.
        has_news = getattr(self.data_loader, "has_news", bool)()
        losses = _AsyncLosses(totals, (data_time, stops.code_of(stops.stop_wanted()), float(has_news)))
        self.grad_scaler.scale(loss).backward()
        return losses

    def _forward(self, micro_batch: list[dict], totals: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the sum of the losses, a scalar, and add each loss to its entry in `totals`, in float32."""
        with torch.autocast(self._device.type, dtype=self._precision, enabled=self._precision is not None):
            losses = self.model(micro_batch)
        if isinstance(losses, torch.Tensor):
            losses = {"total_loss": losses}
        for name, loss in losses.items():
            value = loss.detach().float()
            totals[name] = totals[name] + value if name in totals else value
        return sum(losses.values())

    def _without_exchange(self):
        """Keep gradients in this process; the last micro-batch's backward pass exchanges the sum of all."""
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else nullcontext()

    def _write_metrics(self, losses_by_rank: list[dict[str, float]], data_times: list[float]) -> None:
        names, processes = losses_by_rank[0], len(losses_by_rank)
        means = {name: sum(losses[name] for losses in losses_by_rank) / processes for name in names}
        parts = means if len(means) > 1 else {}
        self._storage().put_scalars(
            rank_data_time=data_times[0], data_time=max(data_times), total_loss=sum(means.values()), **parts
        )

    def state_dict(self) -> dict[str, Any]:
        """``iteration``, ``optimizer`` and, in mixed precision, ``grad_scaler``."""
        state = {"iteration": self.iter, "optimizer": self.optimizer.state_dict()}
        return state if self._precision is None else {**state, "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the result of :meth:`state_dict` of this class or of one of Detectron2's own trainers."""
        self.iter = state_dict["iteration"]
        self.optimizer.load_state_dict(state_dict["optimizer"])
        # The scaler's state is empty after bfloat16 and absent after float32; then the scale starts anew.
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _no_micro_batches(model: nn.Module, accumulate: int) -> str:
    found = f"SOLVER.ACCUMULATE is {accumulate}, but {type(model).__name__} has no `as_one_batch`"
    reason = getattr(model, "needs_whole_batch", "")
    if reason:
        return (
            f"{found}: {reason}, and micro-batches would hide most of them. Set SOLVER.ACCUMULATE 1. If the batch does "
            "not fit into memory, use SOLVER.AMP.ENABLED True, more processes or a smaller SOLVER.IMS_PER_BATCH."
        )
    return (
        f"{found}: it would normalise the losses of each micro-batch by itself, and they would not add up to those of "
        "the batch. Use FocalRetinaNet, InstanceRetinaNet or MaskRCNN, or SOLVER.ACCUMULATE 1."
    )


class _AsyncLosses:
    """Losses of all processes, copied from the device to the host without waiting for the device."""

    stop_reason: str | None = None
    loader_has_news = False

    def __init__(self, losses: Mapping[str, torch.Tensor], others: tuple[float, float, float]):
        """Start the copy. All processes pass the same names of losses; each loss is a scalar.

        Args:
            losses: by name.
            others: data time in seconds, code of a reason to stop, whether the loader has news.
        """
        self._names = list(losses)
        # `new_full` launches a kernel; making a tensor from a Python number would copy and wait for the device.
        first = next(iter(losses.values()))
        values = torch.stack([*losses.values(), *(first.new_full((), number) for number in others)])
        rows = [values]
        if dist.is_available() and dist.is_initialized():
            rows = [torch.empty_like(values) for _ in range(dist.get_world_size())]
            dist.all_gather(rows, values)
        self._rows = torch.stack(rows).to("cpu", non_blocking=True)
        self._arrived = torch.cuda.current_stream(values.device).record_event() if values.is_cuda else None

    def read(self) -> tuple[list[dict[str, float]], list[float]]:
        """Wait for the copy. Returns losses by name and data time in seconds, both by rank, and sets the attributes."""
        if self._arrived is not None:
            self._arrived.synchronize()
        rows = self._rows.tolist()
        # With several reasons at once, all processes take the one with the highest number.
        self.stop_reason = stops.reason_of(max(row[-2] for row in rows))
        self.loader_has_news = any(row[-1] for row in rows)
        return [dict(zip(self._names, losses)) for *losses, _, _, _ in rows], [row[-3] for row in rows]


class _GradientNorms:
    """L2 norm of each gradient of an optimizer, copied from the device to the host without waiting for the device.

    After the exchange of ``DistributedDataParallel`` gradients are equal in all processes, so these are too.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients)) if gradients else torch.zeros(0)
        self._has_gradient = [parameter.grad is not None for parameter in parameters]
        self._norms = norms.float().to("cpu", non_blocking=True)
        self._arrived = torch.cuda.current_stream(norms.device).record_event() if norms.is_cuda else None

    def read(self) -> list[float]:
        """Wait for the copy. Returns the norms in the order of the optimizer's parameters; 0 without a gradient."""
        if self._arrived is not None:
            self._arrived.synchronize()
        norms = iter(self._norms.tolist())
        return [next(norms) if has else 0.0 for has in self._has_gradient]
