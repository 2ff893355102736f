"""A NaN at a chosen step: what the run says, saves and does, and what the saved files give when computed again."""

import json
import pickle

import pytest
import torch
from torch import nn

from retinanet_ext import d2
from retinanet_ext.cli.main import main
from retinanet_ext.training.incidents import rollback
from retinanet_ext.training.incidents.diagnosis import StepAgain
from retinanet_ext.training.step import TrainStep
from retinanet_ext.training.trainer import Trainer
from tests.builders import batch, free_port, shapes_config, small_config
from tests.training.test_step import Linear
from tests.two_processes import run_two


class NanAtSomeIterations:
    """A loader whose batches at the given iterations have NaN in their first image. Each is spoilt once."""

    def __init__(self, loader, trainer, iterations):
        self.loader, self.trainer, self.left = loader, trainer, list(iterations)

    def __iter__(self):
        for inputs in self.loader:
            if self.trainer.iter in self.left:
                self.left.remove(self.trainer.iter)
                inputs[0]["image"] = inputs[0]["image"].float()
                inputs[0]["image"][0, 3:5, 4] = torch.nan
            yield inputs


def put_nan_into(trainer, iterations) -> None:
    trainer._trainer.data_loader = NanAtSomeIterations(trainer.data_loader, trainer, iterations)


def make_trainer(shapes, folder, *opts) -> Trainer:
    torch.manual_seed(0)
    return Trainer(shapes_config(shapes, folder, "DATASETS.TEST", "()", "SEED", "0", *opts))


