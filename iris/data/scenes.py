"""Procedural captioned scenes: facts are drawn at random, rendered, and told in several phrasings.

Splits hold out compositions, never words: the six kinds of `HELD_OUT_KINDS` (each shape once, six colours once) and one in
ten of the ordered relations between two seen kinds ("a red circle left of a blue square" and "a blue square right of a red
circle" are one and the same) are drawn only in split "held_out"; every scene of that split has at least one of them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

from iris.data.base import DataError, Example, checked_index, stable_hash
from iris.data.scene_drawing import (
    BACKGROUNDS,
    COLOURS,
    INVERSE_RELATION,
    RELATIONS,
    SHAPES,
    SIZES,
    Place,
    SceneFacts,
    SceneObject,
    SceneSpec,
    render_scene,
)
from iris.data.scene_reading import FoundObject, SceneReport, check_scene, read_scene

__all__ = [
    "BACKGROUNDS", "COLOURS", "HELD_OUT_KINDS", "KINDS", "RELATIONS", "SHAPES", "SIZES", "FoundObject", "Place", "SceneFacts", "SceneObject",
    "SceneReport", "SceneSpec", "Scenes", "caption_scene", "check_scene", "is_held_out", "parse_caption", "read_scene", "render_scene",
    "sample_scene",
]

T = TypeVar("T")

# Kind of scene -> (number of objects, how often it is drawn).
KINDS = {"one": (1, 0.35), "many": (2, 0.15), "pair": (2, 0.15), "relation": (2, 0.25), "trio": (3, 0.10)}
HELD_OUT_KINDS = frozenset({"red star", "orange ring", "yellow square", "green cross", "blue triangle", "purple circle"})
SPLITS = ("train", "held_out")
_RADII = {"small": (0.120, 0.140), "": (0.170, 0.210), "large": (0.260, 0.285)}
_LARGE_ALONE = (0.26, 0.40)
_MARGIN, _GAP = 0.03, 0.065
_COUNTS = {2: "two", 3: "three"}


def _pick(rng: random.Random, items: Sequence[T]) -> T:
    """One item at random. Only `rng.random()` is used in this file: Python promises its stream across versions."""
    return items[int(rng.random() * len(items))]


def _between(rng: random.Random, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def is_held_out(facts: SceneFacts) -> bool:
    """Whether these facts contain a composition that training never shows."""
    if any(item.kind in HELD_OUT_KINDS for item in facts.objects):
        return True
    if not facts.relation:
        return False
    first, second, relation = facts.objects[0].kind, facts.objects[1].kind, facts.relation
    if relation in ("right of", "below"):
        first, second, relation = second, first, INVERSE_RELATION[relation]
    return stable_hash(f"{first}|{relation}|{second}", 10) == 0


def sample_scene(rng: random.Random, max_objects: int = 3, kinds: Iterable[str] | None = None, split: str = "train") -> SceneSpec:
    """A random scene of `split` with at most `max_objects` objects, of one of `kinds` (all that fit by default).

    Raises DataError for an unknown kind or split, or kinds that need more objects than allowed.
    """
    allowed = _allowed_kinds(max_objects, kinds, split)
    mark = rng.random() * sum(KINDS[kind][1] for kind in allowed)
    for kind in allowed:
        mark -= KINDS[kind][1]
        if mark < 0:
            break
    while True:
        facts = _sample_facts(rng, kind, max_objects)
        if is_held_out(facts) != (split == "held_out"):
            continue
        places = _sample_places(rng, facts)
        if places is not None:
            return SceneSpec(facts, places, facts.background or _pick(rng, tuple(BACKGROUNDS)))


def _allowed_kinds(max_objects: int, kinds: Iterable[str] | None, split: str) -> list[str]:
    if split not in SPLITS:
        raise DataError(f"the split of scenes is {split!r}; use one of {', '.join(SPLITS)}.")
    if max_objects not in (1, 2, 3):
        raise DataError(f"max_objects is {max_objects!r}; use 1, 2 or 3.")
    wanted = tuple(KINDS) if kinds is None else tuple(kinds)
    unknown = [kind for kind in wanted if kind not in KINDS]
    allowed = [kind for kind in wanted if kind in KINDS and KINDS[kind][0] <= max_objects]
    if unknown or not allowed:
        raise DataError(f"the kinds of scenes are {', '.join(map(repr, wanted)) or 'empty'}; use some of {', '.join(KINDS)} that fit "
                        f"into max_objects={max_objects}.")
    return allowed


def _sample_facts(rng: random.Random, kind: str, max_objects: int) -> SceneFacts:
    def draw(sizes: Sequence[str]) -> SceneObject:
        return SceneObject(_pick(rng, tuple(COLOURS)), _pick(rng, tuple(SHAPES)), _pick(rng, sizes))

    background = _pick(rng, tuple(BACKGROUNDS)) if rng.random() < 0.4 else ""
    if kind == "one":
        objects: tuple[SceneObject, ...] = (draw(("", "", "small", "large")),)
    elif kind == "many":
        objects = (draw(("", "", "small")),) * (3 if max_objects == 3 and rng.random() < 0.5 else 2)
    else:
        number = 3 if kind == "trio" else 2
        objects = ()
        while len({item.kind for item in objects}) < number:
            sizes = ("", "small") if kind == "trio" else ("", "", "", "small", "large")
            objects = tuple(draw(sizes) for _ in range(number))
    return SceneFacts(objects, _pick(rng, RELATIONS) if kind == "relation" else "", background)


def _sample_places(rng: random.Random, facts: SceneFacts, tries: int = 30) -> tuple[Place, ...] | None:
    """Places whose boxes keep a gap, and for a relation lie clearly along its axis; None when `tries` draws found none."""
    single = len(facts.objects) == 1
    for _ in range(tries):
        places: list[Place] = []
        for item in facts.objects:
            radius = _between(rng, *(_LARGE_ALONE if single and item.size == "large" else _RADII[item.size]))
            low, high = _MARGIN + radius, 1.0 - _MARGIN - radius
            places.append(Place(_between(rng, low, high), _between(rng, low, high), radius))
        if facts.relation:
            places = _order_by_relation(places, facts.relation)
        if _keep_apart(places) and (not facts.relation or _clear_axis(places, facts.relation)):
            return tuple(places)
    return None


def _order_by_relation(places: list[Place], relation: str) -> list[Place]:
    """Mirror the picture when the two objects stand the wrong way round; half of the draws would be lost otherwise."""
    first, second = places
    if relation in ("left of", "right of") and (first.x < second.x) != (relation == "left of"):
        return [Place(1.0 - place.x, place.y, place.radius) for place in places]
    if relation in ("above", "below") and (first.y < second.y) != (relation == "above"):
        return [Place(place.x, 1.0 - place.y, place.radius) for place in places]
    return places


def _keep_apart(places: Sequence[Place]) -> bool:
    return all(max(abs(a.x - b.x), abs(a.y - b.y)) >= a.radius + b.radius + _GAP for i, a in enumerate(places) for b in places[:i])


def _clear_axis(places: Sequence[Place], relation: str) -> bool:
    across, down = abs(places[0].x - places[1].x), abs(places[0].y - places[1].y)
    return down < 0.5 * across if relation in ("left of", "right of") else across < 0.5 * down


# ---------------------------------------------------------------------------------------------------------------- captions

_LONG = {"left of": "to the left of", "right of": "to the right of", "above": "over", "below": "under"}


def _phrase(item: SceneObject, count: int = 1) -> str:
    """"a large red circle", "two red crosses"."""
    words = " ".join(word for word in (item.size, item.colour, item.shape) if word)
    if count > 1:
        return f"{_COUNTS[count]} {words}{'es' if item.shape == 'cross' else 's'}"
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def caption_scene(spec: SceneSpec | SceneFacts) -> tuple[str, ...]:
    """True phrasings of a scene, the canonical one first; all tell its objects and relation, some add the background."""
    facts = spec.facts if isinstance(spec, SceneSpec) else spec
    telling = _tell(facts)
    shown = spec.background if isinstance(spec, SceneSpec) else facts.background
    ground = f" on {'an' if shown[0] in 'aeiou' else 'a'} {shown} background" if shown else ""
    said = ground if facts.background else ""
    captions = [telling[0] + said, *(phrase + ground for phrase in telling[1:]), f"a picture of {telling[0]}{said}"]
    return tuple(dict.fromkeys([*captions, telling[0] + ground, telling[0]]))


def _tell(facts: SceneFacts) -> list[str]:
    first, count = facts.objects[0], len(facts.objects)
    if facts.relation:
        second, back = facts.objects[1], INVERSE_RELATION[facts.relation]
        return [f"{_phrase(first)} {facts.relation} {_phrase(second)}", f"{_phrase(first)} {_LONG[facts.relation]} {_phrase(second)}",
                f"{_phrase(second)} {back} {_phrase(first)}", f"{_phrase(second)} {_LONG[back]} {_phrase(first)}"]
    if count == 1:
        words = _phrase(first)
        size = f" {first.size}" if first.size else ""
        return [words, words.split(" ", 1)[1], f"one {words.split(' ', 1)[1]}", f"a{size} {first.shape} that is {first.colour}"]
    if len(set(facts.objects)) == 1:
        words = _phrase(first, count)
        return [words, f"{count} {words.split(' ', 1)[1]}", f"{'a pair' if count == 2 else 'a group'} of {words}"]
    phrases = [_phrase(item) for item in facts.objects]
    turned = phrases[1:] + phrases[:1]
    return [f"{', '.join(order[:-1])} and {order[-1]}" for order in (phrases, turned)] + [f"{', '.join(phrases[:-1])} with {phrases[-1]}"]


_PLAIN = {"gray": "grey", "colour": "", "colored": "", "coloured": "", "the": "a", "an": "a", "1": "one", "2": "two", "3": "three",
          "big": "large", "little": "small", "tiny": "small", "huge": "large"}
_LEAD = re.compile(r"^(?:a )?(?:picture|image|photo|drawing|painting) (?:of|with|showing) ")
_GROUND = re.compile(rf" (?:on|against|in front of) (?:a )?({'|'.join(BACKGROUNDS)})(?: background)?$")
_RELATION = re.compile(r" (?:is )?(?:(?:to|on) a )?(left of|right of|above|over|below|under|underneath|beneath) ")
_RELATION_WORDS = {"over": "above", "under": "below", "underneath": "below", "beneath": "below"}
_OBJECT = re.compile(rf"^(?:a (?:pair|group) of )?(?:(a|one|two|three) )?(?:({'|'.join(SIZES)}) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(?:s|es)?$")
_THAT_IS = re.compile(rf"^(a|one) (?:({'|'.join(SIZES)}) )?({'|'.join(SHAPES)}) that is ({'|'.join(COLOURS)})$")


def parse_caption(caption: str) -> SceneFacts:
    """The facts that a caption tells: the inverse of `caption_scene` for each of its phrasings, and of close hand-typed ones.

    Raises DataError when the sentence tells anything that a scene cannot hold.
    """
    words = re.sub(r"[^a-z0-9, ]", " ", caption.lower()).replace(",", " , ").split()
    text = " ".join(filter(None, (_PLAIN.get(word, word) for word in words)))
    text = _LEAD.sub("", text)
    ground = _GROUND.search(text)
    text = text[: ground.start()] if ground else text
    relation = _RELATION.search(f"{text} ")
    parts = [text[: relation.start()], text[relation.end():]] if relation else re.split(r" , and | , | and | with ", text)
    objects = tuple(item for part in parts for item in _parse_object(part.strip(), caption))
    if len(objects) > 3 or (relation and len(objects) != 2):
        raise DataError(f"the caption {caption[:80]!r} tells {len(objects)} objects; a scene has 1 to 3, and a relation joins two.")
    found = _RELATION_WORDS.get(relation[1], relation[1]) if relation else ""
    return SceneFacts(objects, found, ground[1] if ground else "")


def _parse_object(phrase: str, caption: str) -> tuple[SceneObject, ...]:
    match, swapped = _OBJECT.match(phrase), _THAT_IS.match(phrase)
    if not match and not swapped:
        raise DataError(f"the caption {caption[:80]!r} is not a scene: {phrase[:60]!r} is no object; say for example 'a red circle'.")
    number, size, colour, shape = match.groups() if match else (swapped[1], swapped[2], swapped[4], swapped[3])
    return (SceneObject(colour, shape, size or ""),) * {"two": 2, "three": 3}.get(number or "a", 1)


# ----------------------------------------------------------------------------------------------------------------- data set


class Scenes:
    """`count` scenes of `split`, each drawn when it is asked for (below 1 ms at 64 px).

    Item i depends on (seed, split, i), the kinds and `max_objects` alone. Restricted to fewer kinds it is the same wherever it was of one of them, so
    a mix of such sets repeats some pictures.
    """

    def __init__(self, size: int, count: int = 20_000, seed: int = 0, split: str = "train", max_objects: int = 3,
                 kinds: Iterable[str] | None = None) -> None:
        if size < 16 or count < 0:
            raise DataError(f"scenes of size {size} and count {count} cannot be made; use a size from 16 and a count from 0.")
        self.skipped: dict[str, int] = {}
        self.size, self.count, self.seed, self.split, self.max_objects = size, count, seed, split, max_objects
        self.kinds = tuple(_allowed_kinds(max_objects, kinds, split))
        every = self.kinds == tuple(_allowed_kinds(max_objects, None, split))
        self.name = f"scenes:{','.join(self.kinds)}" if not every else f"scenes:{max_objects}" if max_objects < 3 else "scenes"

    def __len__(self) -> int:
        return self.count

    def spec(self, index: int) -> SceneSpec:
        """The facts and places of item `index`, without drawing it."""
        index = checked_index(index, self.count)
        # A string seed is hashed with SHA-512, so neighbouring indices are unrelated.
        return sample_scene(random.Random(f"{self.seed}/{self.split}/{index}"), self.max_objects, self.kinds, self.split)

    def __getitem__(self, index: int) -> Example:
        spec = self.spec(index)
        kinds = dict.fromkeys(item.kind for item in spec.facts.objects)
        key = f"scenes-{self.split}-{self.seed}-{index % self.count}"
        return Example(render_scene(spec, self.size), caption_scene(spec), " and ".join(kinds), key)
