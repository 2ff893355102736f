import gc
import itertools
import weakref

import pytest
import torch
from torch import nn

from retinanet_ext.lite.engine import AMPTrainer, HookBase, SimpleTrainer, TrainerBase


class _Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return {"loss_a": (self.weight * x).sum(), "loss_b": 2 * self.weight[0]}


def _trainer(batches, cls=SimpleTrainer, **kwargs):
    model = _Linear()
    return cls(model, batches, torch.optim.SGD(model.parameters(), lr=0.5), **kwargs)


def test_a_step_subtracts_the_gradient_and_writes_the_losses():
    trainer = _trainer([torch.tensor([3.0, 4.0])])
    trainer.train(0, 1)
    # d(3a + 4b + 2a) = (5, 4), times 0.5.
    assert trainer.model.weight.tolist() == [-1.5, -1.0]
    latest = {name: value for name, (value, _) in trainer.storage.latest().items()}
    assert (latest["loss_a"], latest["loss_b"], latest["total_loss"]) == (7.0, 2.0, 9.0)
    assert latest["data_time"] >= 0


class _Count(HookBase):
    def __init__(self):
        self.calls = []

    def after_step(self):
        self.calls.append(self.trainer.iter)

    def after_train(self):
        self.calls.append(("end", self.trainer.iter, self.trainer.max_iter))


def test_success_is_iter_equal_to_max_iter():
    trainer, hook = _trainer([torch.ones(2)] * 5), _Count()
    trainer.register_hooks([None, hook])
    trainer.train(3, 5)
    assert hook.calls == [3, 4, ("end", 5, 5)]


def test_hooks_close_down_after_an_error():
    class Fails(HookBase):
        def before_step(self):
            if self.trainer.iter == 1:
                raise KeyError("broken")

    trainer, hook = _trainer([torch.ones(2)] * 5), _Count()
    trainer.register_hooks([Fails(), hook])
    with pytest.raises(KeyError, match="broken"):
        trainer.train(0, 5)
    assert hook.calls == [0, ("end", 1, 5)]


def test_a_finished_training_does_nothing_more():
    trainer, hook = _trainer([]), _Count()
    trainer.register_hooks([hook])
    trainer.train(5, 5)
    assert hook.calls == [("end", 5, 5)]


def test_only_hooks_are_registered():
    with pytest.raises(TypeError, match="HookBase.*function"):
        TrainerBase().register_hooks([lambda: None])


def test_a_trainer_is_freed_without_the_garbage_collector():
    trainer = _trainer([torch.ones(2)])
    trainer.register_hooks([_Count()])
    gone = weakref.ref(trainer)
    gc.disable()
    try:
        del trainer
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(bad):
    trainer = _trainer([torch.ones(2), torch.full((2,), bad)])
    with pytest.raises(FloatingPointError, match=r"iteration 1; loss_a = nan, loss_b = -1\."):
        trainer.train(0, 2)
    # The first step was taken: (1, 1) - 0.5 (3, 1) = (-0.5, 0.5). With infinity the sum is inf - inf, NaN.
    assert trainer.model.weight.tolist() == [-0.5, 0.5]


def test_a_scalar_is_a_total_loss():
    model = nn.Linear(1, 1)

    class One(nn.Module):
        def forward(self, x):
            return model(x).sum()

    trainer = SimpleTrainer(One(), [torch.ones(1)], torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.train(0, 1)
    assert set(trainer.storage.latest()) == {"total_loss", "data_time", "rank_data_time"}


def test_a_loader_that_ends_is_named():
    with pytest.raises(RuntimeError, match="loader ended before iteration 2"):
        _trainer([torch.ones(2)] * 2).train(0, 3)


class _DrawsAtStart:
    """As torch's DataLoader, which draws a seed for its workers whenever it starts."""

    def __iter__(self):
        torch.rand(7)
        return itertools.repeat(torch.ones(2))


def test_starting_the_loader_leaves_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    _trainer(_DrawsAtStart()).train(0, 1)
    assert torch.equal(torch.rand(1), expected)


class _Remembers(HookBase):
    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state_dict):
        self.value = state_dict["value"]


def test_every_hook_of_a_class_keeps_its_own_state(caplog):
    old, new = TrainerBase(), TrainerBase()
    old.register_hooks([_Remembers(1), HookBase(), _Remembers(2)])
    restored = [_Remembers(0), _Remembers(0)]
    new.register_hooks(restored)
    new.load_state_dict(old.state_dict())
    assert [hook.value for hook in restored] == [1, 2]
    TrainerBase().load_state_dict(old.state_dict())
    assert "_Remembers" in caplog.text


def test_mixed_precision_on_a_cpu_is_bfloat16_without_a_scaler():
    seen = []

    class Matmul(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            seen.append(y.dtype)
            return {"loss": y.float().sum()}

    model = Matmul(2, 2)
    trainer = AMPTrainer(model, [torch.ones(1, 2)], torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.train(0, 1)
    assert seen == [torch.bfloat16]
    assert model.weight.dtype == torch.float32
    assert not trainer.grad_scaler.is_enabled()
    trainer.load_state_dict(trainer.state_dict())


def test_half_precision_needs_cuda():
    with pytest.raises(ValueError, match="fp16.*cpu.*bfloat16"):
        _trainer([], AMPTrainer, precision=torch.float16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_half_precision_recovers_from_an_overflowing_scale():
    model = nn.Linear(2, 1).cuda()

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return {"loss": self.inner(x).float().sum()}

    trainer = AMPTrainer(Loss(), [torch.ones(1, 2).cuda()] * 40, torch.optim.SGD(model.parameters(), lr=0.1))
    before = model.weight.clone()
    assert trainer.precision == torch.float16
    trainer.train(0, 40)
    assert trainer.grad_scaler.get_scale() > 0
    assert not torch.equal(model.weight, before)
