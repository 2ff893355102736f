import math

import numpy as np
import pytest
import torch

from retinanet_ext.embedding.codes import code_lengths, decode, encode, worst_angle


def unit(n, dim, seed=0):
    values = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return values / values.norm(dim=1, keepdim=True)


def angles(a, b):
    a, b = a.double(), b.double()
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    return 2 * torch.asin(((a - b).norm(dim=1) / 2).clamp(max=1))


def test_an_embedding_by_hand():
    codes = encode(torch.tensor([[0.6, -0.8, 0.0]]))
    # 0.6 / 0.8 * 127 = 95.25, and the largest number is 127 whatever its sign.
    assert codes.dtype == torch.int8 and codes.tolist() == [[95, -127, 0]]
    length = math.sqrt(95**2 + 127**2)
    torch.testing.assert_close(decode(codes), torch.tensor([[95 / length, -127 / length, 0.0]]))


def test_128_numbers_are_128_bytes_and_bytes_may_be_unsigned():
    embeddings = unit(5, 128)
    codes = encode(embeddings.numpy())
    assert isinstance(codes, np.ndarray) and codes[0].nbytes == len(codes[0].tobytes()) == 128
    as_bytes = np.frombuffer(codes.tobytes(), np.uint8).reshape(5, 128)
    assert np.array_equal(decode(as_bytes.copy()), decode(codes))
    assert np.array_equal(decode(codes), decode(encode(embeddings)).numpy())
    assert np.allclose(np.linalg.norm(decode(codes), axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("dim", [2, 64, 128, 512])
def test_no_angle_exceeds_the_worst_case_and_one_reaches_it(dim):
    random = torch.cat([unit(2000, dim), unit(2000, dim).pow(9), torch.eye(dim)])
    assert angles(random, decode(encode(random))).max() <= worst_angle(dim)
    worst = torch.full((1, dim), 0.4999, dtype=torch.float64)
    worst[0, 0] = 127
    assert angles(worst, decode(encode(worst))).item() == pytest.approx(worst_angle(dim), rel=1e-3)


def test_the_typical_angle_is_as_documented():
    embeddings = unit(2000, 128)
    assert angles(embeddings, decode(encode(embeddings))).mean() == pytest.approx(0.007, abs=0.002)
    assert worst_angle(128) == pytest.approx(0.0443, abs=1e-4)


def test_a_code_of_a_code_is_itself():
    codes = encode(unit(100, 128))
    assert torch.equal(encode(decode(codes)), codes)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_only_the_direction_counts(scale):
    embeddings = unit(10, 128)
    assert torch.equal(encode(embeddings * scale), encode(embeddings))


@pytest.mark.parametrize("bad, word", [(0.0, "zero"), (float("nan"), "finite"), (float("inf"), "finite")])
@pytest.mark.parametrize("library", [torch.clone, torch.Tensor.numpy], ids=["torch", "numpy"])
def test_what_has_no_direction_is_refused_with_its_index(bad, word, library):
    embeddings = unit(6, 8)
    embeddings[4] = bad
    with pytest.raises(ValueError, match=f"embedding 4 is .*{word}"):
        encode(library(embeddings))


def test_codes_that_are_none_are_refused():
    with pytest.raises(ValueError, match="embedding 1 is zero"):
        decode(torch.tensor([[1, 2], [0, 0]], dtype=torch.int8))
    with pytest.raises(ValueError, match="int8 or uint8"):
        decode(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="expected: float"):
        encode(torch.zeros(2, 2, dtype=torch.int64))


def test_no_embeddings_give_no_codes():
    assert encode(torch.zeros(0, 128)).shape == decode(torch.zeros(0, 128, dtype=torch.int8)).shape == (0, 128)
    assert code_lengths(torch.zeros(0, 128, dtype=torch.int8)).shape == (0,)
