"""Sampling: which anchors or proposals take part in a loss (Faster R-CNN, section 3.1.3; Fast R-CNN, section 2.3).

Nearly all anchors are background. A sample of fixed size, with at most a given fraction of foreground, keeps them from
deciding alone what is learned. :func:`subsample_labels` is the rule for one image, a reference; training runs
:func:`subsample_each`, which draws the same for a batch.
"""

from collections.abc import Sequence

import torch

from retinanet_ext.detection.matcher import IoUMatcher

IGNORED = -1


def subsample_labels(
    labels: torch.Tensor, num_samples: int, positive_fraction: float, background: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a sample of one image, without replacement. A reference; see the module.

    At most ``positive_fraction`` of the sample is foreground; background fills the rest. If there is too little
    background, the sample is smaller. The draw uses PyTorch's global generator of the labels' device.

    Args:
        labels: ``(R,)`` integers: -1 ignored, ``background``, anything else foreground.
        num_samples: size of the sample, >= 0.
        positive_fraction: in [0, 1].
        background: the label of background.

    Returns:
        Indices of the foreground and of the background in the sample, int64, in random order.
    """
    found = _foreground(labels, background).nonzero().squeeze(1), (labels == background).nonzero().squeeze(1)
    order = _draw(*map(len, found), num_samples, positive_fraction, labels.device)
    return tuple(index[chosen] for index, chosen in zip(found, order))


def subsample_batch(
    labels: torch.Tensor, num_samples: int, positive_fraction: float, background: int
) -> torch.Tensor:
    """:func:`subsample_each` for images with equally many labels.

    Args:
        labels: ``(N, R)`` integers; the other arguments are those of :func:`subsample_labels`.

    Returns:
        Labels ``(N, R)``, -1 outside the sample.
    """
    sampled = torch.full_like(labels, IGNORED)
    drawn = subsample_each(labels.unbind(), num_samples, positive_fraction, background)
    for image_sampled, image_labels, kinds in zip(sampled, labels, drawn):
        index = torch.cat(kinds)
        image_sampled[index] = image_labels[index]
    return sampled


def subsample_each(
    labels: Sequence[torch.Tensor], num_samples: int, positive_fraction: float, background: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """:func:`subsample_labels` for each of N images, in order, with equal draws; waits for the device three times.

    Args:
        labels: N tensors ``(R_i,)`` of integers; the other arguments are those of :func:`subsample_labels`.
    """
    if not labels:
        return []
    flat, lengths = torch.cat(list(labels)), [len(image) for image in labels]
    kinds = [_foreground(flat, background), flat == background]
    counts = torch.stack([part.sum() for kind in kinds for part in kind.split(lengths)]).view(2, -1).tolist()
    found = [kind.nonzero().squeeze(1).split(sizes) for kind, sizes in zip(kinds, counts)]
    drawn, first = [], 0
    for index, length in zip(zip(*found), lengths):
        order = _draw(*map(len, index), num_samples, positive_fraction, flat.device)
        drawn.append(tuple(rows[chosen] - first for rows, chosen in zip(index, order)))
        first += length
    return drawn


def build_stage_matcher(cfg, stage: str, low_quality: str) -> IoUMatcher:
    """The matcher of a stage, ``RPN`` or ``ROI_HEADS``, from its ``IOU_THRESHOLDS`` and ``IOU_LABELS``.

    Args:
        low_quality: see ``IoUMatcher``.

    Raises:
        ValueError: values that ``IoUMatcher`` refuses; names the stage.
    """
    section = cfg.MODEL[stage]
    try:
        return IoUMatcher(thresholds=section.IOU_THRESHOLDS, labels=section.IOU_LABELS, low_quality=low_quality)
    except ValueError as error:
        raise ValueError(f"MODEL.{stage}: {error}") from error


def _foreground(labels: torch.Tensor, background: int) -> torch.Tensor:
    return (labels != IGNORED) & (labels != background)


def _draw(
    num_foreground: int, num_background: int, num_samples: int, positive_fraction: float, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of the foreground, and which of the background, are in the sample of one image."""
    wanted = min(num_foreground, int(num_samples * positive_fraction))
    # Always both draws, foreground first: a seed then gives Detectron2's sample.
    foreground = torch.randperm(num_foreground, device=device)[:wanted]
    background = torch.randperm(num_background, device=device)[: num_samples - wanted]
    return foreground, background
