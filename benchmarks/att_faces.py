"""Train FaceNet on 30 of the 40 people of the AT&T faces, and tell the other 10 apart: the whole way on real data.

For each seed: a split of the people, a training run from scratch, then on the 100 pictures of the 10 people

- verification: all 450 pairs of the same person and as many of different ones, in 10 folds, drawn by the seed; and
  accuracy and VAL at FAR 1 % on all 4,950 pairs, in 10 folds of equal shares ("different" to all is right for 90.9 %);
- clustering, at the threshold that verification selects on the first five of the people, scored on the other five, and
  the other way round;
- the same with embeddings as 128 bytes;
- beside: pixels, and plain PCA of the training pictures ("eigenfaces").

With --harmonic also an older model, v1, trained on half of the 30 people for a third of the time, and the same NN4
trained to be comparable with it in two stages: v1 with v1, v2 with v1, v2 with v2, on the first pairs.
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
    parser.add_argument("--harmonic", action="store_true", help="train harmonic embeddings, too")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config")
    arguments = parser.parse_args()
    rows, harmonic = [], []
    for seed in arguments.seeds:
        rows += [{"seed": seed, **row} for row in measure(arguments, seed)]
        if arguments.harmonic:
            harmonic += [{"seed": seed, **row} for row in measure_harmonic(arguments, seed)]
        results = {"embeddings": rows, "harmonic": harmonic}
        (arguments.output / "results.json").write_text(json.dumps(results, indent=1))
    for table in filter(None, (rows, harmonic)):
        print(tabulate(table + means(table), headers="keys", floatfmt=".1f"), end="\n\n")


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


def train_embedder(arguments: argparse.Namespace, seed: int, train: list[str], test: list[str], output: Path, opts=()):
    """Train on the people of ``train`` and evaluate on those of ``test``; ``opts`` are overrides of the config."""
    pairs = {"SAME": "all", "DIFFERENT": 450, "FOLDS": 10, "SEED": seed}
    common = {"FORMAT": "identities", "ROOT": str(arguments.data.resolve())}
    name = f"att_{seed}_{len(train)}"  # data of different people need different names
    custom = [
        {"NAME": f"{name}_train", **common, "IDENTITIES": train},
        {"NAME": f"{name}_test", **common, "IDENTITIES": test, "PAIRS": pairs},
    ]
    names = ["DATASETS.TRAIN", f"('{name}_train',)", "DATASETS.TEST", f"('{name}_test',)"]
    words = [*names, "DATASETS.CUSTOM", str(custom), "SEED", str(seed), "OUTPUT_DIR", str(output)]
    cfg = load_config(CONFIG, [*words, *arguments.opts, *opts])
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(cfg.dump())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return retinanet_ext.load(output, device=cfg.MODEL.DEVICE)


def measure_harmonic(arguments: argparse.Namespace, seed: int) -> list[dict]:
    """Rows for v1 with v1, v2 with v1 and v2 with v2; v2 starts from the run of :func:`measure`."""
    train, test = split_people(arguments.data, seed)
    folder = arguments.output / f"seed_{seed}"
    steps = load_config(CONFIG, arguments.opts, datasets=False).SOLVER.MAX_ITER
    third = ["SOLVER.MAX_ITER", str(steps // 3), "SOLVER.CHECKPOINT_PERIOD", str(steps)]
    warmup = ["MODEL.EMBEDDING.WARMUP.ITERS", str(steps // 6)]
    train_embedder(arguments, seed, train[::2], test, folder / "v1", [*third, *warmup])
    weights = folder / "model_final.pth"
    for stage in ("embedding", "network"):
        opts = ["MODEL.META_ARCHITECTURE", "HarmonicFaceNet", "MODEL.EMBEDDING.HARMONIC.STAGE", stage]
        opts += ["MODEL.EMBEDDING.HARMONIC.V1", str(folder / "v1"), "MODEL.WEIGHTS", str(weights)]
        opts += ["MODEL.EMBEDDING.WARMUP.LOSS", ""]
        train_embedder(arguments, seed, train, test, folder / stage, [*third, *opts])
        weights = folder / stage / "model_final.pth"
    results = json.loads((folder / "network" / "results.json").read_text())
    kinds = {"v1 with v1": "verification_v1", "v2 with v1": "verification_v1_v2", "v2 with v2": "verification"}
    metrics = {"accuracy": "accuracy", "± error": "accuracy_error", "AUC": "AUC", "EER": "EER"}
    return [
        {"embeddings": kind, **{name: results[entry][metric] for name, metric in metrics.items()}}
        for kind, entry in kinds.items()
    ]


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
        "all pairs": 100 * every.accuracy,
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
