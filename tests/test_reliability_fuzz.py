"""Whatever comes in through a public entry, the answer is a result within its limits or one sentence of our own.

With --soak 10,000 calls, else a few hundred; the same ones in every run.
"""

from __future__ import annotations

import copy
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from demo.png import KEYWORD, read_png, write_png
from demo.request import GUIDANCE, ITERATIONS, MAX_SEED, STEPS, GenerationRequest
from iris.checkpoint import write_checkpoint
from iris.config import IRISConfig, preset
from iris.data import DataError, ImageFolder, open_image, parse_caption
from iris.data.pictures import clean_captions
from iris.pipeline import IRISPipeline, state_dicts

SOAK, SHORT = 10_000, 500
# The share of the calls that goes to each entry; the model's own gets the most.
SHARES = {"pipeline": 0.4, "request": 0.1, "metadata": 0.1, "picture": 0.12, "config": 0.1, "model": 0.02, "captions": 0.1, "folder": 0.03, "mask": 0.03}

JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=30), st.binary(max_size=5),
    st.sampled_from([-1, 1.7, 2**31, 1e99, "abc", float("nan"), float("inf"), "4", "auto", "", "\0", "x" * 100_000, [], {}, (), [1], {"a": 1}]),
)
PROMPTS = st.one_of(
    st.text(max_size=80), st.text(st.characters(), max_size=40),
    st.sampled_from(["", " ", "\0", "\ud800", "x" * 1000, "x" * 1001, "👩‍👩‍👧‍👦", "\u202ealert", "<img src=x onerror=alert(1)>", "../../etc/passwd", "{{7*7}}", "%s%n"]),
)


def sentence(error: Exception) -> bool:
    """The project's own ValueError with one readable sentence."""
    text = str(error)
    own = isinstance(error, ValueError) and type(error).__module__.split(".")[0] in ("iris", "demo")
    return own and text.endswith(".") and "\n" not in text and 10 < len(text) < 600


def try_many(entry: str, soak: bool, record: Callable, strategy: st.SearchStrategy, call: Callable[[Any], None]) -> None:
    """Give `call` the entry's share of examples; a ValueError of ours is an answer, anything else fails. Tells how many were what."""
    told = {"calls": 0, "answered": 0, "slowest": 0.0}

    @settings(max_examples=max(30, round(SHARES[entry] * (SOAK if soak else SHORT))), deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def one(value: Any) -> None:
        begun = time.monotonic()
        told["calls"] += 1
        try:
            call(value)
            told["answered"] += 1
        except ValueError as error:
            assert sentence(error), f"{type(error)}: {str(error)[:300]!r}"
        told["slowest"] = max(told["slowest"], time.monotonic() - begun)

    one()
    assert 0 < told["answered"] < told["calls"], "the examples must hold good ones and bad ones"
    record("tries", told["calls"])
    record("figure", f"{entry}: {told['answered']} answered, {told['calls'] - told['answered']} refused, slowest {told['slowest']:.2f} s")


def mostly(good: st.SearchStrategy) -> st.SearchStrategy:
    """Good values three times in four, so that a call with many arguments is not always refused for the first."""
    return st.integers(0, 3).flatmap(lambda die: JUNK if die == 0 else good)


def test_the_pipeline(pipeline: IRISPipeline, soak: bool, record_property) -> None:
    arguments = st.fixed_dictionaries({
        "prompt": st.one_of(PROMPTS, PROMPTS, PROMPTS, st.lists(PROMPTS, max_size=3), JUNK),
    }, optional={
        "negative_prompt": st.one_of(PROMPTS, JUNK), "num_steps": mostly(st.integers(1, 2)), "num_iterations": mostly(st.sampled_from([1, 2, 2.0, "auto"])),
        "guidance_scale": mostly(st.floats(0, 10)), "seed": mostly(st.one_of(st.none(), st.integers(0, MAX_SEED), st.lists(st.integers(0, 5), max_size=2))),
        "num_images": mostly(st.integers(1, 2)), "sampler": mostly(st.sampled_from(["euler", "heun"])),
    })

    def call(values: dict[str, Any]) -> None:
        if not too_many(values):
            result = pipeline(**values)
            assert all(image.size == (32, 32) and image.mode == "RGB" for image in result.images) and len(result.images) == len(result.seeds) >= 1
            assert all(0 <= seed <= MAX_SEED for seed in result.seeds) and bool(result.latents.isfinite().all())

    def too_many(values: dict[str, Any]) -> bool:
        """A valid call that would draw for minutes is no malformed one."""
        return any(type(values.get(name)) in (int, float) and 4 < values[name] <= 1000 for name in ("num_steps", "num_iterations", "num_images"))

    try_many("pipeline", soak, record_property, arguments, call)


def test_the_demos_request(soak: bool, record_property) -> None:
    good = (st.text(st.characters(categories=("L", "N")), min_size=1, max_size=40), PROMPTS, st.integers(0, MAX_SEED), st.integers(1, 32),
            st.one_of(st.integers(1, 32), st.just("auto")), st.floats(0, 10))
    fields = st.one_of(st.tuples(*good), st.tuples(st.one_of(PROMPTS, JUNK), st.one_of(PROMPTS, JUNK), *map(mostly, good[2:])))

    def call(values: tuple) -> None:
        request = GenerationRequest.parse(*values)
        assert request.prompt and len(request.prompt) <= 1000 and (request.seed is None or 0 <= request.seed <= MAX_SEED)
        assert STEPS[0] <= request.num_steps <= STEPS[1] and GUIDANCE[0] <= request.guidance_scale <= GUIDANCE[1]
        assert request.num_iterations == "auto" or ITERATIONS[0] <= request.num_iterations <= ITERATIONS[1]
        json.dumps(request.to_dict(), allow_nan=False)

    try_many("request", soak, record_property, fields, call)


GOOD_PARAMETERS = {"prompt": "red apple", "negative_prompt": "", "seed": 5, "num_steps": 4, "num_iterations": "auto", "guidance_scale": 2.5, "iterations": [4, 3]}


def damaged(data: bytes, edits: list[tuple[int, int]], cut: int) -> bytes:
    """`data` with bytes overwritten at places modulo its length, the last `cut` of them gone."""
    torn = bytearray(data)
    for place, value in edits:
        torn[place % len(torn)] = value
    return bytes(torn[:len(torn) - cut % len(torn)] if cut else torn)


EDITS = st.tuples(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=4), st.sampled_from([0, 0, 0, 1, 7, 100, 999]))
JSON = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=10)),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6)


