import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from retinanet_ext.lite.checkpointer import DetectionCheckpointer


def _net(value):
    net = nn.Sequential(nn.Linear(2, 2))
    for parameter in net.parameters():
        nn.init.constant_(parameter, value)
    return net


def _load(path, net=None):
    """Load into ``net`` (default: zeros); returns the net, the incompatible keys, and the rest of the file."""
    seen = []

    class Recording(DetectionCheckpointer):
        def _load_model(self, checkpoint):
            seen.append(super()._load_model(checkpoint))
            return seen[0]

    net = net or _net(0.0)
    rest = Recording(net).load(str(path))
    return net, seen[0], rest


def test_round_trip_with_optimizer_and_extras(tmp_path):
    net = _net(1.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    DetectionCheckpointer(net, str(tmp_path), optimizer=optimizer).save("model_0000003", iteration=3)

    other = _net(0.0)
    other_optimizer = torch.optim.SGD(other.parameters(), lr=0.5)
    checkpointer = DetectionCheckpointer(other, str(tmp_path), optimizer=other_optimizer)
    assert checkpointer.resume_or_load("", resume=True) == {"iteration": 3}
    assert torch.equal(other[0].weight, net[0].weight)
    assert other_optimizer.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def test_starting_from_weights_leaves_the_optimizer_alone(tmp_path):
    optimizer = torch.optim.SGD(_net(1.0).parameters(), lr=0.1)
    DetectionCheckpointer(_net(1.0), str(tmp_path), optimizer=optimizer).save("start")
    fresh = torch.optim.SGD(_net(0.0).parameters(), lr=0.5)
    DetectionCheckpointer(_net(0.0), "", optimizer=fresh).resume_or_load(str(tmp_path / "start.pth"), resume=True)
    assert fresh.param_groups[0]["lr"] == 0.5


def test_a_failed_save_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    checkpointer = DetectionCheckpointer(_net(1.0), str(tmp_path))
    checkpointer.save("model")

    def disk_full(data, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(OSError):
        checkpointer.save("model")
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model.pth"]
    assert _load(tmp_path / "model.pth")[0][0].weight.tolist() == [[1, 1], [1, 1]]


def test_only_the_writing_process_writes(tmp_path):
    DetectionCheckpointer(_net(1.0), str(tmp_path), save_to_disk=False).save("model")
    assert os.listdir(tmp_path) == []


def test_missing_unexpected_and_misshapen_entries_are_returned(tmp_path):
    torch.save({"model": {"0.weight": torch.ones(3, 2), "1.weight": torch.ones(1)}}, tmp_path / "a.pth")
    net, incompatible, _ = _load(tmp_path / "a.pth")
    assert incompatible.missing_keys == ["0.weight", "0.bias"]
    assert incompatible.unexpected_keys == ["1.weight"]
    assert incompatible.incorrect_shapes == [("0.weight", (3, 2), (2, 2))]
    assert net[0].weight.eq(0).all()


def test_a_bare_state_dict_is_a_checkpoint(tmp_path):
    torch.save(_net(2.0).state_dict(), tmp_path / "a.pth")
    assert _load(tmp_path / "a.pth")[0][0].bias.tolist() == [2, 2]


def test_names_of_a_wrapped_model_lose_the_prefix(tmp_path):
    torch.save({"model": {f"module.{k}": v for k, v in _net(2.0).state_dict().items()}}, tmp_path / "a.pth")
    assert _load(tmp_path / "a.pth")[0][0].bias.tolist() == [2, 2]


def test_safetensors(tmp_path):
    save_file(_net(2.0).state_dict(), tmp_path / "a.safetensors")
    assert _load(tmp_path / "a.safetensors")[0][0].bias.tolist() == [2, 2]


def test_pickles_of_arrays_are_read(tmp_path):
    model = {name: value.numpy() for name, value in _net(2.0).state_dict().items()}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": model, "__author__": "somebody"}))
    net, _, rest = _load(tmp_path / "a.pkl")
    assert net[0].bias.tolist() == [2, 2]
    assert rest == {"__author__": "somebody"}


def test_pickles_of_bare_arrays_are_read(tmp_path):
    blobs = {"0.bias": np.full(2, 3.0, np.float32), "lr": 0.1}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"blobs": blobs, "cfg": "text"}))
    assert _load(tmp_path / "a.pkl")[0][0].bias.tolist() == [3, 3]


class _RunsCode:
    def __reduce__(self):
        return os.mkdir, ("created-by-a-checkpoint",)


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_files_that_would_run_code_are_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"evil{suffix}"
    data = {"model": {}, "extra": _RunsCode()}
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(data))
    else:
        torch.save(data, path)
    with pytest.raises(ValueError, match=f"evil{suffix}(.|\n)*mkdir"):
        _load(path)
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_damaged_files_are_named(tmp_path, suffix):
    path = tmp_path / f"half{suffix}"
    path.write_bytes(b"\x80\x02}q\x00X")
    with pytest.raises(ValueError, match=path.name):
        _load(path)


def test_unknown_kinds_of_file_are_refused(tmp_path):
    path = tmp_path / "weights.npz"
    path.touch()
    with pytest.raises(ValueError, match=r"weights.npz.*legal: .pth .pt .safetensors .pkl"):
        _load(path)


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere.pth.*MODEL.WEIGHTS"):
        _load("nowhere.pth")


