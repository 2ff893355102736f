"""What identifies the weights of a model, so that embeddings of different models are never compared."""

import hashlib

import torch
from torch import nn

from retinanet_ext.machine.processes import bare_model


def fingerprint(model: nn.Module) -> str:
    """16 hexadecimal digits of the SHA-256 of all names and values in the model's state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(bare_model(model).state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
