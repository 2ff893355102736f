"""The Triton kernel: on a GPU if ``TEST_DEVICE`` says so, otherwise interpreted, by running this file as a script."""

import math
import os
import subprocess
import sys

import pytest
import torch

from retinanet_ext.losses.focal import dense_focal_reference
from retinanet_ext.losses.one_pass import alpha_values
from tests.conftest import REPO_ROOT

SHAPES = [(2, 700, 7), (1, 1, 1), (2, 2049, 1), (3, 0, 4), (0, 5, 2), (1, 64, 32)]  # a block has 2048 entries
# Half precision: a unit in the last place, since the interpreter truncates where a GPU rounds.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def check_kernel(device: torch.device) -> int:
    """Compare loss and gradient with the reference in float64; returns the number of cases."""
    from retinanet_ext.losses.focal_triton import loss_and_gradient

    generator, cases = torch.Generator().manual_seed(0), 0
    for shape in SHAPES:
        per_class = torch.linspace(0, 1, shape[2]).tolist()
        for dtype, scale in [(torch.float32, 3), (torch.float32, 1e4), (torch.bfloat16, 3), (torch.float16, 3)]:
            logits = (torch.randn(shape, generator=generator) * scale).to(device, dtype)
            labels = torch.randint(-1, shape[2] + 1, shape[:2], generator=generator).to(device)
            exact = logits.double().requires_grad_()
            for alpha in (-1, 0.25, per_class):
                for gamma in (0, 0.5, 1, 2, 5):
                    weights = alpha_values(alpha, logits)
                    loss, gradient = loss_and_gradient(logits, labels, weights, gamma, True, 4.0)
                    expected = dense_focal_reference(exact, labels, alpha, gamma)
                    (expected_gradient,) = torch.autograd.grad(expected.sum(), exact)
                    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
                    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-6)
                    torch.testing.assert_close(
                        gradient.double(), 4 * expected_gradient, rtol=TOLERANCES[dtype], atol=1e-6
                    )
                    loss_only, no_gradient = loss_and_gradient(logits, labels, weights, gamma, False, 4.0)
                    assert no_gradient is None and torch.equal(loss, loss_only)
                    cases += 1
    _check_small_losses(loss_and_gradient, device)
    _check_strides(loss_and_gradient, device)
    return cases


def _check_small_losses(loss_and_gradient, device):
    logits = torch.linspace(-30, -5, 3000, device=device).view(1, -1, 3)
    labels = torch.full(logits.shape[:2], 3, device=device)
    exact = logits.double().requires_grad_()
    expected = dense_focal_reference(exact, labels, -1, 0.0)
    loss, gradient = loss_and_gradient(logits, labels, None, 0.0, True, 1.0)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), torch.autograd.grad(expected.sum(), exact)[0], rtol=1e-5, atol=0)
    # The kernel's series for log(1 + e) is at its worst at e = 1.
    loss, _ = loss_and_gradient(torch.zeros_like(logits), labels, None, 0.0, False, 1.0)
    assert loss.item() == pytest.approx(3000 * math.log(2), rel=5e-7)


def _check_strides(loss_and_gradient, device):
    logits = torch.linspace(-3, 3, 120, device=device).view(2, 3, 20).transpose(1, 2)
    labels = (torch.arange(40, device=device) % 5 - 1).view(20, 2).T
    actual = loss_and_gradient(logits, labels, None, 2.0, True, 1.0)
    expected = loss_and_gradient(logits.contiguous(), labels.contiguous(), None, 2.0, True, 1.0)
    assert all(torch.equal(*pair) for pair in zip(actual, expected))


def test_kernel(device):
    pytest.importorskip("triton", reason="the kernel needs Triton")
    if device.type == "cuda":
        assert check_kernel(device) == 360
        return
    result = subprocess.run(
        [sys.executable, "-m", "tests.losses.test_focal_triton"],
        cwd=REPO_ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "360 cases"


def test_cuda_uses_the_kernel(device, generator):
    if device.type != "cuda":
        pytest.skip("needs TEST_DEVICE=cuda")
    pytest.importorskip("triton", reason="the kernel needs Triton")
    from retinanet_ext.losses import focal_triton, one_pass

    assert one_pass._triton_kernel(device, torch.float32) is focal_triton.loss_and_gradient


def test_cuda_graph_and_no_wait(device, generator):
    """A captured graph replays with new logits, and nothing waits for the device."""
    if device.type != "cuda":
        pytest.skip("needs TEST_DEVICE=cuda")
    from retinanet_ext.losses import dense_focal_loss

    logits = torch.randn(2, 500, 8, generator=generator).to(device).requires_grad_()
    labels = torch.randint(-1, 9, (2, 500), generator=generator).to(device)

    def step():
        loss = dense_focal_loss(logits, labels)
        return loss, torch.autograd.grad(loss, logits)[0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        logits.add_(1)
    graph.replay()
    torch.testing.assert_close(captured, step())


if __name__ == "__main__":
    print(check_kernel(torch.device("cpu")), "cases")
