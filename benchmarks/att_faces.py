"""Train FaceNet on 30 of the 40 people of the AT&T faces, and tell the other 10 apart: the whole way on real data.

For each seed: a split of the people, a training run from scratch, then on the 100 pictures of the 10 people

- verification: all 450 pairs of the same person and as many of different ones, in 10 folds, drawn by the seed; and VAL
  at FAR 1 % on all 4,950 pairs;
- clustering, at the threshold that verification selects on the first five of the people, scored on the other five, and
  the other way round;
- the same with embeddings as 128 bytes;
- beside: pixels, and plain PCA of the training pictures ("eigenfaces").
"""

import argparse
import json
import random
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from tabulate import tabulate

import retinanet_ext
from retinanet_ext.config.loading import load_config
from retinanet_ext.embedding.clustering import cluster, clustering_scores
from retinanet_ext.embedding.codes import decode, encode
from retinanet_ext.embedding.pairs import draw_pairs
from retinanet_ext.embedding.verification import evaluate, pair_distances
from retinanet_ext.training.trainer import Trainer

CONFIG = "embedding/att_faces_nn4.yaml"
PCA_DIMENSIONS = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with s1 to s40")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("output/att_faces"))
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config")
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        rows += [{"seed": seed, **row} for row in measure(arguments, seed)]
        (arguments.output / "results.json").write_text(json.dumps(rows, indent=1))
    print(tabulate(rows + means(rows), headers="keys", floatfmt=".1f"))


def measure(arguments: argparse.Namespace, seed: int) -> list[dict]:
    """One row of figures for each kind of embedding."""
    train, test = split_people(arguments.data, seed)
    start = time.perf_counter()
    output = arguments.output / f"seed_{seed}"
    embedder = train_embedder(arguments, seed, train, test, output)
    minutes = (time.perf_counter() - start) / 60
    files, people = pictures(arguments.data, test)
    embeddings = embedder(files).numpy()
    training_pixels, pixels = gray_vectors(pictures(arguments.data, train)[0]), gray_vectors(files)
    mean = training_pixels.mean(axis=0)
    axes = np.linalg.svd(training_pixels - mean, full_matrices=False)[2][:PCA_DIMENSIONS]
    return [
        {"embeddings": "NN4", **figures(embeddings, people, seed), "minutes": minutes},
        {"embeddings": "NN4, 128 bytes", **figures(decode(encode(embeddings)), people, seed)},
        {"embeddings": "PCA", **figures(unit((pixels - mean) @ axes.T), people, seed)},
        {"embeddings": "pixels", **figures(unit(pixels - mean), people, seed)},
    ]


def split_people(root: Path, seed: int) -> tuple[list[str], list[str]]:
    names = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    if len(names) != 40:
        raise SystemExit(f"{root} has {len(names)} folders; the AT&T faces have 40, s1 to s40")
    random.Random(seed).shuffle(names)
    return sorted(names[:30]), sorted(names[30:])


def train_embedder(arguments: argparse.Namespace, seed: int, train: list[str], test: list[str], output: Path):
    pairs = {"SAME": "all", "DIFFERENT": 450, "FOLDS": 10, "SEED": seed}
    common = {"FORMAT": "identities", "ROOT": str(arguments.data.resolve())}
    custom = [
        {"NAME": f"att_train_{seed}", **common, "IDENTITIES": train},
        {"NAME": f"att_test_{seed}", **common, "IDENTITIES": test, "PAIRS": pairs},
    ]
    names = ["DATASETS.TRAIN", f"('att_train_{seed}',)", "DATASETS.TEST", f"('att_test_{seed}',)"]
    opts = [*names, "DATASETS.CUSTOM", str(custom), "SEED", str(seed), "OUTPUT_DIR", str(output), *arguments.opts]
    cfg = load_config(CONFIG, opts)
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(cfg.dump())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    Trainer(cfg).train()
    return retinanet_ext.load(output, device=cfg.MODEL.DEVICE)


def pictures(root: Path, names: list[str]) -> tuple[list[str], np.ndarray]:
    """Files of people, and the number of the person of each."""
    files = [str(file) for name in names for file in sorted((root / name).glob("*.pgm"))]
    return files, np.repeat(np.arange(len(names)), 10)


def gray_vectors(files: list[str]) -> np.ndarray:
    """All pixels of each image, float32 ``(N, H * W)``."""
    images = [cv2.imread(file, cv2.IMREAD_GRAYSCALE) for file in files]
    return np.stack(images).reshape(len(files), -1).astype(np.float32)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def figures(embeddings: np.ndarray, people: np.ndarray, seed: int) -> dict[str, float]:
    """Verification and clustering of embeddings ``(N, D)`` of length 1, in percent."""
    balanced = verification(embeddings, people, seed, different=450)
    every = verification(embeddings, people, seed, different="all")
    scores = [clustered(embeddings, people, half) for half in (people < 5, people >= 5)]
    at = every.val_at_far[0]
    return {
        "accuracy": 100 * balanced.accuracy,
        "± error": 100 * balanced.accuracy_error,
        "VAL at FAR 1 %": 100 * at.val,
        "AUC": 100 * every.roc.auc,
        "EER": 100 * every.roc.eer,
        "pairwise F1": 100 * np.mean([score.pairwise_f1 for score in scores]),
        "B-cubed F1": 100 * np.mean([score.bcubed_f1 for score in scores]),
    }


def verification(embeddings: np.ndarray, people: np.ndarray, seed: int, different):
    pairs, first, second = drawn_pairs(people, seed, different)
    distances = pair_distances(embeddings, np.stack([first, second], axis=1))
    return evaluate(distances, pairs.same, pairs.fold, fars=(0.01,))


def drawn_pairs(people: np.ndarray, seed: int, different):
    ids = [str(index) for index in range(len(people))]
    pairs = draw_pairs(ids, people.tolist(), same="all", different=different, folds=10, seed=seed)
    return pairs, np.array(pairs.first, dtype=int), np.array(pairs.second, dtype=int)


def clustered(embeddings: np.ndarray, people: np.ndarray, known: np.ndarray):
    """Scores of the people that are not ``known``, at the threshold of highest accuracy for those that are."""
    threshold = verification(embeddings[known], people[known], 0, different="all").threshold
    return clustering_scores(cluster(embeddings[~known], threshold), people[~known])


def means(rows: list[dict]) -> list[dict]:
    kinds = list(dict.fromkeys(row["embeddings"] for row in rows))
    keys = [key for key in rows[0] if key not in ("seed", "embeddings")]
    groups = {kind: [row for row in rows if row["embeddings"] == kind] for kind in kinds}
    return [
        {"seed": "mean", "embeddings": kind}
        | {key: np.mean([row[key] for row in group]) for key in keys if key in group[0]}
        for kind, group in groups.items()
    ]


if __name__ == "__main__":
    main()
