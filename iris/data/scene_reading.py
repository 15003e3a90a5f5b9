"""Reads a scene's facts back from pixels, with no learned part: exact on clean drawings, tolerant of imperfect generated ones.

1. The background is the median colour of the border. 2. A pixel p on background b is unmixed as p = b + a (c - b) for each
palette colour c, and keeps the colour of the smallest residual: an antialiased or blurred edge so reads as its own object's
colour, not as a third one. 3. Connected pixels form objects. 4. Each shape is drawn with the object's area and centroid, and
the one that overlaps best (soft intersection over union) is its shape.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np

from iris.data.base import DataError
from iris.data.scene_drawing import BACKGROUNDS, COLOURS, SHAPES, SceneFacts, SceneObject, SceneSpec, shape_coverage

_NAMES = tuple(COLOURS)
_PALETTE = np.asarray(list(COLOURS.values()), np.float32)
_FOREGROUND = 0.4  # share of the way from background to palette colour where a pixel counts as object
_COLOUR_TOLERANCE = 70.0  # RGB distance that a generated colour may be off the palette
_GROUND_TOLERANCE = 45.0
_SECOND_COLOUR = 0.22  # share of a connected region that makes it two touching objects
_LEAST_RADIUS = 0.07  # of the side; what is smaller is a speck, not an object
_LEAST_OVERLAP = 0.62  # below this a blob has no shape
_SMALL, _LARGE = 0.155, 0.235  # radius between "small" and unsaid, and between unsaid and "large"


@dataclass(frozen=True)
class FoundObject:
    """One object as read: shape "" when none fits; x, y, radius as fractions of the side; overlap with the ideal shape 0..1."""

    colour: str
    shape: str
    size: str
    x: float
    y: float
    radius: float
    overlap: float


@dataclass(frozen=True)
class SceneReport:
    """Which facts of a scene hold in a picture; a fact that is not said counts as right.

    colour_right, shape_right: the colours (shapes) of all objects, as multisets. objects_right: colour and shape bound to
    each other, for every object, nothing missing and nothing more. axis_right: side by side, or one above the other, as asked; on
    which side is left open.
    """

    objects_right: bool
    colour_right: bool
    shape_right: bool
    count_right: bool
    size_right: bool
    relation_right: bool
    axis_right: bool
    background_right: bool
    found: tuple[FoundObject, ...]
    background: str

    @property
    def all_right(self) -> bool:
        """Every fact that is said holds."""
        return self.objects_right and self.count_right and self.size_right and self.relation_right and self.background_right


def check_scene(image: np.ndarray, spec: SceneSpec | SceneFacts) -> SceneReport:
    """Compare a picture, uint8 [H, W, 3], with the facts that it should show."""
    facts = spec.facts if isinstance(spec, SceneSpec) else spec
    found, background = read_scene(image)
    kinds = Counter((item.colour, item.shape) for item in facts.objects)
    return SceneReport(
        objects_right=kinds == Counter((item.colour, item.shape) for item in found),
        colour_right=Counter(item.colour for item in facts.objects) == Counter(item.colour for item in found),
        shape_right=Counter(item.shape for item in facts.objects) == Counter(item.shape for item in found),
        count_right=len(facts.objects) == len(found),
        size_right=_sizes_hold(facts, found),
        relation_right=not facts.relation or _stand(facts, found) == "sides", axis_right=not facts.relation or _stand(facts, found) != "",
        background_right=not facts.background or facts.background == background,
        found=found, background=background,
    )


def _sizes_hold(facts: SceneFacts, found: tuple[FoundObject, ...]) -> bool:
    said = Counter((item.colour, item.shape, item.size) for item in facts.objects if item.size)
    return not said - Counter((item.colour, item.shape, item.size) for item in found)


def _stand(facts: SceneFacts, found: tuple[FoundObject, ...]) -> str:
    """How the first two objects stand: on their "sides", the other way round on the same "axis", or neither ("")."""
    first, second = (_locate(item, found) for item in facts.objects[:2])
    if first is None or second is None or first is second:
        return ""
    across, down = second.x - first.x, second.y - first.y
    along, aside = (across, down) if facts.relation in ("left of", "right of") else (down, across)
    if facts.relation in ("right of", "below"):
        along = -along
    if abs(along) <= max(0.1, abs(aside)):
        return ""
    return "sides" if along > 0 else "axis"


def _locate(item: SceneObject, found: tuple[FoundObject, ...]) -> FoundObject | None:
    """The object that is meant: by colour and shape, or else by colour when only one has it."""
    same = [other for other in found if (other.colour, other.shape) == (item.colour, item.shape)]
    tinted = [other for other in found if other.colour == item.colour]
    return same[0] if same else tinted[0] if len(tinted) == 1 else None


def read_scene(image: np.ndarray) -> tuple[tuple[FoundObject, ...], str]:
    """The objects in a picture, uint8 [H, W, 3], and the name of its background ("" when it is none of ours)."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or min(image.shape[:2]) < 16:
        raise DataError(f"a scene must be a uint8 array [H, W, 3] of at least 16 x 16, not {image.dtype} {list(image.shape)}.")
    pixels = image.astype(np.float32)
    border = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3), pixels[2:-2, :2].reshape(-1, 3), pixels[2:-2, -2:].reshape(-1, 3)])
    ground = np.median(border, axis=0)
    names, colours = list(BACKGROUNDS), np.asarray(list(BACKGROUNDS.values()), np.float32)
    distances = np.linalg.norm(colours - ground, axis=1)
    nearest = int(distances.argmin())
    background = names[nearest] if distances[nearest] <= _GROUND_TOLERANCE else ""
    label, share = _unmix(pixels, ground)
    side = min(image.shape[:2])
    found = [_read_object(pixels, ground, region, label) for region in _objects(label, share, side)]
    return tuple(item for item in (_sized(item, side) for item in found) if item is not None), background


