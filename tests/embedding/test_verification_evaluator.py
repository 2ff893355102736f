"""The evaluator of verification: each image counts once, pairs follow their policy, and the files say what it found."""

import csv
import json
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import torch

from retinanet_ext.d2 import DatasetCatalog, MetadataCatalog
from retinanet_ext.embedding import verification_evaluator
from retinanet_ext.embedding.pairs import draw_pairs
from retinanet_ext.embedding.verification import verify_embeddings
from retinanet_ext.embedding.verification_evaluator import VerificationEvaluator

NAME = "verified_faces"
IDENTITIES = 6


@pytest.fixture
def dataset(tmp_path):
    """Records of six identities with four images each, their embeddings, and the pairs as metadata."""
    random = np.random.default_rng(0)
    records, embeddings = [], {}
    for identity in range(IDENTITIES):
        center = random.normal(size=8)
        for number in range(4):
            image = f"p{identity}/{number}.png"
            path = tmp_path / image
            path.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(path), random.integers(0, 256, (30, 20, 3)).astype(np.uint8))
            records.append({"file_name": str(path), "image_id": image, "identity": identity})
            vector = center + random.normal(size=8) * 0.8
            embeddings[image] = torch.tensor(vector / np.linalg.norm(vector), dtype=torch.float32)
    pairs = draw_pairs([r["image_id"] for r in records], [r["identity"] for r in records], folds=4, seed=0)
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(verification_pairs=lambda: pairs, evaluator_type="verification")
    yield records, embeddings, pairs
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def feed(evaluator, records, embeddings):
    evaluator.process(records, [{"embedding": embeddings[record["image_id"]]} for record in records])


def test_results_are_those_of_the_plain_function_and_nothing_is_counted_twice(dataset, tmp_path):
    records, embeddings, pairs = dataset
    evaluator = VerificationEvaluator(NAME, str(tmp_path / "out"))
    feed(evaluator, records[:10], embeddings)
    evaluator.reset()
    feed(evaluator, records, embeddings)
    feed(evaluator, records[:3], embeddings)  # a sampler that fills up the last batch
    found = evaluator.evaluate()["verification"]
    expected = verify_embeddings({image: value.numpy() for image, value in embeddings.items()}, pairs)
    assert found["accuracy"] == pytest.approx(100 * expected.accuracy)
    assert found["num_images"] == len(records) and found["pairs_left_out"] == 0
    assert found["num_same"] == IDENTITIES * 6 and found["num_different"] == 24 * 23 // 2 - IDENTITIES * 6
    assert all(isinstance(value, (int, float)) for value in found.values())
    content = json.loads((tmp_path / "out" / "verification.json").read_text())
    assert content["metrics"]["AUC"] == pytest.approx(found["AUC"]) and len(content["folds"]) == 4
    with (tmp_path / "out" / "distances.csv").open() as file:
        rows = list(csv.DictReader(file))
    right = [row["same"] == row["accepted"] for row in rows]
    by_fold = [np.mean([r for r, row in zip(right, rows) if row["fold"] == str(fold)]) for fold in range(4)]
    assert 100 * np.mean(by_fold) == pytest.approx(found["accuracy"])
    first = np.square(embeddings[rows[0]["first"]].numpy() - embeddings[rows[0]["second"]].numpy()).sum()
    assert float(rows[0]["distance"]) == pytest.approx(first, rel=1e-5)


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.outside, self.pictures, self.text = [], 0, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.pictures += tag == "img" and attributes["src"].startswith("data:image/jpeg;base64,")
        links = [attributes.get("src", ""), attributes.get("href", "") if tag != "use" else ""]
        self.outside += [link for link in links if link and not link.startswith(("data:", "#"))]

    def handle_data(self, data):
        self.text += data


def test_the_page_is_self_contained_and_shows_every_mistake(dataset, tmp_path):
    records, embeddings, _ = dataset
    (tmp_path / "p0" / "0.png").unlink()  # a picture that is gone must not cost the results
    evaluator = VerificationEvaluator(NAME, str(tmp_path / "out"))
    feed(evaluator, records, embeddings)
    evaluator.evaluate()
    page = Page((tmp_path / "out" / "verification.html").read_text())
    with (tmp_path / "out" / "distances.csv").open() as file:
        rows = list(csv.DictReader(file))
    rejects = [row for row in rows if row["same"] == "1" and row["accepted"] == "0"]
    accepts = [row for row in rows if row["same"] == "0" and row["accepted"] == "1"]
    assert rejects and accepts and page.outside == []
    assert page.pictures == 2 * (min(12, len(rejects)) + min(12, len(accepts)))
    # The worst is the farthest from the threshold of its own fold.
    worst = max(rejects, key=lambda row: float(row["distance"]) - float(row["threshold"]))
    text = page.text.replace("\n", "")
    where = text.index("False rejects")
    assert f"distance {float(worst['distance']):.4f}" in text[where : where + 400]
    assert "cannot measure a FAR of 0.001" in text


def test_processes_together_give_what_one_gives(dataset, monkeypatch):
    records, embeddings, pairs = dataset
    alone = VerificationEvaluator(NAME)
    feed(alone, records, embeddings)
    expected = alone.evaluate()
    parts = []
    for part in (records[:14], records[10:]):
        evaluator = VerificationEvaluator(NAME)
        feed(evaluator, part, embeddings)
        parts.append((evaluator._embeddings, evaluator._embeddings_v1, evaluator._files))
    monkeypatch.setattr(verification_evaluator.comm, "gather", lambda data, dst: parts)
    assert evaluator.evaluate() == expected
    monkeypatch.setattr(verification_evaluator.comm, "is_main_process", lambda: False)
    assert evaluator.evaluate() == {}


def test_a_missing_image_is_an_error_before_the_model_runs_or_counted(dataset):
    records, embeddings, pairs = dataset
    gone = records.pop()["image_id"]
    with pytest.raises(ValueError, match=gone):
        VerificationEvaluator(NAME)
    evaluator = VerificationEvaluator(NAME, on_missing="count")
    feed(evaluator, records, embeddings)
    found = evaluator.evaluate()["verification"]
    assert found["pairs_left_out"] == sum(gone in pair for pair in zip(pairs.first, pairs.second))
    assert found["num_same"] == IDENTITIES * 6 - 3


def test_bad_embeddings_and_data_are_named(dataset):
    records, embeddings, pairs = dataset
    evaluator = VerificationEvaluator(NAME)
    feed(evaluator, records, {**embeddings, "p2/1.png": torch.full((8,), torch.nan)})
    with pytest.raises(ValueError, match="1 of 24 embeddings have NaN or infinity, first that of 'p2/1.png'"):
        evaluator.evaluate()
    evaluator.reset()
    feed(evaluator, records, {**embeddings, "p2/1.png": torch.ones(9)})
    with pytest.raises(ValueError, match="'p2/1.png'|'p5/3.png'"):
        evaluator.evaluate()
    MetadataCatalog.remove(NAME)
    with pytest.raises(ValueError, match="no verification_pairs"):
        VerificationEvaluator(NAME)
    MetadataCatalog.get(NAME).set(verification_pairs=pairs.of(pairs.first[:3], pairs.second[:3], [1, 1, 1], [0, 1, 2]))
    with pytest.raises(ValueError, match="all 3 pairs are same pairs"):
        VerificationEvaluator(NAME)
