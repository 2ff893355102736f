import logging
import os
import pickle
from urllib.error import URLError

import pytest
import torch

from retinanet_ext.checkpoint.weights import load_weights
from retinanet_ext.d2 import build_model
from tests.builders import small_config


@pytest.fixture
def model():
    return build_model(small_config())


def save(model, path, **changes):
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    weights.update({k: v for k, v in changes.items() if v is not None})
    for name in [k for k, v in changes.items() if v is None]:
        del weights[name]
    torch.save({"model": weights}, path)
    return str(path)


def test_everything_fits(model, tmp_path):
    path = save(model, tmp_path / "a.pth")
    other = build_model(small_config())
    report = load_weights(other, path)
    assert set(report.loaded) == set(model.state_dict()) and not (report.missing or report.unexpected)
    for name, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_report_by_part(model, tmp_path, caplog):
    changes = {"head.cls_score.weight": torch.zeros(27 * 2, 32, 3, 3), "head.cls_score.bias": None}
    path = save(model, tmp_path / "a.pth", **changes, **{"roi_heads.fc.weight": torch.zeros(2)})
    with caplog.at_level(logging.INFO):
        report = load_weights(build_model(small_config()), path)
    assert report.wrong_shape == ["head.cls_score.weight"]
    assert report.missing == ["head.cls_score.bias"]
    assert report.unexpected == ["roi_heads.fc.weight"]
    table = {line.split()[0]: line.split()[1:] for line in report.table().splitlines()[2:]}
    assert table["head.cls_score"] == ["0", "1", "1", "0"]  # loaded, missing, wrong shape, unexpected
    assert table["roi_heads.fc"] == ["0", "0", "0", "1"]


def test_checkpoint_without_the_normaliser_misses_nothing(model, tmp_path):
    path = save(model, tmp_path / "a.pth", **{"loss_normalizer.average": None})
    report = load_weights(build_model(small_config()), path)
    assert not (report.missing or report.unexpected or report.wrong_shape)


@pytest.mark.parametrize("norm", ["GN", "BN", "FrozenBN"])
def test_nothing_of_the_backbone_is_an_error(norm, tmp_path):
    # Norms fill in some of their buffers themselves; these buffers must not count as loaded.
    torch.save({"model": {"head.bbox_pred.bias": torch.zeros(36)}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="a.pth holds nothing that fits the model's backbone"):
        load_weights(build_model(small_config("MODEL.RESNETS.NORM", norm)), str(tmp_path / "a.pth"))


def test_inference_needs_every_parameter(model, tmp_path):
    path = save(model, tmp_path / "a.pth", **{"head.cls_score.bias": None, "loss_normalizer.average": None})
    with pytest.raises(ValueError, match=r"not loaded: head.cls_score.bias \(1 in all\)"):
        load_weights(model, path, strict=True)
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        load_weights(model, "", strict=True)
    complete = save(model, tmp_path / "b.pth", **{"loss_normalizer.average": None})
    assert load_weights(model, complete, strict=True) is not None


@pytest.mark.parametrize("name", ["noise.pth", "noise.pkl", "noise.safetensors", "list.pth", "nested.pth", "gone.pth"])
def test_files_that_are_no_checkpoint_are_named(model, tmp_path, name):
    for suffix in (".pth", ".pkl", ".safetensors"):
        (tmp_path / f"noise{suffix}").write_bytes(bytes(range(256)) * 8)
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "nested.pth")
    # A missing file: FileNotFoundError on lite, ValueError on Detectron2, which asserts.
    with pytest.raises((ValueError, FileNotFoundError), match=f"{name}(.|\n)*MODEL.WEIGHTS"):
        load_weights(model, str(tmp_path / name))


class _RunsCode:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (self.canary,)


def test_a_pickle_runs_no_code_on_either_engine(model, tmp_path):
    canary = str(tmp_path / "canary")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"model": {"a": _RunsCode(canary)}}))
    with pytest.raises(ValueError, match="evil.pkl cannot be loaded: .*mkdir"):
        load_weights(model, str(tmp_path / "evil.pkl"))
    assert not os.path.exists(canary)


def test_a_pickle_of_arrays_loads_on_either_engine(model, tmp_path):
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))
    report = load_weights(build_model(small_config()), str(tmp_path / "zoo.pkl"))
    assert set(report.loaded) == set(arrays)


def test_no_weights_asked_for(model):
    assert load_weights(model, "") is None


def test_weights_of_a_backbone_alone_find_their_place_on_either_engine(model, tmp_path):
    weights = {name: torch.full_like(value, 0.5) for name, value in model.backbone.bottom_up.state_dict().items()}
    torch.save(weights, tmp_path / "backbone.pth")
    report = load_weights(model, f"{tmp_path}/backbone.pth?matching_heuristics=True")
    assert not report.unexpected
    assert all(value.eq(0.5).all() for value in model.backbone.bottom_up.state_dict().values())


def test_a_download_that_fails_says_how_to_do_without(monkeypatch):
    def fail(*_):
        raise URLError("Name or service not known")

    monkeypatch.setattr("retinanet_ext.checkpoint.weights.CheckedCheckpointer.load", fail)
    with pytest.raises(ValueError, match="model.pkl cannot be loaded: URLError.*\n.*set MODEL.WEIGHTS to its path"):
        load_weights(build_model(small_config()), "detectron2://model.pkl")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["head.cls_score.bias", "backbone.bottom_up.stem.conv1.norm.running_var"])
@pytest.mark.parametrize("strict", [True, False])
def test_weights_and_buffers_that_are_not_finite_are_refused(tmp_path, name, value, strict):
    model = build_model(small_config("MODEL.RESNETS.NORM", "BN"))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    bad = before[name].clone()
    bad[0] = value
    path = save(model, tmp_path / "a.pth", **{name: bad})
    with pytest.raises(ValueError, match=f"a.pth holds NaN or infinite weights, first in {name} "):
        load_weights(model, path, strict=strict)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_what_the_model_does_not_have_may_be_anything(model, tmp_path):
    path = save(model, tmp_path / "a.pth", **{"other.weight": torch.tensor([float("nan")])})
    assert load_weights(model, path, strict=True).unexpected == ["other.weight"]


@pytest.mark.parametrize("value", [torch.zeros(27, dtype=torch.int64), torch.zeros(27, dtype=torch.bool)])
def test_numbers_of_another_kind_are_refused(model, tmp_path, value):
    path = save(model, tmp_path / "a.pth", **{"head.cls_score.bias": value})
    kind = str(value.dtype)
    with pytest.raises(ValueError, match=f"type {kind} for head.cls_score.bias; the model has torch.float32"):
        load_weights(model, path)


@pytest.mark.parametrize("value", [None, torch.ones(3)], ids=["missing", "misshaped"])
def test_inference_needs_every_buffer(tmp_path, value):
    name = "backbone.bottom_up.stem.conv1.norm.running_var"
    model = build_model(small_config("MODEL.RESNETS.NORM", "BN"))
    path = save(model, tmp_path / "a.pth", **{name: value})
    with pytest.raises(ValueError, match=rf"not loaded: {name} \(1 in all\)"):
        load_weights(model, path, strict=True)
    load_weights(model, path)  # training may start from it


def test_half_precision_and_absent_pixel_means_load(model, tmp_path):
    halves = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    torch.save({name: value for name, value in halves.items() if not name.startswith("pixel_")}, tmp_path / "a.pth")
    load_weights(model, str(tmp_path / "a.pth"), strict=True)
