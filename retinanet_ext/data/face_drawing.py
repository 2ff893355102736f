"""Pixels of one generated face: what belongs to an identity, and what changes from image to image.

Coordinates of a face: x right, y down, 0 in the middle of the head, 1 is half of the image's side. Colours are BGR,
0..255. Images are uint8 BGR ``(size, size, 3)``.
"""

from dataclasses import dataclass

import cv2
import numpy as np

HAIR_STYLES = ("none", "short", "long", "fringe", "top")
_SUPERSAMPLING = 3
_OUTLINE_POINTS = 48


@dataclass(frozen=True)
class Face:
    """What makes an identity. Lengths in coordinates of the face."""

    head: tuple[float, float]  # half width, half height
    jaw: float  # width of the chin's part, as a share
    skin: np.ndarray
    hair: np.ndarray
    hair_style: str
    hair_height: float
    eye_distance: float  # of each from the middle
    eye_height: float
    eye_size: tuple[float, float]
    eye_tilt: float
    iris: np.ndarray
    brow: tuple[float, float, float]  # height above the eye, thickness, tilt
    nose: tuple[float, float]  # length, half width
    mouth_height: float
    mouth: tuple[float, float]  # half width, thickness
    lips: np.ndarray
    ears: float
    beard: float  # 0 none, up to 1


@dataclass(frozen=True)
class View:
    """What an image of a face is taken with."""

    shift: np.ndarray
    scale: float
    angle: float  # radians
    turn: float  # sideways shift of eyes, nose and mouth, as if the head was turned
    smile: float
    mouth_open: float
    eyes_open: float
    brows_up: float
    gain: np.ndarray  # per channel
    shade: tuple[float, float]  # direction in radians, strength
    noise: float
    blur: float
    background: tuple[np.ndarray, np.ndarray]
    shirt: np.ndarray


def draw_identity(random: np.random.RandomState) -> Face:
    """Draw the parameters of an identity."""
    u = random.uniform
    tone = u(0, 1)
    skin = (1 - tone) * np.array([175, 205, 240]) + tone * np.array([45, 75, 125]) + u(-14, 14, 3)
    dark, light = np.array([25, 28, 35]), np.array([(60, 90, 150), (90, 170, 215), (150, 150, 155)][random.randint(3)])
    mix = u(0, 1)
    return Face(
        head=(u(0.46, 0.62), u(0.60, 0.78)),
        jaw=u(0.55, 1.0),
        skin=skin,
        hair=dark * (1 - mix) + light * mix,
        hair_style=HAIR_STYLES[random.randint(len(HAIR_STYLES))],
        hair_height=u(0.25, 0.5),
        eye_distance=u(0.17, 0.29),
        eye_height=u(-0.2, -0.02),
        eye_size=(u(0.065, 0.115), u(0.03, 0.065)),
        eye_tilt=u(-0.3, 0.3),
        iris=np.array([(120, 80, 40), (40, 60, 90), (60, 110, 60), (30, 30, 35)][random.randint(4)]) + u(-15, 15, 3),
        brow=(u(0.08, 0.17), u(0.015, 0.05), u(-0.35, 0.35)),
        nose=(u(0.16, 0.32), u(0.05, 0.13)),
        mouth_height=u(0.28, 0.44),
        mouth=(u(0.12, 0.27), u(0.025, 0.075)),
        lips=skin * 0.6 + np.array([60, 50, 130]) * u(0.15, 0.5),
        ears=u(0.0, 0.11),
        beard=max(0.0, u(-0.8, 0.8)),
    )


def draw_view(random: np.random.RandomState) -> View:
    """Draw how an image is taken."""
    u = random.uniform
    return View(
        shift=u(-0.09, 0.09, 2),
        scale=u(0.88, 1.12),
        angle=u(-0.2, 0.2),
        turn=u(-0.09, 0.09),
        smile=u(-0.06, 0.1),
        mouth_open=max(0.0, u(-0.09, 0.08)),
        eyes_open=u(0.55, 1.15),
        brows_up=u(-0.03, 0.05),
        gain=u(0.65, 1.25) * (1 + u(-0.1, 0.1, 3)),
        shade=(u(0, 2 * np.pi), u(0, 0.45)),
        noise=u(1, 9),
        blur=max(0.0, u(-0.8, 1.0)),
        background=(u(20, 235, 3), u(20, 235, 3)),
        shirt=u(20, 235, 3),
    )


def draw_face(face: Face, view: View, size: int, random: np.random.RandomState) -> np.ndarray:
    """The image of a face: uint8 BGR ``(size, size, 3)``; `random` gives the noise of the pixels."""
    canvas = _Canvas(size * _SUPERSAMPLING, view)
    _draw_behind(canvas, face, view)
    canvas.fill(_head_outline(face), face.skin)
    if face.beard:
        canvas.fill(_beard_outline(face), face.skin * (1 - 0.6 * face.beard) + face.hair * 0.6 * face.beard)
    _draw_hair(canvas, face)
    for side in (-1, 1):
        _draw_eye(canvas, face, view, side)
    _draw_nose_and_mouth(canvas, face, view)
    image = cv2.resize(canvas.pixels, (size, size), interpolation=cv2.INTER_AREA).astype(np.float64)
    return _lit(image, view, random)


class _Canvas:
    """Fills shapes that are given in coordinates of the face, as the view turns, scales and shifts it."""

    def __init__(self, side: int, view: View) -> None:
        self._half = side / 2
        cos, sin = np.cos(view.angle) * view.scale, np.sin(view.angle) * view.scale
        self._matrix = np.array([[cos, -sin], [sin, cos]])
        self._shift = view.shift
        first, second = view.background
        share = np.linspace(0, 1, side)[:, None, None]
        self.pixels = np.broadcast_to((1 - share) * first + share * second, (side, side, 3)).astype(np.uint8).copy()

    def fill(self, points: np.ndarray, colour: np.ndarray) -> None:
        xy = (np.asarray(points) @ self._matrix.T + self._shift + 1) * self._half
        cv2.fillPoly(self.pixels, [np.round(xy * 16).astype(np.int32)], _bgr(colour), cv2.LINE_AA, 4)


