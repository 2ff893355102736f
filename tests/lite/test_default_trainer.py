import json
import os
from argparse import Namespace
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from retinanet_ext.lite import comm
from retinanet_ext.lite.cfg_node import get_cfg
from retinanet_ext.lite.engine import (
    DefaultPredictor,
    DefaultTrainer,
    HookBase,
    default_argument_parser,
    default_predictor,
    default_setup,
    hooks,
)
from retinanet_ext.lite.evaluation import DatasetEvaluator


class _Toy(nn.Module):
    """Draws random numbers and keeps statistics, so that a resumed run must restore both."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, x):
        return {"loss_a": self.net(x).square().mean(), "loss_b": self.net(x).abs().mean()}


class _ToyLoader:
    """Batch ``k`` is the same in every run, and the loader can begin at any batch."""

    start_batch = 0

    def __iter__(self):
        index = self.start_batch
        while True:
            yield torch.randn(4, 3, generator=torch.Generator().manual_seed(index))
            index += 1


class _ToyTrainer(DefaultTrainer):
    @classmethod
    def build_model(cls, cfg):
        return _Toy()

    @classmethod
    def build_train_loader(cls, cfg):
        return _ToyLoader()

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        torch.rand(3)
        return {"bbox": {"AP": 20.0}}

    def build_hooks(self):
        built = super().build_hooks()
        built.insert(-1, hooks.BestCheckpointer(self.cfg.TEST.EVAL_PERIOD, self.checkpointer, "bbox/AP"))
        built.insert(-1, _Losses())
        return built


class _Losses(HookBase):
    def __init__(self):
        self.seen = {}

    def after_step(self):
        names = ("total_loss", "loss_a", "loss_b", "lr")
        self.seen[self.trainer.iter] = [self.trainer.storage.latest()[name][0] for name in names]


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    cfg.MODEL.DEVICE = "cpu"
    cfg.SOLVER.MAX_ITER = 8
    cfg.SOLVER.STEPS = (6,)
    cfg.SOLVER.BASE_LR = 0.1
    cfg.SOLVER.WARMUP_ITERS = 2
    cfg.SOLVER.CHECKPOINT_PERIOD = 4
    cfg.TEST.EVAL_PERIOD = 2
    return cfg


def _same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(_same(*pair) for pair in zip(one, other, strict=True))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def _losses_of(trainer):
    return next(hook for hook in trainer._hooks if isinstance(hook, _Losses)).seen


@pytest.mark.parametrize("amp", [False, True], ids=["fp32", "bf16"])
def test_stop_and_resume_equals_the_unbroken_run(cfg, amp):
    cfg.SOLVER.AMP.ENABLED = amp
    torch.manual_seed(3)
    unbroken = _ToyTrainer(cfg)
    unbroken.train()
    weights = {name: value.clone() for name, value in unbroken.model.state_dict().items()}
    final = torch.load(f"{cfg.OUTPUT_DIR}/model_final.pth")

    # A run killed after iteration 5 leaves the checkpoint of iteration 3 behind.
    with open(f"{cfg.OUTPUT_DIR}/last_checkpoint", "w") as file:
        file.write("model_0000003.pth")
    torch.manual_seed(99)
    resumed = _ToyTrainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 4
    resumed.train()

    assert list(_losses_of(resumed)) == [4, 5, 6, 7]
    assert _losses_of(resumed) == {k: v for k, v in _losses_of(unbroken).items() if k >= 4}
    assert all(torch.equal(weights[name], value) for name, value in resumed.model.state_dict().items())
    again = torch.load(f"{cfg.OUTPUT_DIR}/model_final.pth")
    assert _same(again, final)


class _SeededToyLoader(_ToyLoader):
    seed = 5


class _SeededToyTrainer(_ToyTrainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return _SeededToyLoader()


def test_without_a_seed_in_the_config_a_resumed_run_keeps_that_of_its_data(cfg, monkeypatch, caplog):
    _SeededToyTrainer(cfg).train()
    monkeypatch.setattr(_SeededToyLoader, "seed", 6)  # what a new process would draw
    resumed = _SeededToyTrainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.data_loader.seed == 5
    assert "new random order" not in caplog.text
    cfg.SEED = 6
    resumed = _SeededToyTrainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.data_loader.seed == 6


def test_a_resumed_run_that_cannot_keep_the_order_of_its_data_says_so(cfg, caplog):
    _ToyTrainer(cfg).train()
    _ToyTrainer(cfg).resume_or_load(resume=True)
    assert "SEED is negative" in caplog.text


def test_processes_that_find_different_checkpoints_are_refused(cfg, monkeypatch):
    _ToyTrainer(cfg).train()
    trainer = _ToyTrainer(cfg)
    monkeypatch.setattr(comm, "all_gather", lambda found: [found, ""])
    with pytest.raises(ValueError, match="rank 0: model_final.pth, rank 1: none.*must share that folder"):
        trainer.resume_or_load(resume=True)


def test_without_a_checkpoint_resume_starts_from_the_weights(cfg, tmp_path):
    torch.save({"model": _Toy().state_dict()}, tmp_path / "start.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "start.pth")
    trainer = _ToyTrainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 0
    assert trainer.data_loader.start_batch == 0
    expected = torch.load(cfg.MODEL.WEIGHTS)["model"]
    assert all(torch.equal(expected[name], value) for name, value in trainer.model.state_dict().items())


def test_without_the_flag_a_checkpoint_is_not_used(cfg):
    _ToyTrainer(cfg).train()
    trainer = _ToyTrainer(cfg)
    trainer.resume_or_load(resume=False)
    assert trainer.start_iter == 0


def test_weights_alone_cannot_be_resumed(cfg):
    trainer = _ToyTrainer(cfg)
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    torch.save({"model": _Toy().state_dict()}, f"{cfg.OUTPUT_DIR}/model_final.pth")
    trainer.checkpointer.tag_last_checkpoint("model_final.pth")
    with pytest.raises(ValueError, match="model_final.pth.*no trainer state.*MODEL.WEIGHTS"):
        trainer.resume_or_load(resume=True)


def test_hooks_come_in_the_order_of_their_work(cfg):
    names = [type(hook).__name__ for hook in DefaultTrainer.build_hooks(_ToyTrainer(cfg))]
    assert names == ["IterationTimer", "LRScheduler", "PeriodicCheckpointer", "EvalHook", "PeriodicWriter"]


def test_hooks_of_the_trainer_see_gradients(cfg):
    class Gradients(HookBase):
        seen = []

        def after_backward(self):
            grads = [parameter.grad for parameter in self.trainer.model.parameters()]
            self.seen.append((self.trainer.iter, all(grad is not None for grad in grads)))

    trainer = _ToyTrainer(cfg)
    trainer.register_hooks([Gradients()])
    trainer.train()
    assert Gradients.seen == [(iteration, True) for iteration in range(8)]


def test_a_replaced_model_and_loader_are_those_of_the_next_step(cfg):
    trainer = _ToyTrainer(cfg)
    seen = []
    trainer.train()
    replacement = _Toy().eval()
    replacement.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, inputs[0])))
    trainer.model = replacement
    trainer.data_loader = [torch.ones(4, 3)] * 9
    trainer.optimizer = torch.optim.SGD(replacement.parameters(), lr=0.1)
    trainer.scheduler = trainer.build_lr_scheduler(cfg, trainer.optimizer)
    trainer.train()
    assert len(seen) == 8 and all(training and torch.equal(x, torch.ones(4, 3)) for training, x in seen)
    # The checkpoint holds the model that was trained.
    saved = torch.load(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"), weights_only=False)["model"]
    assert _same(dict(saved), dict(replacement.state_dict()))


def test_an_optimizer_without_a_schedule_is_named(cfg, caplog):
    trainer = _ToyTrainer(cfg)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    trainer.train()
    assert "the schedule drives another optimizer" in caplog.text
    caplog.clear()
    _ToyTrainer(cfg).train()
    assert "the schedule drives another optimizer" not in caplog.text


def test_a_run_leaves_its_files(cfg):
    assert _ToyTrainer(cfg).train() == {"bbox": {"AP": 20.0}}
    files = set(os.listdir(cfg.OUTPUT_DIR))
    assert {
        "metrics.json",
        "model_0000003.pth",
        "model_final.pth",
        "model_best.pth",
        "last_checkpoint",
    } <= files
    with open(f"{cfg.OUTPUT_DIR}/metrics.json") as file:
        rows = [json.loads(line) for line in file]
    assert rows[-1] == {"bbox/AP": 20.0, "iteration": 8}
    assert {"total_loss", "loss_a", "loss_b", "lr", "time", "data_time"} <= set(rows[-2])


def test_expected_results_are_verified(cfg):
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 20.5, 1.0]]
    _ToyTrainer(cfg).train()
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 20.5, 0.1], ["segm", "AP", 1.0, 100.0]]
    with pytest.raises(ValueError, match="bbox AP: expected 20.5 .* found 20.0000; segm AP: .* found missing"):
        _ToyTrainer(cfg).train()


def test_evaluator_must_be_provided(cfg):
    with pytest.raises(NotImplementedError, match="set_a.*build_evaluator"):
        DefaultTrainer.build_evaluator(cfg, "set_a")


class _CountEvaluator(DatasetEvaluator):
    def reset(self):
        self.outputs = []

    def process(self, inputs, outputs):
        self.outputs += outputs

    def evaluate(self):
        return {"count": {"total": float(len(self.outputs))}}


class _TestsOnly(DefaultTrainer):
    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return [[1, 2], [3]] if dataset_name == "three" else [[1]]


class _Echo(nn.Module):
    def forward(self, inputs):
        return inputs


def test_test_runs_every_data_set(cfg):
    cfg.DATASETS.TEST = ("three", "one")
    results = _TestsOnly.test(cfg, _Echo(), [_CountEvaluator(), _CountEvaluator()])
    assert results == OrderedDict(three={"count": {"total": 3.0}}, one={"count": {"total": 1.0}})


def test_results_of_one_data_set_are_not_wrapped(cfg):
    cfg.DATASETS.TEST = ("three",)
    assert _TestsOnly.test(cfg, _Echo(), _CountEvaluator()) == {"count": {"total": 3.0}}
    assert _TestsOnly.test(cfg, _Echo()) == {}
    with pytest.raises(ValueError, match="2 evaluators for 1"):
        _TestsOnly.test(cfg, _Echo(), [_CountEvaluator(), _CountEvaluator()])


def test_a_schedule_is_scaled_to_the_number_of_processes():
    cfg = get_cfg()
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 8
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_ITERS = 16, 0.01, 1000
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.CHECKPOINT_PERIOD = 90000, (60000, 80000), 5000
    cfg.freeze()
    scaled = DefaultTrainer.auto_scale_workers(cfg, 2)
    assert (scaled.SOLVER.IMS_PER_BATCH, scaled.SOLVER.BASE_LR) == (4, 0.0025)
    assert (scaled.SOLVER.MAX_ITER, scaled.SOLVER.STEPS) == (360000, (240000, 320000))
    assert (scaled.SOLVER.WARMUP_ITERS, scaled.SOLVER.CHECKPOINT_PERIOD) == (4000, 20000)
    assert scaled.is_frozen()
    assert cfg.SOLVER.IMS_PER_BATCH == 16
    assert DefaultTrainer.auto_scale_workers(scaled, 2) is scaled


def test_command_line():
    parse = default_argument_parser().parse_args
    line = "--config-file a.yaml --resume --eval-only --num-gpus 2 --num-machines 3 --machine-rank 1"
    args = parse([*line.split(), "--dist-url", "tcp://a:1", "SOLVER.BASE_LR", "0.1"])
    assert args == Namespace(
        config_file="a.yaml",
        resume=True,
        eval_only=True,
        num_gpus=2,
        num_machines=3,
        machine_rank=1,
        dist_url="tcp://a:1",
        opts=["SOLVER.BASE_LR", "0.1"],
    )


def test_setup_seeds_and_leaves_a_record(cfg):
    cfg.SEED = 5
    draws = []
    for _ in range(2):
        default_setup(cfg, Namespace(eval_only=False))
        draws.append((torch.rand(1).item(), np.random.rand()))
    assert draws[0] == draws[1]
    read_back = get_cfg()
    read_back.merge_from_file(f"{cfg.OUTPUT_DIR}/config.yaml")
    assert read_back.dump() == cfg.dump()
    with open(f"{cfg.OUTPUT_DIR}/log.txt") as file:
        assert "torch" in file.read()


class _ReportsItsInput(nn.Module):
    def forward(self, inputs):
        return [{**inputs[0], "channel_means": inputs[0]["image"].mean((1, 2)).tolist()}]


@pytest.mark.parametrize("channels, expected", [("BGR", [10, 20, 30]), ("RGB", [30, 20, 10])])
def test_predictor_resizes_and_orders_channels(cfg, monkeypatch, channels, expected):
    monkeypatch.setattr(default_predictor, "build_model", lambda cfg: _ReportsItsInput())
    cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = channels, 20, 1000
    image_bgr = np.broadcast_to(np.array([10, 20, 30], np.uint8), (40, 60, 3))
    prediction = DefaultPredictor(cfg)(image_bgr)
    assert prediction["image"].shape == (3, 20, 30)
    assert prediction["image"].dtype == torch.float32
    assert (prediction["height"], prediction["width"]) == (40, 60)
    assert prediction["channel_means"] == pytest.approx(expected)
