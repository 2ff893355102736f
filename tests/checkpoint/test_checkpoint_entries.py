"""Entries of a checkpoint: added without a change to the others, and tolerated by everything that loads the file."""

import os

import pytest
import torch

from retinanet_ext.checkpoint import checkpoint_writing
from retinanet_ext.checkpoint.checked_checkpointer import CheckedCheckpointer
from retinanet_ext.checkpoint.checkpoint_entries import check_takes_entries, read_entry, write_entry
from retinanet_ext.checkpoint.weights import load_weights

ENTRY = {"threshold": 0.5, "unsure": [0.5, 0.7], "groups": {"a": {"far": None}}}


def trained(folder, generator):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.rand(5, 3, generator=generator)).sum().backward()
    optimizer.step()
    CheckedCheckpointer(model, str(folder), optimizer=optimizer).save("model_final", iteration=7)
    return model, optimizer, str(folder / "model_final.pth")


def test_an_entry_is_added_and_replaced_and_the_rest_stays(tmp_path, generator):
    model, optimizer, path = trained(tmp_path, generator)
    before = torch.load(path, weights_only=True)
    write_entry(path, "calibration", {"old": 1})
    write_entry(path, "calibration", ENTRY)
    assert read_entry(path, "calibration") == ENTRY and read_entry(path, "absent") is None
    after = torch.load(path, weights_only=True)
    assert after.pop("calibration") == ENTRY and list(after) == list(before)
    assert after["iteration"] == 7 and str(after["optimizer"]) == str(before["optimizer"])
    assert after["model"]._metadata == before["model"]._metadata
    for name, tensor in before["model"].items():
        assert torch.equal(tensor, after["model"][name])


def test_weights_load_and_a_run_resumes_with_the_entry(tmp_path, generator):
    model, optimizer, path = trained(tmp_path, generator)
    write_entry(path, "calibration", ENTRY)
    fresh = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    report = load_weights(fresh, path, strict=True)
    assert not report.missing and not report.unexpected and torch.equal(fresh[0].weight, model[0].weight)
    again = torch.optim.SGD(fresh.parameters(), lr=0.1, momentum=0.9)
    rest = CheckedCheckpointer(fresh, str(tmp_path), optimizer=again).resume_or_load("", resume=True)
    assert rest["iteration"] == 7
    expected = optimizer.state_dict()["state"][0]["momentum_buffer"]
    assert torch.equal(again.state_dict()["state"][0]["momentum_buffer"], expected)


def test_bare_weights_move_under_model_and_a_link_stays_a_link(tmp_path):
    torch.save({"weight": torch.ones(2)}, tmp_path / "bare.pth")
    os.symlink("bare.pth", tmp_path / "link.pth")
    write_entry(str(tmp_path / "link.pth"), "calibration", ENTRY)
    content = torch.load(tmp_path / "bare.pth", weights_only=True)
    assert content.keys() == {"model", "calibration"} and torch.equal(content["model"]["weight"], torch.ones(2))
    assert (tmp_path / "link.pth").is_symlink()


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, generator, monkeypatch):
    *_, path = trained(tmp_path, generator)

    def crash(content, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint_writing.torch, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        write_entry(path, "calibration", ENTRY)
    assert torch.load(path, weights_only=True)["iteration"] == 7


def test_other_kinds_of_files_are_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "model.pkl").write_bytes(b"")
    for name in ("model.safetensors", "model.pkl"):
        with pytest.raises(ValueError, match=f"{name}: only .pth and .pt take entries"):
            check_takes_entries(str(tmp_path / name))
        assert read_entry(str(tmp_path / name), "calibration") is None
    with pytest.raises(FileNotFoundError, match="absent.pth"):
        write_entry(str(tmp_path / "absent.pth"), "calibration", ENTRY)
    with pytest.raises(ValueError, match="holds the weights"):
        write_entry(str(tmp_path / "model.pth"), "model", ENTRY)
