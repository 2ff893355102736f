"""Trainers, hooks and checkpoints of the embedded engine, side by side with Detectron2's."""

import json
import logging
import pickle

import pytest
import torch
from torch import nn

from retinanet_ext.lite import cfg_node as lite_config
from retinanet_ext.lite import checkpointer as lite_checkpoint
from retinanet_ext.lite import engine as lite_engine
from retinanet_ext.lite import events as lite_events
from retinanet_ext.training.step import TrainStep

REASON = "Detectron2 is not installed: nothing to compare with"
d2_config = pytest.importorskip("detectron2.config", reason=REASON)
d2_engine = pytest.importorskip("detectron2.engine", reason=REASON)
d2_defaults = pytest.importorskip("detectron2.engine.defaults", reason=REASON)
d2_checkpoint = pytest.importorskip("detectron2.checkpoint", reason=REASON)

LITE = (lite_config, lite_engine, lite_engine)
D2 = (d2_config, d2_engine, d2_defaults)


class _Toy(nn.Module):
    def __init__(self, log):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        self.log = log

    def forward(self, x):
        self.log.append("forward")
        y = self.net(x)
        return {"loss_a": y.square().mean(), "loss_b": y.abs().mean()}


class _LoggingSGD(torch.optim.SGD):
    log = []

    def step(self, *args, **kwargs):
        self.log.append("optimizer.step")
        return super().step(*args, **kwargs)

    def zero_grad(self, *args, **kwargs):
        self.log.append("zero_grad")
        super().zero_grad(*args, **kwargs)


def _logging_hook(engine, log, name, fail_at=None):
    def note(moment):
        def method(self):
            log.append((name, moment, self.trainer.iter, self.trainer.storage.iter))
            if (moment, self.trainer.iter) == fail_at:
                raise KeyError("on purpose")

        return method

    moments = ("before_train", "before_step", "after_backward", "after_step", "after_train")
    return type("Hook", (engine.HookBase,), {moment: note(moment) for moment in moments})()


class _StepTrainer(lite_engine.TrainerBase):
    """Iterates as the trainers of `lite` and of this package do."""

    def __init__(self, *args):
        super().__init__()
        self._step = TrainStep(*args, storage=lite_events.get_event_storage, after_backward=self.after_backward)

    def run_step(self):
        self._step.run_step()


@pytest.mark.parametrize("fail_at", [None, ("before_step", 3), ("after_backward", 4), ("after_step", 4)])
def test_order_of_calls(fail_at):
    def calls(engine):
        log = []
        torch.manual_seed(0)
        model = _Toy(log)
        optimizer = _LoggingSGD(model.parameters(), lr=0.1)
        optimizer.log = log
        make = engine.SimpleTrainer if engine is d2_engine else _StepTrainer
        trainer = make(model, [torch.ones(2, 3)] * 9, optimizer)
        trainer.register_hooks([_logging_hook(engine, log, "a", fail_at), None, _logging_hook(engine, log, "b")])
        try:
            trainer.train(2, 6)
        except KeyError:
            log.append("raised")
        # Calls of zero_grad differ: we clear old gradients before the forward pass, so that they take no memory there.
        return [*(call for call in log if call != "zero_grad"), trainer.iter]

    logging.disable(logging.CRITICAL)
    try:
        ours, theirs = calls(lite_engine), calls(d2_engine)
    finally:
        logging.disable(logging.NOTSET)
    assert ours == theirs
    assert ("raised" in ours) == (fail_at is not None)


def _cfg(config, folder):
    cfg = config.get_cfg()
    cfg.OUTPUT_DIR = str(folder)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 30, (12, 24), 5
    cfg.SOLVER.BASE_LR, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD = 0.1, 10, 15
    return cfg


def _trainer(config, engine, defaults, folder):
    class Trainer(defaults.DefaultTrainer):
        evaluated = []

        @classmethod
        def build_model(cls, cfg):
            torch.manual_seed(5)
            return _Toy([])

        @classmethod
        def build_train_loader(cls, cfg):
            generator = torch.Generator().manual_seed(0)
            return [torch.randn(4, 3, generator=generator) for _ in range(50)]

        @classmethod
        def test(cls, cfg, model, evaluators=None):
            cls.evaluated.append(model.net[0].bias.sum().item())
            return {"bbox": {"AP": 10.0 * len(cls.evaluated)}}

    Trainer.evaluated = []
    return Trainer(_cfg(config, folder))


def test_parts_of_a_trainer_are_replaced(tmp_path):
    """Other weights, data and rates give other losses, so equal losses show that each part is used."""

    def losses(replace):
        found = []
        for side in (LITE, D2):
            trainer = _trainer(*side, tmp_path / "replaced")
            if replace:
                torch.manual_seed(6)
                trainer.model = _Toy([])
                trainer.data_loader = [torch.full((4, 3), 0.1 * i) for i in range(50)]
                trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.02)
                trainer.scheduler = trainer.build_lr_scheduler(trainer.cfg, trainer.optimizer)
            trainer.train()
            found.append([value for value, _ in trainer.storage.history("total_loss").values()])
        return found

    before, after = losses(False), losses(True)
    assert before[0] == before[1] and after[0] == after[1] and before[0] != after[0]


