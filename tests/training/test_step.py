"""The step that both engines train with: arithmetic, order, precision, guard, state."""

import itertools

import pytest
import torch
from torch import nn

from retinanet_ext import d2
from retinanet_ext.training.step import TrainStep, mixed_precision
from retinanet_ext.training.trainer import Trainer
from tests.builders import batch, free_port, shapes_config, small_config
from tests.two_processes import run_two


class Linear(nn.Module):
    """Losses ``w . x`` and ``2 w_0`` of inputs ``[{"x": (2,)}]``; records the dtype of a matrix product."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, inputs):
        x = inputs[0]["x"].to(self.weight.device)
        self.product_dtype = (self.weight[None] @ x[:, None]).dtype
        return {"loss_a": (self.weight * x).sum(), "loss_b": 2 * self.weight[0]}


def make_step(*rows: list[float], device="cpu", **kwargs) -> TrainStep:
    model = Linear().to(device)
    batches = [[{"x": torch.tensor(row), "file_name": f"{index}.png"}] for index, row in enumerate(rows)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return TrainStep(model, batches, optimizer, storage=d2.get_event_storage, **kwargs)


def test_a_step_subtracts_the_gradient_and_writes_the_losses(device):
    seen = []
    step = make_step([3.0, 4.0], device=device, after_backward=lambda: seen.append(step.model.weight.tolist()))
    with d2.EventStorage(0) as storage:
        step.run_step()
    # d(3a + 4b + 2a) = (5, 4), times 0.5.
    assert step.model.weight.tolist() == [-1.5, -1.0]
    assert seen == [[1.0, 1.0]]  # the gradients were computed, and not used yet
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert (latest["loss_a"], latest["loss_b"], latest["total_loss"]) == (7.0, 2.0, 9.0)
    assert latest["data_time"] >= 0 and latest["rank_data_time"] >= 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(bad, device):
    step = make_step([1.0, 1.0], [bad, 1.0], device=device)
    with d2.EventStorage(0):
        step.run_step()  # (1, 1) - 0.5 (3, 1) = (-0.5, 0.5)
        with pytest.raises(
            FloatingPointError, match=r"loss_a = (nan|-inf) \(all: .*1.png. The weights are those before"
        ):
            step.run_step()
    assert step.model.weight.tolist() == [-0.5, 0.5]


def test_a_scalar_is_a_total_loss():
    class One(Linear):
        def forward(self, inputs):
            return super().forward(inputs)["loss_a"]

    model = One()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = TrainStep(model, [[{"x": torch.ones(2)}]], optimizer, storage=d2.get_event_storage)
    with d2.EventStorage(0) as storage:
        step.run_step()
    assert set(storage.latest()) == {"total_loss", "data_time", "rank_data_time"}


class DrawsAtStart:
    """Draws random numbers whenever it starts, like torch's DataLoader, which draws a seed for its workers."""

    def __iter__(self):
        torch.rand(7)
        return itertools.repeat([{"x": torch.ones(2)}])


def test_starting_the_loader_leaves_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    model = Linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with d2.EventStorage(0):
        TrainStep(model, DrawsAtStart(), optimizer, storage=d2.get_event_storage).run_step()
    assert torch.equal(torch.rand(1), expected)


def test_a_model_in_evaluation_mode_and_a_loader_that_ends_are_named():
    step = make_step()
    with pytest.raises(RuntimeError, match="loader ended at iteration 0"):
        step.run_step()
    step.model.eval()
    with pytest.raises(RuntimeError, match="evaluation mode"):
        step.run_step()


@pytest.mark.parametrize(
    ("opts", "expected"),
    [
        ([], None),
        (["SOLVER.AMP.DTYPE", "bfloat16"], None),
        (["SOLVER.AMP.ENABLED", "True"], torch.bfloat16),
        (["SOLVER.AMP.ENABLED", "True", "MODEL.DEVICE", "cuda:1"], torch.float16),
        (["SOLVER.AMP.ENABLED", "True", "MODEL.DEVICE", "cuda", "SOLVER.AMP.DTYPE", "bfloat16"], torch.bfloat16),
    ],
)
def test_the_type_of_mixed_precision(opts, expected, monkeypatch):
    monkeypatch.setattr("retinanet_ext.training.step.computes_in_bfloat16", lambda: True)
    assert mixed_precision(small_config(*opts)) == expected


def test_a_processor_without_bfloat16_trains_in_float32_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr("retinanet_ext.training.step.computes_in_bfloat16", lambda: False)
    assert mixed_precision(small_config("SOLVER.AMP.ENABLED", "True")) is None
    explicit = small_config("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16")
    assert mixed_precision(explicit) == torch.bfloat16
    on_cuda = small_config("SOLVER.AMP.ENABLED", "True", "MODEL.DEVICE", "cuda")
    assert mixed_precision(on_cuda) == torch.float16


