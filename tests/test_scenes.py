"""Laws of the scenes: the checker reads back what was drawn, refuses anything else, and captions say what is there."""

import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from iris.data import (
    DataError,
    SceneFacts,
    Scenes,
    caption_scene,
    check_scene,
    parse_caption,
    render_scene,
    sample_scene,
)
from iris.data.scene_drawing import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SceneObject
from iris.data.scene_reading import connected_regions
from iris.data.scenes import HELD_OUT_KINDS, KINDS, is_held_out

RED_CIRCLE = SceneObject("red", "circle")


def spoil(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a good but imperfect generator does: blur (0.7 px), noise (8/255) and a colour cast of one level."""
    blurred = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(0.7)), np.float64)
    return np.clip(blurred + rng.normal(0, 8, image.shape) + rng.integers(-1, 2, 3), 0, 255).round().astype(np.uint8)


def other_facts(facts: SceneFacts, background: str) -> list[SceneFacts]:
    """Every way to change one fact: colour, shape, size, count, relation, background."""
    first, rest = facts.objects[0], facts.objects[1:]
    wrong = [(replace(first, colour=colour), *rest) for colour in COLOURS if colour != first.colour]
    wrong += [(replace(first, shape=shape), *rest) for shape in SHAPES if shape != first.shape]
    wrong += [(replace(first, size=size), *rest) for size in ("small", "large") if size != first.size]
    # Two unsaid sizes are equal facts only when another object of the same kind has the size that was put in.
    wrong = [objects for objects in wrong if objects[0] not in rest]
    changed = [replace(facts, objects=objects) for objects in wrong]
    changed += [replace(facts, objects=(*facts.objects, RED_CIRCLE), relation="")]
    changed += [replace(facts, objects=rest, relation="")] if rest else []
    changed += [replace(facts, relation=relation) for relation in RELATIONS if facts.relation and relation != facts.relation]
    return changed + [replace(facts, background=name) for name in BACKGROUNDS if name != background]


@pytest.mark.parametrize("split", ["train", "held_out"])
@pytest.mark.parametrize(("size", "count"), [(64, 1500), (32, 400), (128, 60)])
def test_checker_reads_every_own_rendering(split, size, count):
    scenes = Scenes(size, count, seed=1, split=split)
    assert all(check_scene(scenes[i].image, scenes.spec(i)).all_right for i in range(count))


def test_checker_refuses_every_changed_fact():
    scenes = Scenes(64, 120, seed=2)
    for i in range(len(scenes)):
        spec, image = scenes.spec(i), scenes[i].image
        for facts in other_facts(spec.facts, spec.background):
            assert not check_scene(image, facts).all_right, (spec.facts, facts)


@pytest.mark.parametrize(("size", "least"), [(64, 0.99), (32, 0.97)])
def test_checker_survives_blur_noise_and_a_colour_cast(size, least):
    scenes, rng = Scenes(size, 300, seed=3), np.random.default_rng(0)
    right = [check_scene(spoil(scenes[i].image, rng), scenes.spec(i)).all_right for i in range(300)]
    assert np.mean(right) >= least


def test_checker_names_what_is_wrong():
    rng = random.Random(5)
    spec = sample_scene(rng, 2, kinds=["relation"])
    image, (first, second) = render_scene(spec, 64), spec.facts.objects
    swapped = check_scene(image, replace(spec.facts, objects=(second, first)))
    assert swapped.objects_right and swapped.colour_right and not swapped.relation_right and not swapped.all_right
    crossed = replace(spec.facts, objects=(replace(first, colour=second.colour), replace(second, colour=first.colour)))
    if first.colour != second.colour and first.shape != second.shape:
        report = check_scene(image, crossed)
        assert report.colour_right and report.shape_right and not report.objects_right


def test_nothing_and_noise_hold_no_objects():
    assert check_scene(np.full((64, 64, 3), 255, np.uint8), SceneFacts((RED_CIRCLE,))).found == ()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert not check_scene(noise, SceneFacts((RED_CIRCLE,))).all_right


@pytest.mark.parametrize("image", [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3), np.float32), np.zeros((4, 4, 3), np.uint8)])
def test_checker_refuses_what_is_no_picture(image):
    with pytest.raises(DataError, match="uint8 array"):
        check_scene(image, SceneFacts((RED_CIRCLE,)))


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_every_caption_is_true_and_parses_back(split):
    scenes = Scenes(64, 400, seed=4, split=split)
    for i in range(len(scenes)):
        facts, example = scenes.spec(i).facts, scenes[i]
        assert parse_caption(example.captions[0]) == facts
        assert len(set(example.captions)) == len(example.captions) >= 3
        for caption in example.captions:
            assert check_scene(example.image, parse_caption(caption)).all_right, caption


@pytest.mark.parametrize(("typed", "canonical"), [
    ("A red circle.", "a red circle"), ("the big blue star on black", "a large blue star on a black background"),
    ("3 green crosses", "three green crosses"), ("an orange ring, a pink star, and a cyan square",
     "an orange ring, a pink star and a cyan square"), ("a red circle is to the left of the blue square", "a red circle left of a blue square"),
    ("a blue square underneath a red circle", "a blue square below a red circle"), ("red apple", None), ("", None),
    ("four red circles", None), ("a red circle left of a blue square and a green star", None),
])
def test_hand_typed_captions(typed, canonical):
    if canonical is None:
        with pytest.raises(DataError):
            parse_caption(typed)
    else:
        assert caption_scene(parse_caption(typed))[0] == canonical


def test_splits_share_words_but_no_compositions():
    train = [Scenes(64, 3000, seed=6).spec(i).facts for i in range(3000)]
    held_out = [Scenes(64, 500, seed=6, split="held_out").spec(i).facts for i in range(500)]
    assert not any(is_held_out(facts) for facts in train) and all(is_held_out(facts) for facts in held_out)
    kinds = {item.kind for facts in train for item in facts.objects}
    assert kinds == {f"{c} {s}" for c in COLOURS for s in SHAPES} - HELD_OUT_KINDS
    by_relation_alone = [facts for facts in held_out if not any(item.kind in HELD_OUT_KINDS for item in facts.objects)]
    assert by_relation_alone and all(facts.relation for facts in by_relation_alone)
    for facts in by_relation_alone:  # the same picture told from its other end is held out too
        inverse = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[facts.relation]
        assert is_held_out(SceneFacts(facts.objects[::-1], inverse))


def test_items_depend_on_seed_and_index_alone():
    whole, part = Scenes(32, 50, seed=7), Scenes(32, 10, seed=7)
    for i in (9, 0, 4):
        assert np.array_equal(whole[i].image, part[i].image) and whole[i].captions == part[i].captions and whole[i].key == part[i].key
    assert part[-1].key == part[9].key
    assert not np.array_equal(whole[0].image, Scenes(32, 50, seed=8)[0].image)
    with pytest.raises(IndexError):
        part[10]
    # Pinned: a change of this caption is a change of everybody's data.
    assert Scenes(64, 1, seed=0).spec(0).facts == SceneFacts((SceneObject("orange", "square"),))


@pytest.mark.parametrize("kind", list(KINDS))
def test_kinds_can_be_chosen(kind):
    for i in range(30):
        facts = Scenes(32, 30, kinds=[kind]).spec(i).facts
        assert (facts.relation != "") == (kind == "relation")
        assert len(facts.objects) in {"one": (1,), "many": (2, 3), "trio": (3,)}.get(kind, (2,))
        assert (len({item.kind for item in facts.objects}) == 1) == (kind in ("one", "many"))


@pytest.mark.parametrize("wrong", [{"split": "test"}, {"max_objects": 4}, {"kinds": ["blob"]}, {"kinds": ["trio"], "max_objects": 2}, {"size": 8}])
def test_bad_arguments_are_one_sentence(wrong):
    with pytest.raises(DataError, match="use "):
        Scenes(**{"size": 32, "count": 4, **wrong})


def test_connected_regions_match_a_slow_flood_fill():
    rng = np.random.default_rng(0)
    for density in (0.2, 0.45, 0.7):
        mask = rng.random((20, 24)) < density
        left, regions = mask.copy(), []
        for seed in zip(*np.nonzero(mask), strict=True):
            if not left[seed]:
                continue
            region, stack = np.zeros_like(mask), [seed]
            while stack:
                row, column = stack.pop()
                if 0 <= row < 20 and 0 <= column < 24 and left[row, column]:
                    left[row, column], region[row, column] = False, True
                    stack += [(row + a, column + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
            regions.append(region.tobytes())
        assert sorted(region.tobytes() for region in connected_regions(mask)) == sorted(regions)
