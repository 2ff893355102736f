"""The benchmark of FaceNet's training step, at the smallest size."""

import pytest

from benchmarks import embedding_step
from retinanet_ext.losses import triplet_loss

WORDS = ["--identities", "2", "--images", "2", "--size", "64", "--threads", "1"]


def test_both_loops_have_the_same_loss():
    cases = embedding_step.make_cases(embedding_step.parse_arguments(WORDS))
    assert [case.name for case in cases][0] == "plain PyTorch loop, float32"
    assert cases[1].difference < 1e-5
    assert cases[1].run() > 0


def test_another_loss_is_refused(monkeypatch):
    monkeypatch.setattr(embedding_step, "triplet_loss", lambda *arguments: 2 * triplet_loss(*arguments))
    with pytest.raises(RuntimeError, match="first loss of 'this package, float32'"):
        embedding_step.make_cases(embedding_step.parse_arguments(WORDS))
