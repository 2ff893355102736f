"""One run: what each of its processes does, and how they are started.

:func:`launch` starts one process or several, or joins those that torchrun or SLURM has started. In each of them,
:func:`main` trains or evaluates.
"""

import datetime
import gc
import logging
import os
import re
import socket
from argparse import Namespace
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist

from retinanet_ext.checkpoint.checked_checkpointer import CheckedCheckpointer
from retinanet_ext.checkpoint.weights import load_weights
from retinanet_ext.config.batch_scaling import say_scaled, scaled_to_batch
from retinanet_ext.config.loading import load_config
from retinanet_ext.config.yaml_files import find_config
from retinanet_ext.d2 import (
    ENGINE,
    CfgNode,
    comm,
    default_argument_parser,
    default_setup,
    setup_logger,
)
from retinanet_ext.inspection.runs.after_run import report_after_run
from retinanet_ext.machine.cpu import usable_cores

from . import run_errors, stops
from .config_linter import check_keys_are_read
from .explained_results import write_intervals
from .processes import meeting
from .processes.rank_channel import RankChannel
from .processes.ranks import run_ranks
from .run_lock import lock_run_folder, release_run_folders, warn_of_holder
from .trainer import Trainer

# How long a process waits for the others in every exchange.
TIMEOUT = datetime.timedelta(minutes=30)

logger = logging.getLogger(__name__)


def main(args: Namespace) -> None:
    """Train the config's model or, with ``--eval-only``, evaluate it.

    Args:
        args: Detectron2's command-line arguments.
    """
    try:
        _train_or_evaluate(args)
    finally:
        release_run_folders()


def _train_or_evaluate(args: Namespace) -> None:
    cfg = _setup(args)
    if args.eval_only:
        evaluate(cfg, args.resume)
    else:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        run_errors.begin_work()
        trainer.train()
    if comm.is_main_process():
        write_intervals(cfg)
        report_after_run(cfg)


def _setup(args: Namespace) -> CfgNode:
    cfg, scaling = scaled_to_batch(load_config(args.config_file, args.opts))
    cfg.freeze()
    if args.config_file:  # Detectron2 copies this file into its log, and knows no configs of this package by name
        args.config_file = find_config(args.config_file)
    # First of all that writes to the folder.
    if args.eval_only:
        warn_of_holder(cfg.OUTPUT_DIR)
    else:
        lock_run_folder(cfg.OUTPUT_DIR, comm.is_main_process(), comm.all_gather)
    default_setup(cfg, args)
    # Detectron2's default_setup sets up Detectron2's log only.
    setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="retinanet_ext")
    run_errors.begin_log(cfg.OUTPUT_DIR, comm.get_rank())
    say_scaled(scaling)
    strict = getattr(args, "strict", False)  # Detectron2's parser has no such flag
    if comm.is_main_process() or strict:
        check_keys_are_read(cfg, args.config_file, args.opts, strict=strict)
    return cfg


def evaluate(cfg: CfgNode, resume: bool) -> dict:
    """Evaluate MODEL.WEIGHTS or, with ``resume``, the last checkpoint in the output folder if one exists."""
    if not cfg.DATASETS.TEST:
        raise ValueError("--eval-only needs a dataset, but DATASETS.TEST names no dataset")
    Trainer.check_test_data(cfg)
    model = Trainer.build_model(cfg)
    checkpointer = CheckedCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    resume = resume and any(comm.all_gather(checkpointer.has_checkpoint()))
    weights = checkpointer.newest_good() if resume else cfg.MODEL.WEIGHTS
    load_weights(model, weights, strict=True)
    run_errors.begin_work()
    results = Trainer.test(cfg, model)
    return {**results, **Trainer.test_with_tta(cfg, model)} if cfg.TEST.AUG.ENABLED else results


class ProcessGroup(NamedTuple):
    """This process's place in the job."""

    rank: int
    world_size: int
    local_rank: int
    local_size: int


# Each launcher's variables for rank, world size, local rank, local size. For SLURM, only variables that srun sets:
# a batch script also has SLURM_PROCID, but runs as a single process.
_VARIABLES = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
}


