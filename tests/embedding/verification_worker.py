"""One process of two that evaluate verification, for ``test_verification_distributed.py``.

python -m tests.embedding.verification_worker RANK PORT FILE
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import distributed

from retinanet_ext.d2 import DatasetCatalog, MetadataCatalog
from retinanet_ext.embedding.pairs import draw_pairs
from retinanet_ext.embedding.verification_evaluator import VerificationEvaluator

PEOPLE, IMAGES = 5, 3


def records_and_embeddings():
    random = np.random.default_rng(0)
    centers = random.normal(size=(PEOPLE, 6))
    records, embeddings = [], []
    for index in range(PEOPLE * IMAGES):
        person = index // IMAGES
        records.append({"file_name": "", "image_id": f"p{person}/{index}", "identity": person})
        vector = centers[person] + random.normal(size=6)
        embeddings.append(torch.tensor(vector / np.linalg.norm(vector), dtype=torch.float32))
    return records, embeddings


def evaluate(chosen) -> dict:
    """The metrics from the images with the chosen indices."""
    records, embeddings = records_and_embeddings()
    name = "faces_of_two_processes"
    if name not in DatasetCatalog.list():
        DatasetCatalog.register(name, lambda: records)
    ids, people = [r["image_id"] for r in records], [r["identity"] for r in records]
    metadata = MetadataCatalog.get(name)
    if metadata.get("verification_pairs", None) is None:
        metadata.set(verification_pairs=draw_pairs(ids, people, folds=3))
    evaluator = VerificationEvaluator(name)
    for index in chosen:
        evaluator.process([records[index]], [{"embedding": embeddings[index]}])
    return evaluator.evaluate()


def run(rank: int, port: int, output: Path) -> None:
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    # The second process gets the first image again, as a sampler of equal shares gives it.
    found = evaluate(range(8) if rank == 0 else [*range(8, PEOPLE * IMAGES), 0])
    output.with_suffix(f".{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    run(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
