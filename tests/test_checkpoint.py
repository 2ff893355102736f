import logging

import pytest
import torch

from retinanet_ext.checkpoint import load_weights
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


def test_nothing_of_the_backbone_is_an_error(model, tmp_path):
    torch.save({"model": {"head.bbox_pred.bias": torch.zeros(36)}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="a.pth holds nothing that fits the model's backbone"):
        load_weights(model, str(tmp_path / "a.pth"))


def test_no_weights_asked_for(model):
    assert load_weights(model, "") is None