def weights_of(trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def first_hook(trainer, after_step) -> None:
    """Call a function after each step, before the hook that changes the learning rate."""
    trainer.register_hooks([d2.hooks.CallbackHook(after_step=after_step)])
    trainer._hooks.insert(0, trainer._hooks.pop())


def assert_same(actual, expected) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


# What the files of an incident say, and what they give.


@pytest.fixture(scope="module")
def stopped(shapes, tmp_path_factory):
    """A run that got an image with 2 NaN at iteration 1 and stopped: its folder, the error and the weights."""
    folder = tmp_path_factory.mktemp("stopped")
    trainer = make_trainer(shapes, folder, "SOLVER.CHECKPOINT_PERIOD", "1")
    before = {}
    trainer.register_hooks([d2.hooks.CallbackHook(after_step=lambda t: before.update(weights_of(t)))])
    put_nan_into(trainer, iterations=(1,))
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    return folder, str(error.value), before, weights_of(trainer)


def test_the_error_names_losses_module_image_and_command(stopped):
    folder, text, _, _ = stopped
    incident = folder / "incidents" / "iter_0000001"
    assert "loss_cls = nan" in text and "iteration 1, learning rate 0.0" in text
    assert "first output that is not finite: backbone (FPN)" in text
    assert "the batch itself is not finite" in text and "levels with values that are not finite: p3, p4, p5" in text
    first_cause = text.split("by evidence (0 to 1):\n")[1].splitlines()[0]
    assert "1.00 an image is not finite: 2 of " in first_cause and ".jpg are not finite" in first_cause
    assert f"retinanet-ext replay {incident}" in text


def test_weights_and_statistics_are_those_before_the_step_and_none_are_saved_after_it(stopped):
    folder, _, before, after = stopped
    assert_same(after, before)  # batch norm's statistics too, which the forward pass had filled with NaN
    assert sorted(path.name for path in folder.glob("*.pth")) == ["model_0000000.pth"]
    saved = torch.load(folder / "incidents" / "iter_0000001" / "weights.pth", weights_only=True)["model"]
    assert_same(saved, before)


def test_the_files_hold_batch_and_random_numbers_without_code(stopped):
    incident = stopped[0] / "incidents" / "iter_0000001"
    facts = json.loads((incident / "incident.json").read_text())
    assert facts["losses_by_rank"][0]["loss_cls"] == "nan" and facts["gradient_norms"]["total"] == "nan"
    assert [row["iteration"] for row in facts["history"]] == [0] and facts["history"][0]["gradient_norm"] > 0
    saved = torch.load(incident / "batch.pt", weights_only=True)
    images = [dict(image["value"]) for image in saved["micro_batches"][0]]
    assert images[0]["image"].isnan().sum() == 2 and images[0]["file_name"].endswith(".jpg")
    assert set(saved["random"]) == {"python", "numpy", "torch", "cuda"}
    # Of the model's state alone, whose names are the same on both engines.
    weights = torch.load(incident / "weights.pth", weights_only=True)["model"]
    assert "loss_normalizer.average" in saved["buffers"] and saved["buffers"].keys() <= weights.keys()
    assert dict(images[0]["instances"]["value"]["value"])["gt_boxes"]["kind"] == "Boxes"


def test_one_command_computes_the_step_again(stopped, capsys):
    incident = stopped[0] / "incidents" / "iter_0000001"
    assert main(["replay", str(incident)]) == 0
    printed = capsys.readouterr().out
    assert "loss_cls = nan" in printed and "the batch itself is not finite" in printed and "Reproduced" in printed


def test_a_batch_that_was_mended_is_not_reproduced(stopped, tmp_path, capsys):
    incident = stopped[0] / "incidents" / "iter_0000001"
    for path in incident.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    saved = torch.load(incident / "batch.pt", weights_only=True)
    image = dict(saved["micro_batches"][0][0]["value"])["image"]
    image.nan_to_num_(0.0)
    torch.save(saved, tmp_path / "batch.pt")
    assert main(["replay", str(tmp_path)]) == 1
    assert "Not reproduced. The run found:" in capsys.readouterr().out


class _RunsCode:
    def __reduce__(self):
        return print, ("code ran",)


@pytest.mark.parametrize("damage", ["missing", "json", "facts", "pickle", "cut", "weights"])
def test_bad_folders_are_named_and_run_no_code(stopped, tmp_path, capsys, damage):
    incident = stopped[0] / "incidents" / "iter_0000001"
    for path in incident.iterdir():
        if damage != "missing":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    if damage == "json":
        (tmp_path / "incident.json").write_text("{")
    elif damage == "facts":
        (tmp_path / "incident.json").write_text('{"iteration": 1, "ranks": 3, "step": {}}')
    elif damage == "pickle":
        (tmp_path / "batch.pt").write_bytes(pickle.dumps({"micro_batches": _RunsCode()}))
    elif damage == "cut":
        (tmp_path / "batch.pt").write_bytes((incident / "batch.pt").read_bytes()[:1000])
    elif damage == "weights":
        torch.save({"model": {"conv.weight": torch.ones(1)}}, tmp_path / "weights.pth")
    assert main(["replay", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert str(tmp_path) in captured.err and "code ran" not in captured.out + captured.err


# Which module, level and loss.


def examine(model, inputs, **kwargs):
    return StepAgain(model, [inputs], lambda: None).examine(**kwargs)


@pytest.mark.parametrize(("call", "level"), [(1, "p3"), (3, "p5"), (5, "p7")])
def test_the_level_of_the_pyramid_is_that_of_the_call(generator, call, level):
    model, calls = d2.build_model(small_config()), []

    def spoil(module, args, output):
        calls.append(1)
        return output + torch.inf if len(calls) == call else output

    model.head.bbox_pred.register_forward_hook(spoil)
    found = examine(model, batch(generator, (128, 128)), gradients=False)
    first = found["first_output"]
    assert (first["module"], first["call"], first["level"]) == ("head.bbox_pred", call, level)
    assert first["input_is_finite"] and first["weights_are_finite"]
    bad = [name for name, maps in found["levels"].items() if maps["deltas"]["infinite"]]
    assert bad == [level] and found["levels"][level]["logits"]["infinite"] == 0


def test_a_feature_map_has_its_level(generator):
    model = d2.build_model(small_config())
    with torch.no_grad():
        model.backbone.fpn_output4.bias[0] = torch.nan
    first = examine(model, batch(generator, (128, 128)), gradients=False)["first_output"]
    assert (first["module"], first["level"], first["weights_are_finite"]) == ("backbone.fpn_output4", "p4", False)


def test_a_value_that_a_module_makes_before_its_first_submodule_is_the_module_s_own(generator):
    model = d2.build_model(small_config())
    with torch.no_grad():
        model.backbone.bottom_up.res3[0].conv1.weight[0] = torch.inf  # a convolution with its norm as a submodule
    first = examine(model, batch(generator, (128, 128)), gradients=False)["first_output"]
    assert (first["module"], first["type"]) == ("backbone.bottom_up.res3.0.conv1", "Conv2d")
    assert first["before"] == "backbone.bottom_up.res3.0.conv1.norm" and not first["weights_are_finite"]


class _Poison(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.nan


class PoisonedGradient(nn.Module):
    """The identity, whose gradient is NaN in one of its calls."""

    def __init__(self, call):
        super().__init__()
        self.call, self.calls = call, 0

    def forward(self, x):
        self.calls += 1
        return _Poison.apply(x) if self.calls % 5 == self.call else x


def test_the_gradient_is_followed_to_its_module_level_and_loss(generator):
    model = d2.build_model(small_config())
    model.head.bbox_subnet.append(PoisonedGradient(call=2))
    found = examine(model, batch(generator, (128, 128)), gradients=True)
    assert found["first_output"] is None and all(map(torch.isfinite, map(torch.tensor, found["losses"].values())))
    first = found["first_gradient"]
    assert (first["module"], first["call"], first["level"]) == ("head.bbox_subnet.2", 2, "p4")
    assert found["gradient_of_loss"] == {"loss_cls": True, "loss_box_reg": False}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_update(shapes, tmp_path):
    trainer = make_trainer(shapes, tmp_path)
    before = weights_of(trainer)
    trainer.model.backbone.fpn_output3.weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(FloatingPointError, match="gradient is not finite: that of backbone.fpn_output3.weight, of "):
        trainer.train()
    assert_same(weights_of(trainer), before)
    facts = json.loads((tmp_path / "incidents" / "iter_0000000" / "incident.json").read_text())
    assert facts["kind"] == "gradient" and facts["ranks"][0]["first_gradient"]["module"] == "backbone.fpn_output3"


def test_with_float16_the_scaler_leaves_out_infinite_gradients_and_only_a_scale_of_one_is_a_fault():
    class Steep(Linear):
        def forward(self, inputs):
            return {"loss": self.weight[0] * 0 + self.weight[1] * 1e-3 + (self.weight * self.slope).sum() * 1e-3}

    model = Steep()
    model.slope = torch.tensor([3e38, 0.0])  # finite; times a scale of 65536 and 1e-3 it is not
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = TrainStep(
        model, [[{}]] * 40, optimizer, storage=d2.get_event_storage, precision=torch.float16
    )  # fmt: skip
    with d2.EventStorage(0):
        step.run_step()
        assert step.grad_scaler.get_scale() == 2.0**15
        for _ in range(8):
            step.run_step()
        model.slope = torch.tensor([torch.inf, 0.0])
        model.weight.register_hook(lambda gradient: gradient * torch.nan)
        model.slope = torch.tensor([1.0, 0.0])
        steps = 0
        with pytest.raises(FloatingPointError, match="gradient is not finite"):
            while True:
                step.run_step()
                steps += 1
    assert step.grad_scaler.get_scale() == 1.0 and steps > 3


# Policies.


def test_a_skipped_step_equals_a_run_without_that_batch():
    rows = [[3.0, 4.0], [float("nan"), 1.0], [1.0, 2.0], [0.5, 1.0]]

    def train(rows, **kwargs):
        model = Linear()
        batches = [[{"x": torch.tensor(row)}] for row in rows]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
        step = TrainStep(model, batches, optimizer, storage=d2.get_event_storage)
        step.on_nonfinite = kwargs.get("on_nonfinite", step.on_nonfinite)
        with d2.EventStorage(0):
            for _ in rows:
                step.run_step()
        return model.weight.tolist()

    seen = []
    assert train(rows, on_nonfinite=seen.append) == train([rows[0], *rows[2:]])
    assert len(seen) == 1


def test_skip_leaves_the_step_out_and_counts_it_over_a_resume(shapes, tmp_path):
    opts = ["SOLVER.NONFINITE.POLICY", "skip", "SOLVER.NONFINITE.BUDGET", "2", "SOLVER.CHECKPOINT_PERIOD", "4"]
    trainer = make_trainer(shapes, tmp_path, *opts, "SOLVER.MAX_ITER", "8")
    put_nan_into(trainer, iterations=(2,))
    states = []
    trainer.register_hooks([d2.hooks.CallbackHook(after_step=lambda t: states.append(weights_of(t)))])
    trainer.max_iter = 4
    trainer.train()
    assert_same(states[2], states[1])
    assert not torch.equal(states[3]["head.cls_score.weight"], states[2]["head.cls_score.weight"])
    assert all(value.isfinite().all() for value in states[3].values())

    resumed = make_trainer(shapes, tmp_path, *opts, "SOLVER.MAX_ITER", "8")
    resumed.resume_or_load(resume=True)
    put_nan_into(resumed, iterations=(5, 6))
    with pytest.raises(FloatingPointError, match="SOLVER.NONFINITE.BUDGET 2 is used up"):
        resumed.train()
    assert resumed.iter == 6
    folders = sorted(path.name for path in (tmp_path / "incidents").iterdir())
    assert folders == ["iter_0000002", "iter_0000005", "iter_0000006"]


def test_weights_that_are_not_finite_are_not_skipped_over(shapes, tmp_path):
    trainer = make_trainer(shapes, tmp_path, "SOLVER.NONFINITE.POLICY", "skip")
    with torch.no_grad():
        trainer.model.head.cls_score.weight[0] = torch.inf
    with pytest.raises(FloatingPointError, match="the weights are not finite: 144 numbers in 1 tensors(.|\n)*leaving"):
        trainer.train()


def test_rollback_loads_the_checkpoint_lowers_the_rate_and_goes_on(shapes, tmp_path, monkeypatch):
    opts = ["SOLVER.NONFINITE.POLICY", "rollback", "SOLVER.NONFINITE.LR_FACTOR", "0.25"]
    opts += ["SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.STEPS", "()"]
    # Left by another run: newer by its number, and not of this one.
    (tmp_path / "model_0000004.pth").write_bytes(b"damaged")
    trainer = make_trainer(shapes, tmp_path, *opts, "SOLVER.MAX_ITER", "8")
    put_nan_into(trainer, iterations=(4,))
    loaded, expected, iterations = {}, {}, []
    save = rollback.RunRollback.save

    def compare(self, trainer, reached):
        loaded.update(weights_of(trainer), reached=reached)
        expected.update(torch.load(tmp_path / "model_0000003.pth", weights_only=True)["model"], reached=3)
        save(self, trainer, reached)

    monkeypatch.setattr(rollback.RunRollback, "save", compare)
    rates = []
    note = lambda t: (iterations.append(t.iter), rates.append(t.optimizer.param_groups[0]["lr"]))  # noqa: E731
    first_hook(trainer, note)
    trainer.train()
    assert loaded.pop("reached") == expected.pop("reached") == 3
    assert_same(loaded, expected)
    assert iterations == [0, 1, 2, 3, 4, 5, 6, 7] and rates == [0.02] * 4 + [0.005] * 4
    assert trainer.iter == 8 and (tmp_path / "last_checkpoint").read_text() == "model_final.pth"

    resumed = make_trainer(shapes, tmp_path, *opts, "SOLVER.MAX_ITER", "9")
    resumed.resume_or_load(resume=True)
    assert resumed.optimizer.param_groups[0]["lr"] == 0.005 and resumed.scheduler.base_lrs[0] == 0.005
    resumed.train()
    guard = next(hook for hook in resumed._hooks if type(hook).__name__ == "NonFiniteGuard")
    assert guard.rollbacks == 1


def test_rollback_before_the_first_checkpoint_goes_to_the_start_and_repeats_the_iterations(shapes, tmp_path):
    opts = ["SOLVER.NONFINITE.POLICY", "rollback", "SOLVER.CHECKPOINT_PERIOD", "100", "SOLVER.MAX_ITER", "5"]
    trainer = make_trainer(shapes, tmp_path, *opts)
    start = weights_of(trainer)
    put_nan_into(trainer, iterations=(2, 3))
    seen = []

    def note(trainer):
        seen.append((trainer.iter, trainer.storage.iter))

    first_hook(trainer, note)
    trainer.train()
    # Two iterations, back; three iterations, back again, at a quarter of the rate; then all five.
    assert seen == [(i, i) for i in [0, 1, 0, 1, 2, 0, 1, 2, 3, 4]]
    saved = torch.load(tmp_path / "incidents" / "start.pth", weights_only=True)["model"]
    assert_same(saved, start)
    assert trainer.scheduler.base_lrs[0] == pytest.approx(0.02 / 4)


@pytest.mark.skipif(d2.ENGINE != "lite", reason="Detectron2 trains one process on a CPU")
def test_two_processes_skip_and_stop_together_when_one_has_the_nan(shapes, tmp_path):
    run_two("tests.training.nonfinite_worker", free_port(), shapes, tmp_path)
    reports = [torch.load(tmp_path / f"rank{rank}.pth") for rank in range(2)]
    for report in reports:
        assert report["iteration"] == 3 and "SOLVER.NONFINITE.BUDGET 1 is used up" in report["error"]
        assert "rank 1: loss_cls = nan" in report["error"] and "rank 0: loss" not in report["error"]
        assert "rank 1: first output that is not finite: backbone (FPN)" in report["error"]
    parameters = [name for name in reports[0]["weights"] if name.endswith(("weight", "bias"))]
    assert all(torch.equal(reports[0]["weights"][name], reports[1]["weights"][name]) for name in parameters)
    assert all(value.isfinite().all() for report in reports for value in report["weights"].values())
    incident = tmp_path / "incidents" / "iter_0000001"
    names = {path.name for path in incident.iterdir()}
    assert names == {"incident.json", "weights.pth", "config.yaml", "batch.pt", "batch_rank1.pt"}
    facts = json.loads((incident / "incident.json").read_text())
    assert [rank["first_output"] is None for rank in facts["ranks"]] == [True, False]
    assert main(["replay", str(incident)]) == 0