def process_group_from_environment(environment: Mapping[str, str]) -> ProcessGroup | None:
    """Read the group from the variables of torchrun, else of SLURM's srun; None if neither started several processes.

    Raises:
        ValueError: only some of torchrun's variables are set.
    """
    for launcher, names in _VARIABLES.items():
        missing = [name for name in names if name not in environment]
        if not missing:
            # SLURM writes "8(x2)" for two nodes with eight tasks each.
            group = ProcessGroup(*(int(re.match(r"\d+", environment[name])[0]) for name in names))
            return group if group.world_size > 1 else None
        if launcher == "torchrun" and "WORLD_SIZE" in environment and "RANK" in environment:
            raise ValueError(f"RANK and WORLD_SIZE are set, but {', '.join(missing)} is not; start with torchrun")
    return None


class OtherRankFailed(RuntimeError):
    """This process ended because another one failed first. ``silent``: that one tells the user."""

    by_other_rank = True

    def __init__(self, text: str, code: int, silent: bool) -> None:
        super().__init__(text)
        self.for_user, self.silent = (text, code), silent


def launch(main: Callable[[Namespace], None], args: Namespace, *, handle_stops: bool = False) -> None:
    """Run ``main(args)`` in every process of the run.

    Args:
        main: called once in each process. If several processes are started here, it must be importable by name.
        args: Detectron2's command-line arguments. Unless torchrun or srun has started this process, ``num_gpus``
            processes are started here, for machine ``machine_rank`` of ``num_machines``; they meet at ``dist_url``.
        handle_stops: as a command does, handle signals and ``args.deadline`` in the processes started here; see
            :mod:`retinanet_ext.training.stops`. For this process, the caller has done so.

    Raises:
        ValueError: flags or variables that contradict each other or the launcher.
        torch.multiprocessing.ProcessRaisedException: a process that was started here failed; the error holds its
            traceback. The other processes are stopped.
        torch.multiprocessing.ProcessExitedException: a process that was started here was killed.
        OtherRankFailed: under torchrun or srun, another process failed first.
        StopRequested: the run stopped early.
    """
    group = process_group_from_environment(os.environ)
    if group is not None:
        if args.num_gpus > 1:
            raise ValueError(
                f"--num-gpus {args.num_gpus} starts processes, but torchrun or srun has already started "
                f"{group.world_size}; leave the flag out"
            )
        _set_address()
        try:
            _run_in_group(main, args, group, "env://")
        except Exception as error:
            if hasattr(error, "for_user") and not getattr(error, "by_other_rank", False):
                text, code = error.for_user
                error.for_user = (f"rank {group.rank}: {text}", code)
            raise
        return
    _check_flags(args)
    if args.num_machines * args.num_gpus <= 1:
        main(args)
    else:
        address = _meeting_point(args)
        run_ranks(_run_process, (main, args, address, handle_stops), args.num_gpus, args.machine_rank * args.num_gpus)


def _check_flags(args: Namespace) -> None:
    # As in Detectron2, 0 GPUs mean one process.
    if args.num_gpus < 0 or args.num_machines < 1 or (args.num_gpus == 0 and args.num_machines > 1):
        raise ValueError(
            f"--num-gpus is {args.num_gpus} and --num-machines {args.num_machines}; legal: at least 1, or --num-gpus 0 "
            "for one process on one machine"
        )
    if not 0 <= args.machine_rank < args.num_machines:
        last = args.num_machines - 1
        raise ValueError(f"--machine-rank is {args.machine_rank}; legal: 0 to {last} (--num-machines - 1)")