def test_the_metadata_of_a_png(tmp_path: Path, soak: bool, record_property) -> None:
    file = tmp_path / "x.png"
    changes = st.dictionaries(st.sampled_from([*GOOD_PARAMETERS, "model", "sampler", "other"]), JSON, max_size=3)

    def call(value: tuple) -> None:
        change, (edits, cut), whole = value
        data = write_png(Image.new("RGB", (8, 8)), {**GOOD_PARAMETERS, **change})
        file.write_bytes(data if whole else damaged(data, edits, cut))
        told = read_png(file)
        GenerationRequest.parse(*(told[name] for name in ("prompt", "negative_prompt", "seed", "num_steps", "num_iterations", "guidance_scale")))

    assert KEYWORD == "iris"
    try_many("metadata", soak, record_property, st.tuples(changes, EDITS, st.booleans()), call)


def samples() -> list[bytes]:
    """Small files of every format that is read, with grain so that no byte is idle."""
    grain = np.random.default_rng(0).integers(0, 256, (24, 20, 4), dtype=np.uint8)
    made = []
    for kind, mode in (("PNG", "RGBA"), ("PNG", "P"), ("PNG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGBA"), ("PPM", "RGB")):
        stream = io.BytesIO()
        picture = Image.fromarray(grain[..., :3] if mode != "RGBA" else grain)
        picture.convert(mode).save(stream, kind)
        made.append(stream.getvalue())
    return made


@pytest.mark.filterwarnings("ignore")
def test_any_picture_file(soak: bool, record_property) -> None:
    files = samples()

    def call(value: tuple) -> None:
        which, (edits, cut), fresh = value
        pixels = open_image(damaged(files[which], edits, cut) if fresh is None else fresh, 16)
        assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8

    try_many("picture", soak, record_property, st.tuples(st.integers(0, len(files) - 1), EDITS, st.one_of(st.none(), st.none(), st.none(), st.binary(max_size=60))), call)


NANO = preset("nano").to_dict()
PLACES = [(part, leaf) for part, values in NANO.items() if isinstance(values, dict) for leaf in values] + [(part, "") for part in NANO] + [("unknown", "")]
CHANGES = st.lists(st.tuples(st.sampled_from(PLACES), st.one_of(JSON, st.integers(-5, 300), st.just(0.5))), min_size=0, max_size=2)


def changed_config(changes: list) -> dict[str, Any]:
    data = copy.deepcopy(NANO)
    for (part, leaf), value in changes:
        if not leaf:
            data[part] = value
        elif isinstance(data.get(part), dict):
            data[part][leaf] = value
    return data


def test_any_config(soak: bool, record_property) -> None:
    def call(changes: list) -> None:
        config = IRISConfig.from_dict(changed_config(changes))
        assert IRISConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config

    try_many("config", soak, record_property, CHANGES, call)


