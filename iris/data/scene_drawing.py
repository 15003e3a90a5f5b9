"""Scenes as facts and as pixels: the palette, the six shapes, and an antialiased renderer.

A shape is a signed distance in its own box [-1, 1]^2 (y points down, negative inside); its coverage of a pixel is
clip(1/2 - distance in pixels, 0, 1). One formula thus draws every size, and the checker uses the same one for templates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 32, 38), "orange": (248, 138, 20), "yellow": (246, 222, 40), "green": (34, 158, 66),
    "cyan": (48, 208, 220), "blue": (36, 76, 222), "purple": (126, 42, 178), "pink": (250, 122, 192),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255), "black": (0, 0, 0), "grey": (136, 136, 136),
    "light blue": (198, 218, 246), "light green": (206, 236, 204), "beige": (240, 222, 188),
}
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below")
INVERSE_RELATION = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class SceneObject:
    """One object as a caption tells it; size "" means that nothing is said (it is then drawn between small and large)."""

    colour: str
    shape: str
    size: str = ""

    @property
    def kind(self) -> str:
        """Colour and shape, such as "red circle"."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class SceneFacts:
    """What is said about a scene. relation: objects[0] is `relation` objects[1], or "". background: its name, or "" when unsaid."""

    objects: tuple[SceneObject, ...]
    relation: str = ""
    background: str = ""


@dataclass(frozen=True)
class Place:
    """Where an object is: centre and half the side of its box, as fractions of the picture's side (x right, y down)."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class SceneSpec:
    """A scene that can be drawn: its facts, a place for each object, and the background's name, said or not."""

    facts: SceneFacts
    places: tuple[Place, ...]
    background: str


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 1.0


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.88


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Corners (0, -1), (-1, 0.85), (1, 0.85): the base, and the two sides by symmetry.
    return np.maximum(y - 0.85, (1.85 * np.abs(x) - y - 1.0) / np.hypot(1.85, 1.0))


_STAR_ANGLES = np.deg2rad(-90.0 + 72.0 * np.arange(5))


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # A pentagram is where at most one of its five lines (cos 72 degrees from the centre) is overstepped,
    # so its distance is the second largest of five half-plane distances.
    lines = np.cos(_STAR_ANGLES)[:, None, None] * x + np.sin(_STAR_ANGLES)[:, None, None] * (y - 0.06)
    return np.partition(lines, 3, axis=0)[3] - np.cos(np.deg2rad(72.0))


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    across, down = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(across - 1.0, down - 0.32), np.maximum(down - 1.0, across - 0.32))


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.77) - 0.23


SHAPES = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "cross": _cross, "ring": _ring}


def shape_coverage(shape: str, x: float, y: float, radius: float, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Coverage 0..1 of `shape` on the grid of pixel centres ys x xs; centre and radius in pixels -> float32 [len(ys), len(xs)]."""
    across = ((xs - x) / radius).astype(np.float32)[None, :]
    down = ((ys - y) / radius).astype(np.float32)[:, None]
    across, down = np.broadcast_arrays(across, down)
    return np.clip(0.5 - SHAPES[shape](across, down) * radius, 0.0, 1.0).astype(np.float32)


def render_scene(spec: SceneSpec, size: int) -> np.ndarray:
    """Draw a scene, antialiased -> uint8 [size, size, 3]."""
    canvas = np.empty((size, size, 3), np.float32)
    canvas[:] = BACKGROUNDS[spec.background]
    for item, place in zip(spec.facts.objects, spec.places, strict=True):
        x, y, radius = place.x * size, place.y * size, place.radius * size
        left, top = max(0, int(x - radius) - 1), max(0, int(y - radius) - 1)
        right, bottom = min(size, int(x + radius) + 2), min(size, int(y + radius) + 2)
        coverage = shape_coverage(item.shape, x, y, radius, np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5)
        patch = canvas[top:bottom, left:right]
        patch += coverage[..., None] * (np.asarray(COLOURS[item.colour], np.float32) - patch)
    return (canvas + 0.5).astype(np.uint8)
