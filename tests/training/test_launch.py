import json
import os
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from retinanet_ext.d2 import ENGINE, EventStorage, comm, default_argument_parser, get_event_storage
from retinanet_ext.training import launch as launch_module
from retinanet_ext.training.launch import ProcessGroup, first_slurm_host, launch, process_group_from_environment
from retinanet_ext.training.step import TrainStep


def test_torchrun():
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert process_group_from_environment(environment) == ProcessGroup(5, 8, 1, 4)
    with pytest.raises(ValueError, match="LOCAL_RANK, LOCAL_WORLD_SIZE is not; start with torchrun"):
        process_group_from_environment({"RANK": "0", "WORLD_SIZE": "2"})


def test_srun():
    environment = {"SLURM_PROCID": "9", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "1"}
    environment["SLURM_STEP_TASKS_PER_NODE"] = "8(x2)"
    assert process_group_from_environment(environment) == ProcessGroup(9, 16, 1, 8)


def test_a_batch_script_is_not_a_process_group():
    # sbatch sets these for the script itself; only srun starts the tasks.
    assert process_group_from_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}) is None
    assert process_group_from_environment({}) is None


def test_one_process_needs_no_group():
    environment = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    assert process_group_from_environment(environment) is None
    seen = []
    launch(seen.append, flags())
    assert seen == [flags()] and not dist.is_initialized()


@pytest.mark.parametrize(
    "nodes, host", [("gpu[03-05,9],x1", "gpu03"), ("n1,n2", "n1"), ("node-7", "node-7"), ("a-b[7]", "a-b7")]
)
def test_first_host_of_slurms_list(nodes, host):
    assert first_slurm_host(nodes) == host


def flags(*words: str) -> Namespace:
    return default_argument_parser().parse_args(list(words))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-machines", "2", "--machine-rank", "2"], "machine-rank is 2; legal: 0 to 1"),
        (["--num-machines", "0"], "at least 1"),
        (["--num-gpus", "-1"], "at least 1"),
        (["--num-gpus", "0", "--num-machines", "2"], "one process on one machine"),
        # Detectron2's parser fills in an address on this machine, which other machines cannot reach.
        (["--num-machines", "2"], "needs the same --dist-url"),
        (["--num-machines", "2", "--dist-url", "auto"], "needs the same --dist-url"),
    ],
)
def test_contradicting_flags_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        launch(print, flags(*words))


def test_no_gpu_is_one_process():
    ran = []
    launch(lambda args: ran.append((args.num_gpus, comm.get_world_size(), comm.get_rank())), flags("--num-gpus", "0"))
    assert ran == [(0, 1, 0)]


def test_flags_that_contradict_the_launcher(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="--num-gpus 2 starts processes"):
        launch(print, Namespace(num_gpus=2))


class _Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return {"loss": (self.weight * x).sum(), "other": self.weight.sum()}


def _train(batch):
    model = DistributedDataParallel(_Scale())
    step = TrainStep(model, [batch], torch.optim.SGD(model.parameters(), lr=1.0), storage=get_event_storage)
    with EventStorage(0) as storage:
        try:
            step.run_step()
        except FloatingPointError as error:
            return str(error), model.module.weight.item()
    return {name: value for name, (value, _) in storage.latest().items()}, model.module.weight.item()


def _two_processes_work_together(args):
    rank = comm.get_rank()
    metrics, weight = _train(torch.tensor([2.0 + 2 * rank]))
    error, weight_before_error = _train(torch.tensor([float("nan") if rank == 1 else 1.0]))
    report = {
        "place": [rank, comm.get_world_size(), comm.get_local_rank()],
        "main": comm.is_main_process(),
        "all_gather": comm.all_gather({"rank": rank}),
        "gather": comm.gather(f"from {rank}", dst=1),
        "seed": comm.shared_random_seed(),
        "metrics": metrics,
        "weight": weight,
        "error": error,
        "weight_before_error": weight_before_error,
        "threads": torch.get_num_threads(),
    }
    comm.synchronize()
    with open(os.path.join(args.folder, f"{rank}.json"), "w") as file:
        json.dump(report, file)
    # Finally one process fails while the other waits for it.
    if rank == 1:
        raise KeyError("the cause")
    comm.synchronize()


