"""A training step of FaceNet: this package beside a plain PyTorch loop around the same network.

The plain loop is what one writes without a framework: the same network with equal weights in PyTorch's default memory
format, semi-hard triplets listed from the matrix of distances, the readable triplet loss, and the same optimizer. Each
round takes one step of each on the same batch; all losses of the first step must be equal.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from benchmarks.measure import Case, format_cases, make_parser, print_header, time_in_turns, write_cases
from retinanet_ext.config.loading import load_config
from retinanet_ext.d2 import EventStorage, build_model
from retinanet_ext.embedding.selection import select_triplets
from retinanet_ext.losses.triplet import triplet_loss
from retinanet_ext.training.step import TrainStep

TOLERANCE = 1e-4
LEARNING_RATE = 0.0  # the optimizer works, and every step has the same triplets


def make_batch(settings) -> list[dict]:
    """Random images of one size; ``images`` of each of ``identities``."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, settings.size, settings.size)
    return [
        {"image": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator), "identity": identity}
        for identity in range(settings.identities)
        for _ in range(settings.images)
    ]


def our_step(model: nn.Module, batch: list[dict], precision: torch.dtype | None) -> Callable[[], float]:
    storage = EventStorage()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    loader = iter(lambda: batch, None)
    step = TrainStep(model, loader, optimizer, storage=lambda: storage, precision=precision)

    def run() -> float:
        with storage:
            step.run_step()
        return storage.latest()["total_loss"][0]

    return run


def plain_step(model: nn.Module, batch: list[dict], margin: float) -> Callable[[], float]:
    model = model.to(memory_format=torch.contiguous_format).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    identities = torch.tensor([image["identity"] for image in batch], device=model.device)

    def run() -> float:
        images = torch.stack([image["image"] for image in batch]).to(model.device)
        pixels = (images - model.pixel_mean) / model.pixel_std
        features = model.backbone(pixels)[model.in_feature]
        embeddings = nn.functional.normalize(model.projection(features.mean(dim=(2, 3))))
        triplets = select_triplets("semi_hard", embeddings.detach(), identities, margin)
        loss = triplet_loss(embeddings, triplets, margin)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def make_cases(settings) -> list[Case]:
    opts = ["MODEL.DEVICE", settings.device, "MODEL.FACENET.NORM", settings.norm]
    opts += ["INPUT.FACE.SIZE", f"[{settings.size}, {settings.size}]"]
    cfg = load_config(settings.config, opts, datasets=False)
    torch.manual_seed(0)
    model, batch = build_model(cfg), make_batch(settings)
    margin = cfg.MODEL.EMBEDDING.LOSS.MARGIN
    runs = {
        "plain PyTorch loop, float32": plain_step(copy.deepcopy(model), batch, margin),
        "this package, float32": our_step(copy.deepcopy(model), batch, None),
        "this package, bfloat16": our_step(copy.deepcopy(model), batch, torch.bfloat16),
    }
    losses = {name: run() for name, run in runs.items()}
    reference = losses["plain PyTorch loop, float32"]
    for name, loss in losses.items():
        if "float32" in name and not abs(loss - reference) <= TOLERANCE * abs(reference):
            raise RuntimeError(f"the first loss of {name!r} is {loss}, that of the plain loop {reference}")
    return [Case(name, run, difference=abs(losses[name] - reference)) for name, run in runs.items()]


def parse_arguments(words: Sequence[str] | None = None):
    parser = make_parser("a training step of FaceNet, beside a plain PyTorch loop", repeats=5)
    parser.add_argument("--config", default="embedding/facenet_nn4.yaml")
    parser.add_argument("--norm", default="", help="MODEL.FACENET.NORM: empty as in the paper, or BN")
    parser.add_argument("--identities", type=int, default=15)
    parser.add_argument("--images", type=int, default=4, help="images per identity")
    parser.add_argument("--size", type=int, default=96, help="height and width of the images, pixels")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    settings = parse_arguments(words)
    torch.set_num_threads(settings.threads)
    header = print_header(settings)
    cases = make_cases(settings)
    time_in_turns(cases, settings.repeats, settings.device)
    print(format_cases(cases, cases[0], "training step"))
    write_cases(settings.json, header, {"step": cases})


if __name__ == "__main__":
    main()