def test_half_precision_on_a_cpu_is_refused_before_anything_is_built(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(d2.DefaultTrainer, "__init__", lambda *_: pytest.fail("the engine built a trainer"))
    cfg = shapes_config(shapes, tmp_path, "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "float16")
    with pytest.raises(ValueError, match="SOLVER.AMP.DTYPE is 'float16', .* CUDA only.*`SOLVER.AMP.DTYPE bfloat16`"):
        Trainer(cfg)


@pytest.mark.filterwarnings("error:.*GradScaler.*")
def test_mixed_precision_trains_and_resumes_on_either_engine(shapes, tmp_path):
    opts = ["SOLVER.AMP.ENABLED", "True", "DATASETS.TEST", "()"]
    trainer = Trainer(shapes_config(shapes, tmp_path, "SOLVER.MAX_ITER", "2", *opts))
    seen = {}
    trainer.model.backbone.register_forward_hook(lambda m, args, maps: seen.update(maps=maps["p3"].dtype))
    trainer.model.cls_loss.register_forward_hook(lambda m, args, loss: seen.update(cls=loss.dtype))
    trainer.model.box_loss.register_forward_hook(lambda m, args, loss: seen.update(box=loss.dtype))
    trainer.train()
    assert seen == {"maps": torch.bfloat16, "cls": torch.float32, "box": torch.float32}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}

    resumed = Trainer(shapes_config(shapes, tmp_path, "SOLVER.MAX_ITER", "3", *opts))
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 2
    for group, expected in zip(resumed.optimizer.state.values(), trainer.optimizer.state.values()):
        assert torch.equal(group["momentum_buffer"], expected["momentum_buffer"])
    resumed.train()
    assert resumed.iter == 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_half_precision_scales_gradients_and_keeps_the_scale_over_a_restart():
    step = make_step(*[[3.0, 4.0]] * 2, device="cuda", precision=torch.float16)
    with d2.EventStorage(0):
        step.run_step()
    assert step.model.weight.tolist() == [-1.5, -1.0]  # the scale is undone
    assert step.model.product_dtype == torch.float16
    step.grad_scaler.update(8.0)
    restored = make_step(device="cuda", precision=torch.float16)
    restored.load_state_dict(step.state_dict())
    assert restored.grad_scaler.get_scale() == 8.0
    step.load_state_dict(make_step(device="cuda").state_dict())  # after float32 the scale starts anew


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_nothing_waits_for_the_device_before_the_backward_pass():
    step = make_step([3.0, 4.0], device="cuda")
    batch_on_gpu = [{"x": torch.ones(2, device="cuda"), "file_name": "0.png"}]
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses = step._backward([batch_on_gpu], data_time=0.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert losses.read() == ([{"loss_a": 2.0, "loss_b": 2.0}], [0.0])


def test_gradient_checkpointing_of_another_architecture_is_refused():
    @d2.META_ARCH_REGISTRY.register()
    class Plain(nn.Module):
        def __init__(self, cfg):
            super().__init__()

    try:
        with pytest.raises(ValueError, match="MODEL.GRADIENT_CHECKPOINTING is True, which .* Plain does not support"):
            Trainer.build_model(
                small_config("MODEL.META_ARCHITECTURE", "Plain", "MODEL.GRADIENT_CHECKPOINTING", "True")
            )
    finally:
        d2.META_ARCH_REGISTRY._obj_map.pop("Plain")


def test_all_processes_stop_at_a_loss_of_one(tmp_path):
    run_two("tests.training.train_step_worker", free_port(), tmp_path)
    reports = [torch.load(tmp_path / f"{rank}.pth") for rank in range(2)]
    for report in reports:
        # First step: gradients (3 + 2, 4) and (5 + 2, 6), on average (6, 5), times 0.5.
        assert report["weight"] == [-2.0, -1.5]
        assert "rank 1: loss_a = nan" in report["error"] and "rank1_1.png" in report["error"]
        assert "rank 0" not in report["error"] and "rank0" not in report["error"]
    # Losses of both, averaged: (7 + 11) / 2 and 2.
    assert reports[0]["metrics"] == {"loss_a": 9.0, "loss_b": 2.0, "total_loss": 11.0}


def test_one_batch_in_bfloat16_is_close_to_float32(generator, device):
    def losses(precision):
        torch.manual_seed(0)
        model = d2.build_model(small_config("MODEL.DEVICE", str(device)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        step = TrainStep(model, [inputs], optimizer, storage=d2.get_event_storage, precision=precision)
        with d2.EventStorage(0) as storage:
            step.run_step()
        return torch.tensor([storage.latest()[name][0] for name in ("loss_cls", "loss_box_reg")])

    inputs = batch(generator, (96, 96), (96, 96))
    expected, found = losses(None), losses(torch.bfloat16)
    assert not torch.equal(found, expected)  # bfloat16 was really used
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)