def test_two_processes_work_together_until_one_fails(tmp_path):
    args = flags("--num-gpus", "2")
    args.folder = str(tmp_path)
    with pytest.raises(mp.ProcessRaisedException, match="KeyError: 'the cause'"):
        launch(_two_processes_work_together, args)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert (first["place"], second["place"]) == ([0, 2, 0], [1, 2, 1])
    assert (first["main"], second["main"]) == (True, False)
    assert first["all_gather"] == second["all_gather"] == [{"rank": 0}, {"rank": 1}]
    assert (first["gather"], second["gather"]) == ([], ["from 0", "from 1"])
    assert first["seed"] == second["seed"]
    # Losses 2 and 4 average to 3; so do gradients (plus 1 from `other`): 1 - (3 + 1).
    for metrics in (first["metrics"], second["metrics"]):
        assert (metrics["loss"], metrics["total_loss"]) == (3.0, 4.0)
    assert first["weight"] == second["weight"] == -3.0
    # Both processes stop before the step, and both name the rank that had the NaN.
    assert first["error"] == second["error"]
    assert "rank 1: loss = nan (all: " in first["error"] and "rank 0" not in first["error"]
    assert first["weight_before_error"] == second["weight_before_error"] == 1.0
    assert first["threads"] == second["threads"] >= 1


@pytest.mark.parametrize(("visible", "gpu", "numbered_together"), [(1, 0, 1), (4, 3, 4)])
def test_a_process_that_sees_one_gpu_uses_it_whatever_its_number(monkeypatch, visible, gpu, numbered_together):
    # srun may show each of four processes a single GPU, which has number 0 in all of them.
    done = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: done.update(gpu=device))
    monkeypatch.setattr(dist, "init_process_group", lambda *args, **kwargs: None)
    monkeypatch.setattr(launch_module.meeting, "meet", lambda *args: (dist.HashStore(), "localhost"))
    monkeypatch.setattr(launch_module.meeting, "check_exchange", lambda device: None)
    monkeypatch.setattr(launch_module, "RankChannel", lambda *args: None)
    monkeypatch.setattr(comm, "create_local_process_group", lambda size: done.update(size=size))
    monkeypatch.setattr(comm, "synchronize", lambda: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch_module._join(ProcessGroup(rank=7, world_size=8, local_rank=3, local_size=4), "env://")
    # Detectron2 gives DistributedDataParallel the process's number in the local group as that of its GPU.
    assert done == {"gpu": gpu, "size": numbered_together if ENGINE == "detectron2" else 4}


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
def test_no_thread_of_a_group_outlives_it():
    # A thread that outlives its group can abort the process at exit, after all work is done.
    code = """
import os
from retinanet_ext.training import launch
from retinanet_ext.d2 import comm
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
launch._join(launch.ProcessGroup(0, 1, 0, 1), "env://")
assert comm.get_local_rank() == 0 and count() > before
launch._leave()
assert count() == before, (before, count())
"""
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    environment["OMP_NUM_THREADS"] = "1"  # setting another number would start PyTorch's own threads
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


@pytest.mark.skipif(ENGINE != "lite", reason="Detectron2's optimizer imports the compiler")
def test_training_imports_neither_the_compiler_of_torch_nor_matplotlib(shapes, tmp_path):
    """Their imports took more than half of the time to the first step."""
    code = (
        "import sys; from retinanet_ext.training.launch import launch, main\n"
        "from retinanet_ext.d2 import default_argument_parser\n"
        "launch(main, default_argument_parser().parse_args())\n"
        "print(sorted({'torch._dynamo', 'sympy', 'torchvision', 'matplotlib'} & set(sys.modules)))"
    )
    form = "{{NAME: tiny_{1}, FORMAT: coco, JSON: {0}/annotations/shapes_{1}.json, IMAGES: {0}/{1}}}"
    data = [form.format(shapes, part) for part in ("train", "val")]
    (tmp_path / "tiny.yaml").write_text(
        "_BASE_: quick/retinanet.yaml\n"
        f"DATASETS: {{CUSTOM: [{', '.join(data)}], TRAIN: ['tiny_train'], TEST: ['tiny_val']}}\n"
        "INPUT: {MIN_SIZE_TRAIN: [96], MIN_SIZE_TEST: 96}\n"
        "TEST: {REPORT: False}\n"  # the page at the end needs matplotlib
        "SOLVER: {IMS_PER_BATCH: 2, MAX_ITER: 2, AMP: {ENABLED: True}}\n"
    )
    command = [sys.executable, "-c", code, "--config-file", str(tmp_path / "tiny.yaml"), "OUTPUT_DIR", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_config_of_the_package_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--config-file", "Base-RetinaNet.yaml", "OUTPUT_DIR", str(tmp_path / "run"), "DATASETS.TRAIN", "()"]
    args = default_argument_parser().parse_args([*words, "DATASETS.TEST", "()", "MODEL.DEVICE", "cpu"])
    assert launch_module._setup(args).MODEL.META_ARCHITECTURE == "FocalRetinaNet"