def test_a_model_whose_config_was_changed_and_signed_anew(pipeline: IRISPipeline, tmp_path: Path, soak: bool, record_property) -> None:
    weights = state_dicts(autoencoder=pipeline.autoencoder, generator=pipeline.generator)
    metadata = st.dictionaries(st.sampled_from(["defaults", "examples", "note"]), JSON, max_size=1)

    def call(value: tuple) -> None:
        changes, told = value
        folder = write_checkpoint(tmp_path / "model", changed_config(changes), weights, told)
        loaded = IRISPipeline.from_pretrained(folder)
        assert loaded("red apple", num_steps=1, num_iterations=1, seed=1, guidance_scale=1, sampler="euler").images[0].size == (32, 32)

    try_many("model", soak, record_property, st.tuples(CHANGES, metadata), call)


def test_any_caption(soak: bool, record_property) -> None:
    scenes = st.sampled_from(["a red circle", "two blue squares", "a large green star left of a small red ring", "a red circle on white", "a red"])
    pieces = st.lists(st.sampled_from(["a", "an", "red", "blue", "circle", "squares", "two", "left", "of", "above", "on", "white", "background", "large", ",", "and"]), max_size=9).map(" ".join)

    def call(value: Any) -> None:
        kept = clean_captions(value)
        assert len(kept) <= 16 and all(0 < len(text) <= 1000 and text.isprintable() for text in kept)
        parse_caption(value if isinstance(value, str) else kept[0] if kept else "")

    try_many("captions", soak, record_property, st.one_of(scenes, pieces, PROMPTS, JUNK, st.lists(st.one_of(PROMPTS, JUNK), max_size=20)), call)


def test_any_folder_of_pictures(tmp_path: Path, soak: bool, record_property) -> None:
    """Good rows, and among them whatever a row may be: the good ones come out, the rest is counted or refused."""
    for number in range(3):
        Image.new("RGB", (16, 16), (9 * number, 5, 5)).save(tmp_path / f"{number}.png")
    row = st.one_of(JSON.map(lambda value: json.dumps(value)), st.text(max_size=30), st.just('"' + "y" * 200_000), st.binary(max_size=20),
                    st.fixed_dictionaries({"file_name": st.one_of(JSON, st.sampled_from(["../x.png", "/etc/passwd", "x" * 300, "a\0b", "."]))}).map(json.dumps))

    def call(value: tuple) -> None:
        rows, kind = value
        good = [json.dumps({"file_name": f"{n}.png", "text": f"number {n}"}) if kind == "jsonl" else f"{n}.png,number {n}" for n in range(3)]
        lines = [line if isinstance(line, bytes) else line.encode("utf-8", "replace") for line in ([] if kind == "jsonl" else ["file_name,text"]) + good + rows]
        (tmp_path / f"metadata.{kind}").write_bytes(b"\n".join(lines))
        (tmp_path / f"metadata.{'csv' if kind == 'jsonl' else 'jsonl'}").unlink(missing_ok=True)
        data = ImageFolder(tmp_path, 16, "all")
        assert [data[index].captions[0] for index in range(3)] == [f"number {n}" for n in range(3)] and sum(data.skipped.values()) <= 1

    try_many("folder", soak, record_property, st.tuples(st.lists(row, max_size=3), st.sampled_from(["csv", "jsonl"])), call)


def test_any_mask(pipeline: IRISPipeline, soak: bool, record_property) -> None:
    editing = pytest.importorskip("iris.editing")
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    shapes = st.sampled_from([(32, 32), (32, 32), (32, 32), (16, 16), (32, 32, 3), (0, 0), (1, 4000), (32,)])

    def call(value: tuple) -> None:
        shape, seed, share, kind, strength = value
        grain = np.random.default_rng(seed).random(shape) < share
        mask = grain if kind == "bool" else grain.astype(np.uint8) * 255
        result = editing.finish(editing.inpaint(pipeline, image, mask, "red apple", strength, num_steps=1, num_iterations=1, seed=seed))
        kept = ~(grain if grain.shape == (32, 32) else np.ones((32, 32), bool))
        assert np.array_equal(np.asarray(result.images[0])[kept], np.asarray(image)[kept]), "outside the mask every pixel stays"

    strengths = st.one_of(st.floats(0, 1), st.floats(0, 1), JUNK)
    kinds = st.sampled_from(["bool", "grey"])
    try_many("mask", soak, record_property, st.tuples(shapes, st.integers(0, 9), st.sampled_from([0, 0.1, 0.5, 1.1]), kinds, strengths), call)


def test_the_checks_of_this_file_can_fail() -> None:
    assert not sentence(ValueError("a foreign one.")) and not sentence(DataError("no end")) and sentence(DataError("this one is fine."))
    assert abs(sum(SHARES.values()) - 1) < 1e-9
    assert damaged(b"abcdef", [(7, 0)], 2) == b"a\0cd"