def test_a_whole_run(tmp_path):
    def run(side, folder):
        trainer = _trainer(*side, folder)
        trainer.resume_or_load(resume=False)
        trainer.train()
        rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
        names = {"time", "data_time", "rank_data_time", "eta_seconds"}
        assert names <= {name for row in rows for name in row}
        rows = [{name: value for name, value in row.items() if name not in names} for row in rows]
        files = sorted(path.name for path in folder.iterdir() if not path.name.startswith("events."))
        return trainer, sorted(rows, key=lambda row: row["iteration"]), files

    (ours, our_rows, our_files), (theirs, their_rows, their_files) = (
        run(side, tmp_path / side[1].__name__) for side in (LITE, D2)
    )
    assert our_rows == their_rows
    assert our_files == their_files
    assert ours.evaluated == theirs.evaluated
    assert [type(hook).__name__ for hook in ours._hooks] == [type(hook).__name__ for hook in theirs._hooks]
    for name, value in theirs.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[name], value)


@pytest.mark.parametrize("first, second", [(LITE, D2), (D2, LITE)], ids=["lite-to-d2", "d2-to-lite"])
def test_a_run_goes_on_with_the_other_engine(tmp_path, first, second):
    def state(folder):
        return torch.load(folder / "model_final.pth")

    unbroken = _trainer(*first, tmp_path)
    unbroken.train()
    expected = state(tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000019.pth")
    resumed = _trainer(*second, tmp_path)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 20
    # The loaders of this test begin at the first batch: skip the 20 batches already used.
    batches = list(resumed.data_loader)[20:]
    resumed._trainer.data_loader = batches
    resumed.train()
    found = state(tmp_path)
    assert found["iteration"] == expected["iteration"] == 29
    for name, value in expected["model"].items():
        assert torch.equal(found["model"][name], value), name
    assert found["trainer"]["hooks"]["LRScheduler"] == expected["trainer"]["hooks"]["LRScheduler"]


def test_detectron2_resumes_a_run_that_keeps_the_best_model(tmp_path):
    for side in (LITE, D2):
        trainer = _trainer(*side, tmp_path)
        best = side[1].hooks.BestCheckpointer(15, trainer.checkpointer, "bbox/AP")
        trainer.register_hooks([best])
        trainer.resume_or_load(resume=True)
        if side is LITE:
            trainer.train()
            (tmp_path / "last_checkpoint").write_text("model_0000029.pth")
    assert trainer.start_iter == 30


def test_command_line_flags():
    def flags(defaults):
        parser = defaults.default_argument_parser()
        return {
            (tuple(action.option_strings), action.dest, action.nargs, action.type)
            for action in parser._actions
            if action.dest != "help"
        }, {action.dest: action.default for action in parser._actions if action.dest != "dist_url"}

    assert flags(lite_engine) == flags(d2_defaults)


class _Detector(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = backbone
        self.head = nn.Linear(2, 2)


def _resnet():
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import build_resnet_backbone

    cfg = d2_config.get_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2"]
    return build_resnet_backbone(cfg, ShapeSpec(channels=3))


def _caffe2_file(path):
    """Names and shapes of Detectron's ResNet-50 up to res2, with the classifier."""
    generator = torch.Generator().manual_seed(0)

    def conv(name, norm, out_channels, in_channels, size):
        shapes = {
            name: (out_channels, in_channels, size, size),
            f"{norm}_s": out_channels,
            f"{norm}_b": out_channels,
        }
        for key, shape in shapes.items():
            blobs[key + ("_w" if key == name else "")] = torch.randn(shape, generator=generator).numpy()

    blobs = {"pred_w": torch.ones(1000, 2048).numpy(), "pred_b": torch.ones(1000).numpy()}
    conv("conv1", "res_conv1_bn", 64, 3, 7)
    for block in range(3):
        prefix, width = f"res2_{block}_branch", 64 if block == 0 else 256
        if block == 0:
            conv(f"{prefix}1", f"{prefix}1_bn", 256, 64, 1)
        for branch, shape in {"2a": (64, width, 1), "2b": (64, 64, 3), "2c": (256, 64, 1)}.items():
            conv(f"{prefix}{branch}", f"{prefix}{branch}_bn", *shape)
    path.write_bytes(pickle.dumps({"blobs": blobs}))


def _torch_file(path):
    torch.save({"model": _resnet().state_dict(), "matching_heuristics": True}, path)


@pytest.mark.parametrize("name, write", [("c2.pkl", _caffe2_file), ("tv.pth", _torch_file)])
def test_backbone_weights_arrive_where_detectron2_puts_them(tmp_path, name, write):
    write(tmp_path / name)
    logging.disable(logging.CRITICAL)
    try:
        weights = []
        for module in (lite_checkpoint, d2_checkpoint):
            torch.manual_seed(1)
            detector = _Detector(_resnet())
            before = {key: value.clone() for key, value in detector.state_dict().items()}
            module.DetectionCheckpointer(detector).load(str(tmp_path / name))
            weights.append(detector.state_dict())
    finally:
        logging.disable(logging.NOTSET)
    changed = [key for key in before if not torch.equal(before[key], weights[0][key])]
    assert len(changed) >= 11
    for key, value in weights[1].items():
        assert torch.equal(weights[0][key], value), key
