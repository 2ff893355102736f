"""Counting unreadable images: over processes, across restarts, against the budget."""

import json
from types import SimpleNamespace

import pytest
import torch

from retinanet_ext.d2 import EventStorage
from retinanet_ext.training.bad_images import BadImagesHook, ReportingLoader, budget_in_images
from retinanet_ext.training.step import TrainStep
from tests.builders import free_port, small_config
from tests.two_processes import run_two


@pytest.mark.parametrize(("budget", "images", "allowed"), [
    (0.0, 1000, 0), (0.01, 12, 1), (0.01, 1000, 10), (0.5, 5, 3), (1.0, 1000, 1), (40.0, 12, 40),
])  # fmt: skip
def test_the_budget_in_images(budget, images, allowed):
    assert budget_in_images(small_config("DATASETS.BAD_IMAGE_BUDGET", str(budget)), images) == allowed


@pytest.mark.parametrize("wrong", ["-1", "1.5", "float('inf')"])
def test_an_illegal_budget_is_refused(wrong):
    with pytest.raises(ValueError, match="BAD_IMAGE_BUDGET"):
        small_config("DATASETS.BAD_IMAGE_BUDGET", wrong)


def trained(folder, batches, start=0):
    """Run the hook over batches that name their unreadable files; returns what the file then says."""
    samples = [[{"bad_images": [bad(name) for name in names]}] for names in batches]
    trainer = SimpleNamespace(start_iter=start, iter=start, max_iter=start + len(samples))
    trainer.data_loader = ReportingLoader(samples)
    trainer._trainer = SimpleNamespace(loader_has_news=True)
    hook = BadImagesHook(str(folder), 10)
    hook.trainer = trainer
    hook.before_train()
    for iteration, _ in enumerate(trainer.data_loader, start):
        trainer.iter = iteration
        hook.after_step()
    hook.after_train()
    return json.loads((folder / "bad_images.json").read_text())


def bad(name):
    return {"file_name": name, "image_id": 0, "reason": "cut"}


def test_a_resumed_run_counts_on_from_its_first_iteration(tmp_path):
    trained(tmp_path, [["a"], ["a", "b"], ["c"]])
    # Resumed at iteration 1: what was counted from there on happens again.
    content = trained(tmp_path, [["b"], ["a"]], start=1)
    found = {image["file_name"]: image["iterations"] for image in content["images"]}
    assert found == {"a": [0, 2], "b": [1]} and content["times"] == 3 and content["different_images"] == 2
    assert [image["times"] for image in content["images"]] == [2, 1]


def test_a_new_run_counts_from_nothing(tmp_path):
    trained(tmp_path, [["a"], ["b"]])
    assert [image["file_name"] for image in trained(tmp_path, [["c"]])["images"]] == ["c"]


@pytest.mark.parametrize("damaged", ["", "[]", '{"images": [{}]}', "\x00"])
def test_a_damaged_list_does_not_stop_a_resumed_run(tmp_path, damaged, caplog):
    (tmp_path / "bad_images.json").write_text(damaged)
    assert trained(tmp_path, [["a"]], start=5)["images"][0]["iterations"] == [5]


def test_processes_count_together_and_stop_together(tmp_path):
    run_two("tests.training.bad_images_worker", free_port(), tmp_path, 1)
    content = json.loads((tmp_path / "bad_images.json").read_text())
    assert {image["file_name"]: image["iterations"] for image in content["images"]} == {"0.png": [0], "1.png": [1]}
    for rank in range(2):
        iteration, message = json.loads((tmp_path / f"stopped{rank}.json").read_text())
        assert iteration == 1 and "1.png" in message


class OneLoss(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, batch):
        return {"loss": self.weight.sum()}


def test_a_training_step_says_whether_there_is_news():
    model = OneLoss()
    loader = ReportingLoader([[{"bad_images": []}], [{"bad_images": [bad("a")]}], [{}]])
    step = TrainStep(model, loader, torch.optim.SGD(model.parameters(), lr=0.1), storage=EventStorage)
    said = []
    for _ in range(3):
        step.run_step()
        said.append(step.loader_has_news)
        loader.found()
    assert said == [False, True, False]