def _unmix(pixels: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The palette index of each pixel [H, W] and the share 0..1 of that colour in it [H, W]."""
    offset = pixels - ground
    rays = _PALETTE - ground
    shares = np.clip(offset @ (rays / np.square(rays).sum(1, keepdims=True).clip(1.0)).T, 0.0, 1.0)
    # |offset - a ray|^2 without the [H, W, 8, 3] array.
    residual = -2.0 * shares * (offset @ rays.T) + np.square(shares) * np.square(rays).sum(1)
    label = residual.argmin(-1)
    return label, np.take_along_axis(shares, label[..., None], -1)[..., 0]


def _objects(label: np.ndarray, share: np.ndarray, side: int) -> list[np.ndarray]:
    """Masks [H, W] of the objects: connected foreground, cut by colour where two colours touch."""
    least = 1.1 * (_LEAST_RADIUS * side) ** 2
    masks: list[np.ndarray] = []
    for region in connected_regions(share > _FOREGROUND):
        if region.sum() < least:
            continue
        weights = np.bincount(label[region], weights=share[region], minlength=len(_NAMES))
        strong = np.flatnonzero(weights >= _SECOND_COLOUR * weights.sum())
        if len(strong) < 2:
            masks.append(region)
            continue
        masks += [part for colour in strong for part in connected_regions(region & (label == colour)) if part.sum() >= least]
    return masks


def connected_regions(mask: np.ndarray) -> list[np.ndarray]:
    """The 8-connected regions of a boolean mask [H, W], each as a mask of the same shape, in reading order.

    Runs of a row are joined to overlapping runs of the row above by union-find; a scene has some dozens of runs.
    """
    padded = np.zeros((mask.shape[0], mask.shape[1] + 2), np.int8)
    padded[:, 1:-1] = mask
    change = np.diff(padded, axis=1)
    rows, starts = np.nonzero(change == 1)
    ends = np.nonzero(change == -1)[1]
    parent = list(range(len(rows)))

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    runs = list(zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True))
    by_row: dict[int, list[int]] = {}
    for run, (row, start, end) in enumerate(runs):
        for above in by_row.get(row - 1, ()):
            if runs[above][1] <= end and start <= runs[above][2]:  # one pixel of diagonal contact is enough
                parent[max(root(run), root(above))] = min(root(run), root(above))
        by_row.setdefault(row, []).append(run)
    regions: dict[int, np.ndarray] = {}
    for run, (row, start, end) in enumerate(runs):
        regions.setdefault(root(run), np.zeros(mask.shape, bool))[row, start:end] = True
    return list(regions.values())


def _read_object(pixels: np.ndarray, ground: np.ndarray, region: np.ndarray, label: np.ndarray) -> FoundObject | None:
    """Colour and shape of one region, in pixels; None when its colour is none of the palette."""
    index = int(np.bincount(label[region], minlength=len(_NAMES)).argmax())
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    top, bottom = max(0, rows[0] - 2), min(region.shape[0], rows[-1] + 3)
    left, right = max(0, columns[0] - 2), min(region.shape[1], columns[-1] + 3)
    # The object's own colour: the mean of its pixels farthest from the background (edges are mixtures).
    offset = pixels[top:bottom, left:right] - ground
    own = region[top:bottom, left:right]
    ray = _PALETTE[index] - ground
    along = offset @ ray / float(ray @ ray)
    core = own & (along >= np.quantile(along[own], 0.6))
    colour = offset[core].mean(0)
    if np.linalg.norm(colour - ray) > _COLOUR_TOLERANCE:
        return None
    coverage = np.clip(offset @ colour / float(colour @ colour), 0.0, 1.0) * _near(own)
    coverage[coverage < 0.12] = 0.0  # noise of the background
    shape, x, y, radius, overlap = _best_shape(coverage)
    return FoundObject(_NAMES[index], shape, "", left + x, top + y, radius, overlap)


def _near(mask: np.ndarray) -> np.ndarray:
    """The mask grown by one pixel in all directions: an object's soft edge, without its neighbours' pixels."""
    wide = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), bool)
    for down in range(3):
        for across in range(3):
            wide[down:down + mask.shape[0], across:across + mask.shape[1]] |= mask
    return wide[1:-1, 1:-1]


@cache
def _shape_moments() -> dict[str, tuple[float, float]]:
    """Shape -> (area, height of the centroid) in the shape's own box [-1, 1]^2."""
    centres = np.arange(400) + 0.5
    moments = {}
    for shape in SHAPES:
        mask = shape_coverage(shape, 200.0, 200.0, 180.0, centres, centres)
        moments[shape] = (float(mask.sum()) / 180.0**2, float((mask.sum(1) @ centres) / mask.sum() - 200.0) / 180.0)
    return moments


def _best_shape(coverage: np.ndarray) -> tuple[str, float, float, float, float]:
    """(shape, x, y, radius, overlap) of the shape that covers the same pixels best, given equal area and centroid."""
    xs, ys = np.arange(coverage.shape[1]) + 0.5, np.arange(coverage.shape[0]) + 0.5
    area = float(coverage.sum())
    x, y = float(coverage.sum(0) @ xs) / area, float(coverage.sum(1) @ ys) / area
    best = ("", x, y, (area / 3.0) ** 0.5, 0.0)
    for shape, (unit_area, drop) in _shape_moments().items():
        radius = (area / unit_area) ** 0.5
        template = shape_coverage(shape, x, y - drop * radius, radius, xs, ys)
        overlap = float(np.minimum(coverage, template).sum() / np.maximum(coverage, template).sum())
        if overlap > best[4]:
            best = (shape, x, y - drop * radius, radius, overlap)
    return best if best[4] >= _LEAST_OVERLAP else ("", *best[1:])


def _sized(item: FoundObject | None, side: int) -> FoundObject | None:
    """Pixels -> fractions of the side, and the word for the size; None for no object."""
    if item is None:
        return None
    radius = item.radius / side
    size = "small" if radius < _SMALL else "large" if radius > _LARGE else ""
    return FoundObject(item.colour, item.shape, size, item.x / side, item.y / side, radius, item.overlap)
