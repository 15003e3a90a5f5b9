"""Depth, latents, charts and papers of the page: each against the library, an inverse or a closed form."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from demo.chart import Line, Scale, line_chart
from demo.encoding import DETAIL_GAIN, encoding_stream, haar_pictures, latent_map
from demo.model import LoadedModel
from demo.papers import NO_CARD, model_card, readable, report_page, report_pages
from demo.pictures import sheet
from demo.ranges import ranges_html
from demo.request import GenerationRequest
from demo.tabs.depth import _depth_event, _refine_event
from demo.tabs.inside import _look_event, _silence_event, look_stream
from demo.thinking import comparing_stream, depth_note, heat_frame, refining_stream, scrub_html, thinking_stream
from iris.evaluation.metrics import psnr
from iris.pipeline import IRISPipeline, from_pil

REQUEST = GenerationRequest("a red circle", seed=3, num_steps=3, num_iterations=4, guidance_scale=2.0)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


@pytest.fixture
def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


# --- depth ---------------------------------------------------------------------------------------------------------


def test_every_depth_is_the_pipelines_own_picture(pipeline: IRISPipeline) -> None:
    moments = list(comparing_stream(LoadedModel(pipeline))(REQUEST, [1, 4, "auto"]))
    shares, compared = ([moment for moment in moments if isinstance(moment, float) == wanted] for wanted in (True, False))
    assert shares == sorted(shares) and len(shares) == 3 * REQUEST.num_steps and shares[-1] == 1.0  # Stop is heard after each step
    for at, depth in zip(compared, [1, 4, "auto"], strict=True):
        plain = pipeline(**replace(REQUEST, num_iterations=depth).arguments())
        np.testing.assert_array_equal(pixels(at.image), pixels(plain.images[0]))
        assert at.iterations == plain.iterations[0] and at.parameters["seed"] == 3


@pytest.mark.parametrize(("metadata", "told"), [
    ({}, "has not been measured"),
    ({"by_iterations": {"1": 0.25, "8": 0.5}}, "drawn right with every step begun anew: 25% after 1 iteration, 50% after 8 iterations."),
    ({"figures": {"depth": {"by_iterations": [{"num_iterations": n, "kid": {"value": 0.0807 - n / 1000}} for n in (1, 2)]}}},
     "from real ones (0 is best): 0.080 after 1 iteration, 0.079 after 2 iterations."),
    ({"by_iterations": {"1": "<b>", "x": 0.5, "99": 0.1}, "figures": {"depth": [1]}}, "has not been measured"),
    ({"figures": {"depth": {"by_iterations": [{"num_iterations": "<b>", "kid": {"value": 0.1}}, {"num_iterations": 2, "kid": {"value": "x"}}]}}}, "has not been measured"),
])
def test_what_thinking_longer_buys_is_told_as_it_was_measured(pipeline: IRISPipeline, metadata: dict, told: str) -> None:
    other = copy.copy(pipeline)
    other.metadata = metadata
    assert told in depth_note(other) and "<b>" not in depth_note(other)


def test_an_opened_drawing_ends_at_the_same_picture_and_stops_where_automatic_does(pipeline: IRISPipeline) -> None:
    *shares, thought = thinking_stream(LoadedModel(pipeline))(REQUEST)
    assert shares == sorted(shares) and len(shares) == 2 * REQUEST.num_steps and shares[-1] == 1.0  # Stop is heard after each step of both drawings
    np.testing.assert_array_equal(thought.trace.image, pixels(pipeline(**REQUEST.arguments()).images[0]))
    assert thought.stops == pipeline(**replace(REQUEST, num_iterations="auto").arguments()).iterations[0]
    assert thought.threshold == pipeline.defaults.exit_threshold


def test_the_page_opens_at_the_last_turn_and_its_sliders_reach_every_frame(pipeline: IRISPipeline) -> None:
    page = scrub_html(list(thinking_stream(LoadedModel(pipeline))(replace(REQUEST, prompt="<script>")))[-1])
    assert "--i:3;--s:2;--n:4;--m:3" in page and "script" not in page
    assert re.findall(r'type="range" min="1" max="(\d+)"', page) == ["4", "3"]
    assert page.count("<polyline") == 3 and page.count("<circle") <= 3


def test_a_sheet_keeps_every_frame_in_its_place() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8, 3), dtype=np.uint8)
    whole = pixels(sheet(frames))
    for row in range(3):
        for column in range(4):
            np.testing.assert_array_equal(whole[8 * row:8 * row + 8, 8 * column:8 * column + 8], frames[row, column])
    assert max(sheet(frames, widest=16).size) == 16


def test_refining_goes_on_from_the_state(pipeline: IRISPipeline) -> None:
    refine = refining_stream(LoadedModel(pipeline))
    *shares, finished, once = refine(REQUEST)
    assert len(shares) == REQUEST.num_steps and all(0 < share < 1 for share in shares)
    (twice,) = refine(once)
    start = pipeline(**REQUEST.arguments())
    expected = pipeline.refine(pipeline.refine(start, num_iterations=4), num_iterations=4)
    np.testing.assert_array_equal(pixels(twice.pictures[-1].image), pixels(expected.images[0]))
    np.testing.assert_array_equal(pixels(twice.pictures[0].image), pixels(start.images[0]))
    assert len(twice.pictures) == 3 and len(finished.pictures) == 1


def test_what_is_refined_is_what_was_compared_with_an_empty_seed_too(pipeline: IRISPipeline) -> None:
    """Whatever the fields say by then."""
    model = LoadedModel(pipeline)
    *_, last = _depth_event(model, comparing_stream(model), thinking_stream(model))("red apple", "", None, 1, 2, 1.0)
    asked = last[-1]
    *_, (_, _, once) = _refine_event(model)(asked)
    *_, (page, _, twice) = _refine_event(model)(once)
    assert once.request == twice.request == asked and "refined 2 ×" in page
    with pytest.raises(gr.Error, match="press Compare first"):
        list(_refine_event(model)(None))


def test_the_two_buttons_of_inside_show_one_drawing_when_the_seed_was_empty(pipeline: IRISPipeline) -> None:
    model = LoadedModel(pipeline)
    (*_, seed), *_ = _look_event(model, look_stream(model))("red apple", "", None, 1, 2, 1.0)
    assert isinstance(seed, int)
    (*_, kept), *_ = _silence_event(model)("red apple", "", seed, 1, 2, 1.0)
    assert kept == gr.skip()


def test_the_thinking_map_is_pale_where_nothing_moves_and_violet_where_all_does() -> None:
    white = np.full((8, 8, 3), 255, dtype=np.uint8)
    left, right = heat_frame(white, np.array([[0.001, 1.0]])).reshape(-1, 3)[[0, -1]].astype(int)
    assert left.min() > 225 and right[2] > right[0] > right[1] and right[1] < 120


# --- latents -------------------------------------------------------------------------------------------------------


def test_the_bands_of_an_even_picture_are_itself_and_grey() -> None:
    bands = haar_pictures(from_pil([Image.new("RGB", (8, 8), (200, 30, 60))]))
    assert np.abs(pixels(bands["LL"]).astype(int) - (200, 30, 60)).max() <= 1
    assert all((pixels(bands[name]) == 128).all() for name in ("LH", "HL", "HH"))


def test_a_step_along_rows_is_in_its_band_alone_and_stronger() -> None:
    columns = np.tile(np.array([120, 136], dtype=np.uint8), (8, 4))
    bands = haar_pictures(from_pil([Image.fromarray(columns).convert("RGB")]))
    assert (pixels(bands["HL"]) == 128).all() and (pixels(bands["HH"]) == 128).all()
    assert np.abs(pixels(bands["LH"]).astype(float) - (127.5 - DETAIL_GAIN / 2 * (136 - 120))).max() <= 1


def test_what_comes_back_is_the_autoencoders_own_and_its_psnr(pipeline: IRISPipeline, noise: Image.Image) -> None:
    encoded = next(encoding_stream(LoadedModel(pipeline))(noise))
    rebuilt = pipeline.decode(pipeline.encode(noise))[0]
    np.testing.assert_array_equal(pixels(encoded.rebuilt), pixels(rebuilt))
    error = (pixels(rebuilt).astype(float) - pixels(noise)) / 127.5
    assert encoded.psnr == pytest.approx(10 * np.log10(4 / np.square(error).mean()), abs=1e-3)
    assert encoded.psnr == pytest.approx(float(psnr(from_pil([rebuilt]), from_pil([noise]))[0]))


def test_latent_maps_lean_to_blue_above_zero_and_to_orange_below() -> None:
    low, middle, high = pixels(latent_map(np.array([[-1.0, 0.0, 1.0]]), 1.0))[0, [0, 31, -1]].astype(int)
    assert low[0] > low[2] and high[2] > high[0] and middle.min() > 225


# --- charts --------------------------------------------------------------------------------------------------------


def test_equal_ratios_are_equal_heights_and_equal_differences_equal_widths() -> None:
    scale = Scale.around([(1, 0.01), (9, 1.0)])
    assert scale.y(0.01) - scale.y(0.1) == pytest.approx(scale.y(0.1) - scale.y(1.0))
    assert scale.x(5) - scale.x(1) == pytest.approx(scale.x(9) - scale.x(5))


@pytest.mark.parametrize("points", [[(1, 1.0)], [(1, 0.0), (2, 0.0)], [(1, 1e-9), (400, 1e9)], []])
def test_any_points_make_a_chart_of_finite_numbers(points: list[tuple[float, float]]) -> None:
    drawn = line_chart([Line(points, dots=points)], "a line", "x", "y", 0.03)
    assert "nan" not in drawn and "inf" not in drawn
    assert bool(drawn) == bool(points)


def test_a_chart_of_one_point_names_its_one_place() -> None:
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", line_chart([Line([(1, 0.5)])], "a line", "x", "y"))
    assert texts.count("1") >= 1 and "2" not in texts


def test_ranges_are_those_of_the_weights(pipeline: IRISPipeline) -> None:
    page = ranges_html(pipeline)
    radii = [float(value) for layer in pipeline.generator.core.layers for value in layer.mixer.spatial.radii()]
    assert f"from {min(radii):.1f} to {max(radii):.1f} tokens" in page
    assert page.count("<polyline") == 2 * len(pipeline.generator.core.layers)


# --- papers --------------------------------------------------------------------------------------------------------


def test_a_card_shows_without_a_network_and_reaches_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("secret.png", "model/samples.png"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    text = ("---\nlicense: x\n---\n# Card\n![mine](samples.png) ![theirs](https://example.org/a.png) ![up](../secret.png) ![none](no.png)\n"
            "[file](../LICENSE) [site](https://example.org)\n\n| a | b |\n|---|---|\n| 1 | 2 |\n")
    (tmp_path / "model" / "README.md").write_text(text)
    card = model_card(tmp_path / "model")
    assert card.startswith("# Card") and card.count("data:image/png;base64,") == 1
    assert "theirs" in card and "a.png" not in card and "secret" not in card and "LICENSE" not in card
    assert "[site](https://example.org)" in card and card.count('tabindex="0"') == 1
    assert model_card(tmp_path) == model_card(None) == NO_CARD


def test_the_report_is_split_at_its_headings_and_nothing_is_lost(tmp_path: Path) -> None:
    report = tmp_path / "REPORT.md"
    report.write_text("# Title\nclaims\n## One\nfirst\n## Two\nsecond\n")
    assert list(report_pages(report)) == ["Claims", "One", "Two"]
    assert "second" in report_page("Two", report) and "claims" in report_page("no such page", report)
    assert report_pages(tmp_path / "none.md") == {} and "make reports" in report_page("Claims", tmp_path / "none.md")


def test_the_repositorys_own_report_has_pages_that_open() -> None:
    for name in report_pages():
        assert len(report_page(name)) > 100
    assert "data:image/png" in "".join(report_page(name) for name in report_pages())


def test_damaged_text_is_still_readable(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"# Card \xff\xfe")
    assert readable(tmp_path / "README.md").startswith("# Card")
