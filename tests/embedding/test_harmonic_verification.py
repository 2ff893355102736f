"""Verification across two models: every pair twice, against a loop."""

import numpy as np
import pytest
import torch

from retinanet_ext.d2 import DatasetCatalog, MetadataCatalog
from retinanet_ext.embedding.harmonic_verification import evaluate_harmonic
from retinanet_ext.embedding.pairs import draw_pairs
from retinanet_ext.embedding.verification import evaluate_reference
from retinanet_ext.embedding.verification_evaluator import VerificationEvaluator


@pytest.fixture
def two_models():
    """Embeddings of 12 images of 4 identities by two models, identities."""
    random = np.random.default_rng(1)
    identities = np.repeat(np.arange(4), 3)
    centers = random.normal(size=(4, 6))
    vectors = centers[identities] + 0.9 * random.normal(size=(2, 12, 6))
    return *(vectors / np.linalg.norm(vectors, axis=2, keepdims=True)).astype(np.float32), identities


def test_across_the_models_each_pair_counts_with_either_image_in_v1(two_models):
    v2, v1, identities = two_models
    indices = np.array([(i, j) for i in range(12) for j in range(i)])
    same, folds = identities[indices[:, 0]] == identities[indices[:, 1]], np.arange(len(indices)) % 3
    found = evaluate_harmonic(v2, v1, indices, same, folds, (0.1,))
    rows = []
    for (i, j), kind, fold in zip(indices, same, folds):
        rows.append((float(np.square(v1[i].astype(float) - v2[j]).sum()), bool(kind), int(fold)))
        rows.append((float(np.square(v2[i].astype(float) - v1[j]).sum()), bool(kind), int(fold)))
    expected = evaluate_reference(*zip(*rows), (0.1,))
    np.testing.assert_allclose(found.v1_v2.accuracies, expected["accuracies"])
    np.testing.assert_allclose(found.v1_v2.val_at_far[0].vals, expected["vals 0.1"])
    rows = [float(np.square(v1[i].astype(float) - v1[j]).sum()) for i, j in indices]
    expected = evaluate_reference(rows, same.tolist(), folds.tolist(), (0.1,))
    np.testing.assert_allclose(found.v1.accuracies, expected["accuracies"])


def test_the_evaluator_reports_the_three_tables_only_with_embeddings_of_v1(two_models, tmp_path):
    v2, v1, identities = two_models
    name, images = "harmonic_faces", [f"{i}.png" for i in range(12)]
    pairs = draw_pairs(images, identities.tolist(), folds=3, seed=0)
    records = [{"image_id": image, "file_name": image} for image in images]
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(verification_pairs=pairs)
    try:
        evaluator = VerificationEvaluator(name, str(tmp_path))
        outputs = [{"embedding": torch.tensor(a), "embedding_v1": torch.tensor(b)} for a, b in zip(v2, v1)]
        evaluator.process(records[:5], outputs[:5])
        evaluator.process(records[5:], outputs[5:])
        found = evaluator.evaluate()
        assert list(found) == ["verification", "verification_v1", "verification_v1_v2"]
        assert found["verification_v1_v2"]["num_same"] == 2 * found["verification"]["num_same"]
        evaluator.reset()
        evaluator.process(records, [{"embedding": torch.tensor(a)} for a in v1])
        alone = evaluator.evaluate()
        assert list(alone) == ["verification"]
        assert alone["verification"]["AUC"] == pytest.approx(found["verification_v1"]["AUC"])
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
