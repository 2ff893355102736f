"""Colours that tell many classes apart."""

from __future__ import annotations

import functools

import cv2
import numpy as np

# Candidates: an RGB grid without the colours too dark, too pale or too grey to stand out as a thin line.
GRID = np.linspace(0, 255, 12)
LIGHTNESS = (35, 85)
MIN_CHROMA = 45
FIRST_COLOR = (255, 140, 20)


def generate_palette(count: int) -> list[tuple[int, int, int]]:
    """`count` colours, RGB in 0 to 255. Colour k is the same for every count; the 847 candidates repeat in order.

    Each colour is the candidate farthest, in CIE Lab, from all colours before it.
    """
    colors = _ordered_colors()
    return [colors[k % len(colors)] for k in range(count)]


@functools.cache
def _ordered_colors() -> list[tuple[int, int, int]]:
    rgb = np.stack(np.meshgrid(GRID, GRID, GRID), axis=-1).reshape(-1, 3).round()
    rgb = np.concatenate([[FIRST_COLOR], rgb])
    lab = cv2.cvtColor((rgb[None] / 255).astype(np.float32), cv2.COLOR_RGB2LAB)[0]
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    usable = (lab[:, 0] >= LIGHTNESS[0]) & (lab[:, 0] <= LIGHTNESS[1]) & (chroma >= MIN_CHROMA)
    usable[0] = True
    rgb, lab = rgb[usable], lab[usable]
    order = [0]
    distance = np.linalg.norm(lab - lab[0], axis=1)
    for _ in range(len(rgb) - 1):
        order.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[order[-1]], axis=1))
    return [tuple(int(value) for value in rgb[index]) for index in order]
