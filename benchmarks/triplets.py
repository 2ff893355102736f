"""Selecting triplets in a batch and the loss over them, forward and backward: this package, and its plain form as a
list of triplets, beside pytorch-metric-learning's miners and loss.

python -m benchmarks.triplets                    # the batch of the FaceNet paper: 45 identities of 40 images, D = 128
python -m benchmarks.triplets --identities 8 --images 4 --memory-limit 4

Every row runs in a process of its own, because some take many gigabytes. A row that does not fit says so.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from benchmarks.measure import (
    PROC_STATUS,
    Case,
    make_parser,
    median,
    print_header,
    status_mib,
    time_in_turns,
    version,
    write_json,
)
from retinanet_ext.embedding.embedding_losses import TripletLoss
from retinanet_ext.embedding.pooling import l2_normalize
from retinanet_ext.embedding.selection import TRIPLET_SELECTION_REGISTRY, select_triplets
from retinanet_ext.losses.triplet import triplet_loss

SELECTIONS = ("semi_hard", "batch_hard", "batch_all")
ROWS = ("this package", "plain form", "pytorch-metric-learning")
MARGIN = 0.2
# Largest relative difference of loss and gradient that counts as rounding.
TOLERANCE = 1e-4
# Rows that compute something else: the library's loss is over every semi-hard negative of a pair, not the nearest one.
OTHER_MEANING = {("semi_hard", "pytorch-metric-learning")}


# ---- one row, in its process


def make_batch(settings: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings ``(B, D)`` whose identities are told apart in part, and identities ``(B,)``."""
    generator = torch.Generator().manual_seed(0)
    identities = torch.arange(settings.identities).repeat_interleave(settings.images)
    centres = torch.randn(settings.identities, settings.dim, generator=generator)
    embeddings = centres[identities] + 1.5 * torch.randn(len(identities), settings.dim, generator=generator)
    return l2_normalize(embeddings).to(settings.device), identities.to(settings.device)


def loss_function(row: str, selection: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The loss of embeddings ``(B, D)`` and identities ``(B,)``, selection included."""
    if row == "this package":
        module = TripletLoss(MARGIN, TRIPLET_SELECTION_REGISTRY.get(selection)())
        return lambda embeddings, identities: module(embeddings, identities)[0]["loss_triplet"]
    if row == "plain form":
        return lambda embeddings, identities: triplet_loss(
            embeddings, select_triplets(selection, embeddings, identities, MARGIN), MARGIN
        )
    from pytorch_metric_learning import distances, losses, miners, reducers

    squared = distances.LpDistance(normalize_embeddings=False, power=2)
    loss = losses.TripletMarginLoss(margin=MARGIN, distance=squared, reducer=reducers.MeanReducer())
    if selection == "batch_hard":
        miner = miners.BatchHardMiner(distance=squared)
    else:
        kind = {"semi_hard": "semihard", "batch_all": "all"}[selection]
        miner = miners.TripletMarginMiner(margin=MARGIN, type_of_triplets=kind, distance=squared)
    return lambda embeddings, identities: loss(embeddings, identities, miner(embeddings, identities))


def run_row(row: str, selection: str, settings: argparse.Namespace) -> dict[str, Any]:
    """Loss and gradient (as nested lists), seconds per round and memory of one row."""
    torch.set_num_threads(settings.threads)
    embeddings, identities = make_batch(settings)
    embeddings.requires_grad_()
    compute = loss_function(row, selection)

    def step():
        embeddings.grad = None
        loss = compute(embeddings, identities)
        loss.backward()
        return loss.item()

    case = Case(row, step)
    try:
        loss = step()
        time_in_turns([case], settings.repeats, settings.device)
    # The allocators of PyTorch raise RuntimeError, on CUDA a subclass.
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        return {"row": row, "error": "out of memory"}
    gradient = embeddings.grad.cpu().tolist()
    return {"row": row, "loss": loss, "gradient": gradient, "seconds": case.seconds, "peak_mib": case.peak_mib}


def limit_memory(gib: float) -> None:
    """Make allocations fail, on Linux, that take this process ``gib`` beyond what it has now."""
    if PROC_STATUS.exists():
        limit = int(status_mib("VmSize") * 2**20 + gib * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


# ---- all rows


def measure(selection: str, settings: argparse.Namespace) -> list[dict[str, Any]]:
    """The results of all rows of a selection; ``difference`` is that of loss and gradient from the first row.

    Raises:
        RuntimeError: a row of the same meaning gives another loss or gradient.
    """
    results = []
    for row in settings.rows:
        command = [sys.executable, "-m", "benchmarks.triplets", "--child", row, selection, json.dumps(vars(settings))]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode < 0:  # killed, usually for its memory
            results.append({"row": row, "error": f"killed by signal {-done.returncode}"})
            continue
        if done.returncode:
            raise RuntimeError(f"{row}, {selection}: exit status {done.returncode}; see the error above")
        results.append(json.loads(done.stdout.splitlines()[-1]))
    compare(selection, results)
    return results


def compare(selection: str, results: Sequence[dict[str, Any]]) -> None:
    """Fill in ``difference`` and remove ``gradient``."""
    finished = [result for result in results if "error" not in result]
    gradients = [np.array(result.pop("gradient")) for result in finished]
    for result, gradient in zip(finished, gradients):
        if (selection, result["row"]) in OTHER_MEANING:
            continue
        largest = np.abs(gradients[0]).max()
        difference = max(
            abs(result["loss"] / finished[0]["loss"] - 1), float(np.abs(gradient - gradients[0]).max() / largest)
        )
        if not difference <= TOLERANCE:
            raise RuntimeError(f"{selection}: {result['row']} differs from {finished[0]['row']} by {difference:.1e}")
        result["difference"] = difference


def format_results(selection: str, results: Sequence[dict[str, Any]]) -> str:
    lines = []
    for result in results:
        line = {selection: result["row"]}
        if "error" in result:
            line["time, ms"] = result["error"]
        else:
            line["time, ms"] = median(1000 * np.array(result["seconds"]))
            line["memory, MiB"] = "" if result["peak_mib"] is None else f"{result['peak_mib']:.0f}"
            line["difference"] = f"{result['difference']:.0e}" if "difference" in result else "another meaning"
        lines.append(line)
    return tabulate(lines, headers="keys", tablefmt="github", disable_numparse=True)


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser("triplet selection with its loss, forward and backward", repeats=5)
    parser.add_argument("--identities", type=int, default=45)
    parser.add_argument("--images", type=int, default=40, help="images per identity")
    parser.add_argument("--dim", type=int, default=128, help="numbers per embedding")
    parser.add_argument("--memory-limit", type=float, default=12.0, help="GiB that a row may take on a CPU")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    if words[:1] == ["--child"]:
        row, selection, settings = words[1], words[2], argparse.Namespace(**json.loads(words[3]))
        if settings.device == "cpu":
            limit_memory(settings.memory_limit)
        print(json.dumps(run_row(row, selection, settings)))
        return
    settings, tables = parse_arguments(words), {}
    library = version("pytorch-metric-learning")
    if library == "not installed":
        settings.rows = [row for row in settings.rows if row != "pytorch-metric-learning"]
    header = print_header(settings, **{"pytorch-metric-learning": library})
    for selection in SELECTIONS:
        tables[selection] = measure(selection, settings)
        print(format_results(selection, tables[selection]), end="\n\n", flush=True)
    write_json(settings.json, {"header": header, "tables": tables})


if __name__ == "__main__":
    main()