def _draw_behind(canvas, face, view):
    w, h = face.head
    canvas.fill(_oval(0, 1.25, 0.95, 0.62), view.shirt)
    canvas.fill([(-0.45 * w, 0.3), (0.45 * w, 0.3), (0.5 * w, 1.0), (-0.5 * w, 1.0)], face.skin * 0.85)
    if face.hair_style == "long":
        canvas.fill(_oval(0, 0.08, w * 1.22, h * 1.15), face.hair)
    for side in (-1, 1):
        if face.ears:
            canvas.fill(_oval(side * w, 0, face.ears, face.ears * 1.5), face.skin * 0.9)


def _draw_hair(canvas, face):
    if face.hair_style == "none":
        return
    w, h = face.head
    top = {"fringe": 0.55, "top": 0.15}.get(face.hair_style, 0.32) * (0.6 + face.hair_height)
    line = -h + 2 * h * top * 0.6
    angles = np.linspace(np.pi, 2 * np.pi, 24)
    grown = 1.06 + 0.2 * face.hair_height
    outer = np.stack([np.cos(angles) * w * grown, np.sin(angles) * h * grown], axis=1)
    outer = outer[outer[:, 1] <= line] if face.hair_style == "top" else outer
    inner = [(w * 0.9, line * 0.75), (w * 0.35, line), (-w * 0.5, line * 1.02), (-w * 0.9, line * 0.75)]
    canvas.fill(np.concatenate([outer, inner]), face.hair)


def _draw_eye(canvas, face, view, side):
    x, y = side * face.eye_distance + view.turn, face.eye_height
    width, height = face.eye_size[0], face.eye_size[1] * view.eyes_open
    tilt = side * face.eye_tilt
    canvas.fill(_turned(_oval(x, y, width * 1.12, height * 1.25), (x, y), tilt), face.skin * 0.6)
    canvas.fill(_turned(_oval(x, y, width, height), (x, y), tilt), np.array([240, 240, 240]))
    radius = min(height, width * 0.6)
    canvas.fill(_oval(x + view.turn * 0.2, y, radius, radius), face.iris)
    canvas.fill(_oval(x + view.turn * 0.2, y, radius * 0.45, radius * 0.45), np.array([15, 15, 15]))
    above, thickness, slope = face.brow
    y -= above + view.brows_up
    brow = np.array([(-1.3, -1), (1.3, -1), (1.3, 1), (-1.3, 1)]) * (width, thickness / 2) + (x, y)
    canvas.fill(_turned(brow, (x, y), side * slope), face.hair * 0.8)


def _draw_nose_and_mouth(canvas, face, view):
    length, half = face.nose
    x, y = view.turn * 1.5, face.eye_height + 0.06
    canvas.fill([(x, y), (x + half, y + length), (x - half, y + length)], face.skin * 0.86)
    canvas.fill(_oval(x, y + length, half, half * 0.45), face.skin * 0.72)
    width, thickness = face.mouth
    x, t = view.turn, np.linspace(-1, 1, 16)
    curve = face.mouth_height - view.smile * t**2
    upper = np.stack([x + t * width, curve - thickness * (1 - t**2) * 0.8], axis=1)
    lower = np.stack([x + t * width, curve + (thickness + view.mouth_open) * (1 - t**2)], axis=1)
    canvas.fill(np.concatenate([upper, lower[::-1]]), face.lips)
    if view.mouth_open > 0.015:
        inside = np.stack([x + t * width * 0.75, curve + view.mouth_open * 0.8 * (1 - t**2)], axis=1)
        top = np.stack([x + t * width * 0.75, curve], axis=1)
        canvas.fill(np.concatenate([top, inside[::-1]]), np.array([40, 25, 60]))


def _lit(image, view, random):
    side = len(image)
    across = np.linspace(-1, 1, side)
    direction, strength = view.shade
    shade = 1 + strength * (np.cos(direction) * across[None, :] + np.sin(direction) * across[:, None])
    image = image * shade[:, :, None] * view.gain
    if view.blur:
        image = cv2.GaussianBlur(image, (0, 0), view.blur * side / 64)
    image = image + random.normal(0, view.noise, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _head_outline(face):
    angles = np.linspace(0, 2 * np.pi, _OUTLINE_POINTS, endpoint=False)
    x, y = np.cos(angles), np.sin(angles)
    # From the middle down the head narrows to the chin.
    narrowing = 1 - (1 - face.jaw) * np.clip(y, 0, 1) ** 2 * 0.7
    return np.stack([x * narrowing * face.head[0], y * face.head[1]], axis=1)


def _beard_outline(face):
    outline = _head_outline(face)
    lower = outline[outline[:, 1] > 0.12]
    middle = np.array([(-0.6 * face.head[0], 0.18), (0.6 * face.head[0], 0.18)])
    return np.concatenate([lower, middle])


def _oval(x, y, half_width, half_height):
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return np.stack([x + np.cos(angles) * half_width, y + np.sin(angles) * half_height], axis=1)


def _turned(points, centre, angle):
    cos, sin = np.cos(angle), np.sin(angle)
    return (points - np.array(centre)) @ np.array([[cos, sin], [-sin, cos]]) + centre


def _bgr(colour):
    return tuple(float(v) for v in np.clip(colour, 0, 255))
