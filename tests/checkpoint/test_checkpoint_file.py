"""A file that one process of a job cannot read is an error in all processes; the others do not wait for it."""

import datetime
import json

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from retinanet_ext.checkpoint.checked_checkpointer import CheckedCheckpointer
from retinanet_ext.checkpoint.checkpoint_file import together
from retinanet_ext.d2 import comm


def test_a_failure_elsewhere_is_an_error_that_names_the_rank():
    assert together(lambda: 7, "no file", lambda message: [message, None]) == 7
    with pytest.raises(RuntimeError, match="no file by another process of the job: rank 1: OSError: gone"):
        together(lambda: 7, "no file", lambda message: [message, "OSError: gone"])


def test_the_others_hear_of_a_failure_here():
    heard = []
    with pytest.raises(ZeroDivisionError):
        together(lambda: 1 / 0, "no file", lambda message: heard.append(message) or [message, None])
    assert heard == ["ZeroDivisionError: division by zero"]


def _load(rank, folder):
    from retinanet_ext.training.launch import _leave as leave_process_group

    dist.init_process_group(
        "gloo", f"file://{folder}/meet", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    comm.create_local_process_group(2)
    found = []
    for path in (f"{folder}/{rank}.pth", f"{folder}/0.pth"):
        try:
            CheckedCheckpointer(torch.nn.Linear(1, 1)).load(path)
            found.append("loaded")
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
    resumed = CheckedCheckpointer(torch.nn.Linear(1, 1), f"{folder}/run")
    resumed.resume_or_load("", resume=True)
    found.append(resumed.get_checkpoint_file())
    comm.synchronize()  # after a failure, the processes still work together
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(found, file)
    # Detectron2 keeps references to the groups; threads of a group that outlives the interpreter abort the process.
    leave_process_group()


def test_no_process_waits_for_one_that_cannot_read_its_file(tmp_path):
    torch.save(torch.nn.Linear(1, 1).state_dict(), tmp_path / "0.pth")
    (tmp_path / "1.pth").write_bytes(b"half a fi")
    for iteration in (1, 2):
        CheckedCheckpointer(torch.nn.Linear(1, 1), str(tmp_path / "run")).save(f"model_{iteration}")
    (tmp_path / "run" / "model_2.pth").write_bytes(b"half a fi")
    mp.start_processes(_load, nprocs=2, args=(str(tmp_path),), start_method="spawn")
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first[0].startswith("RuntimeError: checkpoint ") and "rank 1: ValueError: " in first[0]
    assert second[0].startswith("ValueError: ") and "1.pth cannot be read" in second[0]
    assert first[1] == second[1] == "loaded"
    assert first[2] == second[2] == str(tmp_path / "run" / "model_1.pth")
