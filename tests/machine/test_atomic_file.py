"""Files appear under their name only when they are whole, also if several processes write the same one."""

import json
import os

import pytest

from retinanet_ext.data import checked_records
from retinanet_ext.data.checked_records import dataset_for_evaluation
from retinanet_ext.machine.atomic_file import atomic_file, write_atomically
from tests.data.coco_faults import annotation, config, register, write


def test_after_an_error_the_earlier_file_is_whole(tmp_path):
    write_atomically(tmp_path / "new" / "file", "before")
    with pytest.raises(KeyError), atomic_file(tmp_path / "new" / "file") as file:
        file.write(b"half")
        raise KeyError
    assert (tmp_path / "new" / "file").read_text() == "before" and len(os.listdir(tmp_path / "new")) == 1


def test_processes_that_write_the_same_file_do_not_meet(tmp_path, monkeypatch):
    with atomic_file(tmp_path / "file", shared=True) as slow:
        slow.write(b"who")
        monkeypatch.setattr(os, "getpid", lambda: -1)
        write_atomically(tmp_path / "file", "whole", shared=True)
        assert (tmp_path / "file").read_text() == "whole"
        slow.write(b"le")
    assert (tmp_path / "file").read_text() == "whole" and os.listdir(tmp_path) == ["file"]


def test_the_file_of_an_evaluation_may_be_written_by_all_processes(tmp_path, monkeypatch):
    write(tmp_path, [annotation(1), annotation(2, bbox=[5, 5, 0, 0])])
    register(tmp_path, "config")
    cfg = config(tmp_path, policy="drop", train=(), test=("data",))

    def write_while_another_writes(path, text, **options):
        with monkeypatch.context() as other, atomic_file(path, **options) as slow:
            slow.write(text.encode())
            other.setattr(os, "getpid", lambda: -1)
            write_atomically(path, text, **options)

    monkeypatch.setattr(checked_records, "write_atomically", write_while_another_writes)
    dataset_for_evaluation(cfg, "data")
    (path,) = (tmp_path / "out").rglob("*.json")
    assert len(json.loads(path.read_text())["annotations"]) == 1