def _meeting_point(args: Namespace) -> str:
    # Detectron2's parser fills in an address on this machine. With it, two jobs of one user would get the same port.
    if args.dist_url not in (None, "auto", default_argument_parser().get_default("dist_url")):
        return args.dist_url
    if args.num_machines > 1:
        raise ValueError(
            "a job on several machines needs the same --dist-url tcp://<address of machine 0>:<port> on each"
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{probe.getsockname()[1]}"


def _run_process(local_rank: int, main: Callable, args: Namespace, address: str, handle_stops: bool) -> None:
    rank, world_size = args.machine_rank * args.num_gpus + local_rank, args.num_machines * args.num_gpus
    group = ProcessGroup(rank, world_size, local_rank, args.num_gpus)
    if not handle_stops:
        stops.unblock_signals()
        _run_in_group(main, args, group, address)
        return
    run_errors.on_command_line()
    with stops.handled_signals(args.deadline, parent=os.getppid()):
        _run_in_group(main, args, group, address)


def _run_in_group(main: Callable, args: Namespace, group: ProcessGroup, address: str) -> None:
    channel = _join(group, address)
    try:
        main(args)
    except stops.StopRequested as stop:
        stop.silent = group.rank > 0
        if stop.message:  # all processes stop together
            channel.leave()
            _leave()
        else:
            stop.silent = channel.fail(stops.STOPPED_EARLY, stop.reason).rank != group.rank
        raise
    except BaseException as error:
        _fail(channel, error)
        raise
    channel.leave()
    # Leave only after success: after an error, closed connections would make the other processes fail first and hide
    # the cause.
    _leave()


def _fail(channel: RankChannel, error: BaseException) -> None:
    """Tell the other processes, or raise what another one has told before."""
    text, code = run_errors.describe(error)
    first = channel.fail(code, f"rank {channel.rank}: {text}")
    if first.rank == channel.rank:
        error.for_user = (text, code)
    elif first.code == stops.STOPPED_EARLY:
        stop = stops.StopRequested(first.text)
        stop.silent = True
        raise stop from error
    else:
        raise OtherRankFailed(first.text, first.code, not channel.reports()) from error


def _join(group: ProcessGroup, address: str) -> RankChannel:
    backend = "gloo"
    if torch.cuda.is_available():
        # Both backends, because the model's device is not known yet: it may be the CPU even on a machine with GPUs.
        backend = "cpu:gloo,cuda:nccl"
        # A job scheduler may show each process a single GPU, which then has number 0 in every process.
        torch.cuda.set_device(group.local_rank % torch.cuda.device_count())
    if "OMP_NUM_THREADS" not in os.environ:
        # Each process would otherwise start a thread for every core of the machine.
        torch.set_num_threads(max(1, usable_cores() // group.local_size))
    try:
        store, host = meeting.meet(address, group.rank, group.world_size)
        channel = RankChannel(group.rank, group.world_size, store, host)
        joint = dist.PrefixStore("group", store)
        dist.init_process_group(backend, None, TIMEOUT, world_size=group.world_size, rank=group.rank, store=joint)
    except Exception:
        logger.error(
            "process %d of %d could not join the others at %s: is the address reachable, is the port free, were all "
            "processes started?", group.rank, group.world_size, address,
        )  # fmt: skip
        raise
    comm.create_local_process_group(_local_group_size(group))
    # A machine that cannot reach the others fails here, not in the middle of the first iteration.
    meeting.check_exchange(torch.device("cpu"))
    return channel


def _local_group_size(group: ProcessGroup) -> int:
    """How many processes number the GPUs of this machine together: all of them, or only this one, if it sees one GPU.

    Detectron2 takes a process's number in its local group for that of its GPU.
    """
    sees_only_its_own = torch.cuda.is_available() and torch.cuda.device_count() == 1
    return 1 if ENGINE == "detectron2" and sees_only_its_own else group.local_size


def _leave() -> None:
    """End the groups and their threads: a thread that still runs when the interpreter exits aborts the process."""
    # A group keeps its threads as long as anything refers to it. Detectron2 refers to groups in variables and caches; a
    # model in a reference cycle may do so too.
    for name, value in list(vars(comm).items()):
        if isinstance(value, dist.ProcessGroup):
            setattr(comm, name, None)
        elif hasattr(value, "cache_clear"):
            value.cache_clear()
    meeting.forget()
    gc.collect()
    dist.destroy_process_group()


def _set_address() -> None:
    """Set the variables that tell torch.distributed where the processes of torchrun or srun meet."""
    if "MASTER_ADDR" not in os.environ:
        if "SLURM_STEP_NODELIST" not in os.environ:
            raise ValueError("RANK and WORLD_SIZE are set, but MASTER_ADDR is not; start with torchrun, or set it")
        os.environ["MASTER_ADDR"] = first_slurm_host(os.environ["SLURM_STEP_NODELIST"])
    # Jobs that share a node must not share a port.
    os.environ.setdefault("MASTER_PORT", str(20000 + int(os.environ.get("SLURM_JOB_ID", 0)) % 20000))


def first_slurm_host(node_list: str) -> str:
    """The first host of SLURM's compressed list: ``gpu[03-05,9],x1`` begins with ``gpu03``."""
    prefix, number = re.match(r"([^\[,]+)(?:\[(\d+))?", node_list).groups()
    return prefix + (number or "")
