"""Colours as numbers, and their brightness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# RGB in 0 to 255.
Color = tuple[int, int, int]


def as_fractions(colors: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
    """RGB in 0 to 1."""
    return [tuple(value / 255 for value in color) for color in colors]


def as_bytes(color: Any) -> Color:
    """RGB in 0 to 255 of a colour that matplotlib knows: RGB in 0 to 1, or a name.

    Raises:
        ValueError: an illegal colour.
    """
    from matplotlib.colors import to_rgb  # here, because its import delays the start of every run

    return tuple(round(255 * value) for value in to_rgb(color))


def luminance(color: Color) -> float:
    """Relative luminance in 0 to 1 (ITU-R BT.709 weights, gamma 2.2)."""
    red, green, blue = ((value / 255) ** 2.2 for value in color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
