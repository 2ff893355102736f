"""Damage to a checkpoint is an error on reading: single bytes, truncation, foreign files, checksums beside the file."""

import hashlib
import io
import logging
import os
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from retinanet_ext.checkpoint.checked_checkpointer import CheckedCheckpointer
from retinanet_ext.checkpoint.checkpoint_file import read_checkpoint
from retinanet_ext.checkpoint.file_checksum import verify_file
from retinanet_ext.d2 import DetectionCheckpointer


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    CheckedCheckpointer(torch.nn.Linear(3, 2), str(tmp_path)).save("model", iteration=7)
    return tmp_path / "model.pth"


def test_the_file_carries_the_sha256_of_all_bytes_before_it(saved):
    data = saved.read_bytes()
    assert data.endswith(b"retinanet_ext sha256 " + hashlib.sha256(data[:-85]).hexdigest().encode())
    assert zipfile.ZipFile(io.BytesIO(data)).comment == data[-85:]
    assert verify_file(str(saved))


def test_torch_and_the_engine_read_the_file(saved):
    content = torch.load(saved, weights_only=True)
    assert content["iteration"] == 7 and content["model"]["weight"].shape == (2, 3)
    model = torch.nn.Linear(3, 2)
    DetectionCheckpointer(model).load(str(saved))
    assert torch.equal(model.weight, content["model"]["weight"])


def test_one_changed_bit_anywhere_is_found(saved):
    data = saved.read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        saved.write_bytes(changed)
        with pytest.raises(ValueError, match="model.pth"):
            read_checkpoint(str(saved))


def test_cut_and_extended_files_are_found(saved):
    data = saved.read_bytes()
    for length in range(0, len(data), 11):
        saved.write_bytes(data[:length])
        with pytest.raises(ValueError, match="model.pth"):
            read_checkpoint(str(saved))
    for changed in (data + b"\0", b"\0" + data, data + data):
        saved.write_bytes(changed)
        with pytest.raises(ValueError, match="model.pth"):
            read_checkpoint(str(saved))


def test_in_a_file_of_plain_torch_the_values_are_covered_by_its_crcs(tmp_path):
    path = tmp_path / "foreign.pth"
    weights = {"model": {"weight": torch.arange(1024.0)}}
    torch.save(weights, path)
    assert torch.equal(read_checkpoint(str(path))["model"]["weight"], torch.arange(1024.0))
    data = path.read_bytes()
    start = data.index(weights["model"]["weight"].numpy().tobytes())
    for place in range(start, start + 4096, 37):
        changed = bytearray(data)
        changed[place] ^= 16
        path.write_bytes(changed)
        with pytest.raises(ValueError, match="foreign.pth is damaged: .*CRC.*another checkpoint"):
            read_checkpoint(str(path))
    for changed in (data[:-1], data + b"\0", b"\0" + data):
        path.write_bytes(changed)
        with pytest.raises(ValueError, match="foreign.pth"):
            read_checkpoint(str(path))


def test_a_changed_byte_of_a_foreign_file_never_changes_what_is_read(tmp_path):
    path = tmp_path / "foreign.pth"
    torch.save({"model": {"weight": torch.arange(8.0)}, "iteration": 5}, path)
    data = path.read_bytes()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            content = read_checkpoint(str(path))
        except ValueError:
            continue
        assert content["iteration"] == 5 and torch.equal(content["model"]["weight"], torch.arange(8.0))


def test_files_without_a_checksum_load_and_say_so_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("retinanet_ext"), "propagate", True)
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors")
    for name in ("old.pth", "a.safetensors"):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            for _ in range(2):
                assert read_checkpoint(str(tmp_path / name))["model"]["w"].tolist() == [1, 1]
        assert caplog.text.count(f"{name} holds no checksum") == 1


@pytest.mark.parametrize("name", ["a.safetensors", "old.pth"])
def test_a_checksum_beside_the_file_covers_any_kind(tmp_path, name):
    path = tmp_path / name
    if name == "old.pth":
        torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    else:
        save_file({"w": torch.ones(2)}, path)
    beside = tmp_path / f"{name}.sha256"
    beside.write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}\n")
    assert verify_file(str(path)) and read_checkpoint(str(path))["model"]["w"].tolist() == [1, 1]
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{name} is damaged: its SHA-256 is .* says"):
        read_checkpoint(str(path))
    beside.write_text("nonsense")
    with pytest.raises(ValueError, match=r"\.sha256 must begin with the 64 hexadecimal digits.*sha256sum"):
        read_checkpoint(str(path))


def test_names_with_a_hash_are_verified(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "x.pth")
    digits = hashlib.sha256((tmp_path / "x.pth").read_bytes()).hexdigest()[:8]
    good, bad, date = (tmp_path / f"net-{end}.pth" for end in (digits, "0676ba6f", "20240101"))
    for path in (good, bad, date):
        path.write_bytes((tmp_path / "x.pth").read_bytes())
    assert verify_file(str(good)) and verify_file(str(date))
    with pytest.raises(ValueError, match="its name says 0676ba6f"):
        verify_file(str(bad))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([1, 2], "holds a list"),
        ({"model": "text"}, "holds a str of weights"),
        ({"model": {"a": "text"}}, "holds a str under 'a'"),
        ({"state_dict": {"a": torch.ones(1)}}, "holds a dict under 'state_dict'"),
        ({"model": {3: torch.ones(1)}}, "under 3"),
    ],
)
def test_what_is_no_dict_of_tensors_is_named(tmp_path, content, found):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=f"a.pth {'' if 'under 3' not in found else '.*'}{found}.*expected"):
        read_checkpoint(str(tmp_path / "a.pth"))


def test_compressed_members_are_refused(tmp_path):
    torch.save({"w": torch.zeros(1000)}, tmp_path / "a.pth")
    old, new = (tmp_path / name for name in ("a.pth", "b.pth"))
    with zipfile.ZipFile(old) as source, zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(ValueError, match="b.pth is damaged: its member .* is compressed"):
        read_checkpoint(str(tmp_path / "b.pth"))


def test_a_missing_file_stays_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_checkpoint(os.path.join(tmp_path, "gone.pth"))


def test_a_file_of_safetensors_may_begin_like_an_archive(tmp_path):
    # The length of the header comes first: 0x4B50 is "PK".
    name = "w" * (0x4B50 - len('{"":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'))
    save_file({name: torch.ones(1)}, tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes().startswith(b"PK")
    assert read_checkpoint(str(tmp_path / "a.safetensors"))["model"][name].tolist() == [1]