class _Detector(nn.Module):
    """A model with its backbone at the attribute path that detectors use."""

    def __init__(self, norm):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = nn.Module()
        self.backbone.bottom_up.stem = nn.Module()
        self.backbone.bottom_up.stem.conv1 = nn.Conv2d(3, 2, 1, bias=False)
        self.backbone.bottom_up.stem.conv1.norm = norm(2)
        self.backbone.bottom_up.res2 = nn.Sequential(nn.Module())
        self.backbone.bottom_up.res2[0].conv1 = nn.Conv2d(2, 2, 1, bias=False)
        self.head = nn.Linear(2, 2)


def test_a_bare_backbone_finds_its_place(tmp_path):
    donor = _Detector(nn.BatchNorm2d)
    nn.init.constant_(donor.backbone.bottom_up.stem.conv1.norm.running_var, 7.0)
    file = {"model": donor.backbone.bottom_up.state_dict(), "matching_heuristics": True}
    torch.save(file, tmp_path / "backbone.pth")
    net, incompatible, _ = _load(tmp_path / "backbone.pth", _Detector(nn.BatchNorm2d))
    assert sorted(incompatible.missing_keys) == ["head.bias", "head.weight"]
    assert incompatible.unexpected_keys == []
    assert net.backbone.bottom_up.stem.conv1.norm.running_var.tolist() == [7, 7]
    assert torch.equal(net.backbone.bottom_up.res2[0].conv1.weight, donor.backbone.bottom_up.res2[0].conv1.weight)


def test_a_stage_of_the_backbone_finds_its_place_in_the_heads(tmp_path):
    """As in C4 models, whose backbone ends with res4: their heads on regions hold res5."""
    file = {name: torch.full(shape, value) for name, shape, value in [
        ("res2.0.conv1.weight", (2, 2, 1, 1), 2.0), ("res5.0.conv1.weight", (2, 2, 1, 1), 5.0), ("conv1_w", (1,), 1.0),
    ]}  # fmt: skip
    file["res5_1_branch2b_w"] = torch.full((2, 2, 3, 3), 6.0)  # Caffe2's spelling
    torch.save(file, tmp_path / "backbone.pth")
    model = _Detector(nn.BatchNorm2d)
    model.roi_heads = nn.Module()
    model.roi_heads.res5 = nn.Sequential(nn.Module(), nn.Module())
    model.roi_heads.res5[0].conv1 = nn.Conv2d(2, 2, 1, bias=False)
    model.roi_heads.res5[1].conv2 = nn.Conv2d(2, 2, 3, bias=False)
    net, _, _ = _load(tmp_path / "backbone.pth", model)
    assert net.backbone.bottom_up.res2[0].conv1.weight.eq(2).all()
    assert net.roi_heads.res5[0].conv1.weight.eq(5).all() and net.roi_heads.res5[1].conv2.weight.eq(6).all()


def test_matching_can_be_asked_for_in_the_path(tmp_path):
    torch.save(_Detector(nn.BatchNorm2d).backbone.bottom_up.state_dict(), tmp_path / "backbone.pth")
    _, strict, _ = _load(f"{tmp_path}/backbone.pth", _Detector(nn.BatchNorm2d))
    _, loose, _ = _load(f"{tmp_path}/backbone.pth?matching_heuristics=True", _Detector(nn.BatchNorm2d))
    assert "stem.conv1.weight" in strict.unexpected_keys
    assert loose.unexpected_keys == []


def test_torchvision_weights_find_their_place(tmp_path):
    names = ["conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"]
    shapes = [(2, 3, 1, 1)] + [(2,)] * 4
    file = {name: torch.full(shape, 4.0) for name, shape in zip(names, shapes, strict=True)}
    file["bn1.num_batches_tracked"] = torch.tensor(9)
    file["layer1.0.conv1.weight"] = torch.full((2, 2, 1, 1), 5.0)
    file["fc.weight"] = torch.ones(1000, 2)
    torch.save(file, tmp_path / "tv.pth")
    net, incompatible, _ = _load(tmp_path / "tv.pth", _Detector(nn.BatchNorm2d))
    assert sorted(incompatible.missing_keys) == ["head.bias", "head.weight"]
    assert incompatible.unexpected_keys == []
    assert net.backbone.bottom_up.stem.conv1.norm.running_mean.tolist() == [4, 4]
    assert net.backbone.bottom_up.res2[0].conv1.weight.eq(5).all()


def test_zoo_addresses_are_spelt_out(monkeypatch, tmp_path):
    from retinanet_ext.lite import checkpointer as checkpoint

    asked = []
    torch.save(_net(2.0).state_dict(), tmp_path / "a.pth")

    def no_network(self, path, *args, **kwargs):
        asked.append(path)
        return str(tmp_path / "a.pth")

    monkeypatch.setattr(checkpoint.HTTPURLHandler, "_get_local_path", no_network)
    for path in ("detectron2://ImageNetPretrained/MSRA/R-50.pkl", "torchvision://resnet18"):
        _load(path)
    assert set(asked) == {
        "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl",
        "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    }
