"""SOLVER.ACCUMULATE: a step in micro-batches is the step of the whole batch."""

import pytest
import torch

from retinanet_ext import d2
from retinanet_ext.training.step import TrainStep
from retinanet_ext.training.trainer import Trainer
from tests.builders import batch, shapes_config, small_config

NAMES = ("loss_cls", "loss_box_reg", "total_loss", "num_pos_anchors")
# Sums in another order round differently. The steps change the weights by a hundred times as much: see the second test.
TOLERANCE = 3e-6


def make_batches(size_hw=(96, 80)) -> list[list[dict]]:
    """Three batches of four images with 1, 2, 0 and 5 objects: the micro-batches differ much in foreground."""
    generator = torch.Generator().manual_seed(0)
    return [[batch(generator, size_hw, num_objects=n)[0] for n in (1, 2, 0, 5)] for _ in range(3)]


def train(accumulate: int, batches, *opts: str, **kwargs) -> tuple[dict, list]:
    """Weights after a step on each batch, and the metrics of each step."""
    torch.manual_seed(0)
    model = d2.build_model(small_config(*opts))
    optimizer = torch.optim.SGD(model.parameters(), lr=3e-4, momentum=0.9)
    step = TrainStep(model, batches, optimizer, storage=d2.get_event_storage, accumulate=accumulate, **kwargs)
    history = []
    with d2.EventStorage(0) as storage:
        for _ in batches:
            step.run_step()
            history.append([storage.latest()[name][0] for name in NAMES])
    return model.state_dict(), history


@pytest.mark.parametrize("normalizer", ["ema", "foreground"])
@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_make_the_step_of_the_whole_batch(accumulate, normalizer, device):
    opts = ["MODEL.RETINANET.NORMALIZER", normalizer, "MODEL.DEVICE", str(device)]
    expected, expected_metrics = train(1, make_batches(), *opts)
    found, metrics = train(accumulate, make_batches(), *opts)
    torch.testing.assert_close(torch.tensor(metrics), torch.tensor(expected_metrics), rtol=1e-5, atol=1e-6)
    for name, value in expected.items():  # the normaliser's moving average is among them
        torch.testing.assert_close(found[name], value, rtol=0, atol=TOLERANCE * max(1, value.abs().max()), msg=name)


def test_the_steps_change_the_weights_by_more_than_that_tolerance():
    weights, _ = train(1, make_batches())
    torch.manual_seed(0)
    before = d2.build_model(small_config()).state_dict()
    assert max((weights[name] - before[name]).abs().max().item() for name in before) > 100 * TOLERANCE


def test_frozen_norms_see_no_difference():
    opts = ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.BACKBONE.FREEZE_AT", "2", "SOLVER.AMP.ENABLED", "False"]
    batches = make_batches()[:1]
    _, expected = train(1, batches, *opts)
    _, metrics = train(2, batches, *opts)
    torch.testing.assert_close(torch.tensor(metrics), torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_memory_is_that_of_a_micro_batch():
    def largest(accumulate: int) -> int:
        sizes = []

        def pack(tensor):
            sizes.append(tensor.numel() if tensor.dim() == 4 and len(tensor) == 4 // accumulate else 0)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            train(accumulate, make_batches()[:1])
        return max(sizes)

    kept = {accumulate: largest(accumulate) for accumulate in (1, 4)}
    assert kept[4] * 4 == kept[1]


@pytest.mark.parametrize("size", [(65, 129), (100, 33)])
def test_maps_have_the_expected_size_for_images_that_are_not_multiples(size, generator):
    # 33 pixels must not round down to one cell. A wrong expected size is refused, see below.
    model = d2.build_model(small_config())
    parts = [batch(generator, size, num_objects=0), batch(generator, (64, 64))]
    with model.as_one_batch(parts):
        for part in parts:
            model(part)


def test_more_calls_than_prepared_prepare_for_themselves(generator):
    model = d2.build_model(small_config())
    parts = [batch(generator, (64, 64)), batch(generator, (64, 64))]
    with pytest.raises(KeyError), model.as_one_batch(parts):
        raise KeyError("anything, halfway")
    assert len(model(batch(generator, (96, 96)))) == 2  # nothing is left over


def test_another_order_is_refused(generator):
    model = d2.build_model(small_config())
    parts = [batch(generator, (64, 64)), batch(generator, (96, 96))]
    refused = pytest.raises(ValueError, match="SOLVER.ACCUMULATE: targets were prepared for .* in order")
    with refused, model.as_one_batch(parts):
        model(parts[1])


def test_bad_ground_truth_is_named_as_ever(generator):
    model = d2.build_model(small_config())
    part = batch(generator, (64, 64))
    del part[0]["instances"]
    with pytest.raises(ValueError, match="image_0.png"), model.as_one_batch([part]):
        pass


def test_a_batch_that_cannot_be_split_evenly_is_still_one_batch():
    batches = [rows[:3] for rows in make_batches()]
    expected, _ = train(1, batches)
    found, _ = train(2, batches)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=TOLERANCE * max(1, value.abs().max()), msg=name)


def test_a_model_that_normalises_by_itself_is_refused():
    model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="SOLVER.ACCUMULATE is 2, but Linear has no `as_one_batch`"):
        TrainStep(model, [], torch.optim.SGD(model.parameters(), lr=0.1), storage=None, accumulate=2)


def test_the_trainer_accumulates(shapes, tmp_path):
    common = ["DATASETS.TEST", "()", "SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "3", "INPUT.RANDOM_FLIP", "none"]
    common += ["MODEL.FPN.OUT_CHANNELS", "32"]  # group norm has 32 groups
    common += [word for part in ("RESNETS", "FPN", "RETINANET") for word in (f"MODEL.{part}.NORM", "GN")]

    def run(accumulate):
        (tmp_path / str(accumulate)).mkdir()
        torch.manual_seed(0)
        opts = [*common, "SOLVER.ACCUMULATE", str(accumulate)]
        trainer = Trainer(shapes_config(shapes, tmp_path / str(accumulate), *opts))
        sizes = []
        trainer.model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        torch.manual_seed(1)
        trainer.train()
        return sizes, trainer.model.state_dict()

    (whole, expected), (parts, found) = run(1), run(2)
    assert whole == [4, 4, 4] and parts == [2] * 6
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=TOLERANCE * max(1, value.abs().max()), msg=name)


@pytest.mark.parametrize(("num_images", "forward_passes"), [(0, 1), (1, 1), (3, 2)])
def test_the_normaliser_is_called_once_before_any_forward_pass(num_images, forward_passes, generator):
    # All processes must reach its exchange in the same order as those of the forward passes.
    model = d2.build_model(small_config())
    calls = []
    model.loss_normalizer.register_forward_hook(lambda *_: calls.append("normaliser"))
    model.register_forward_pre_hook(lambda *_: calls.append("forward"))
    rows = batch(generator, *[(64, 64)] * num_images)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    step = TrainStep(model, [rows], optimizer, storage=d2.get_event_storage, accumulate=2)
    with d2.EventStorage(0):
        step.run_step()
    assert calls == ["normaliser", *["forward"] * forward_passes]
