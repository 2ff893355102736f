"""Shared by the tests of the dense losses: random inputs, weighted gradients, and sums over one-hot targets."""

import torch
import torch.nn.functional as F


def random_input(shape, generator, device, scale=1.0, dtype=torch.float32):
    logits = (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(device, dtype).requires_grad_()
    return logits, torch.randint(-1, shape[2] + 1, shape[:2], generator=generator).to(device)


def loss_and_gradient(function, logits, labels, *args, **kwargs):
    """Losses of the images and the gradient of their sum with the weights 1, 2, 3, ..."""
    per_image = function(logits, labels, *args, **kwargs)
    weights = torch.arange(1.0, len(logits) + 1, device=logits.device)
    return per_image.detach(), torch.autograd.grad((per_image * weights).sum(), logits)[0]


def sum_over_one_hot_targets(plain, logits, labels, *args):
    """The definition, written out: one-hot targets, ignored rows left out; ``plain`` is an elementwise loss."""
    num_classes = logits.shape[2]
    targets = F.one_hot(labels.clamp(min=0), num_classes + 1)[..., :num_classes].to(logits.dtype)
    return (plain(logits, targets, *args) * (labels >= 0)[..., None]).sum(dim=(1, 2))
