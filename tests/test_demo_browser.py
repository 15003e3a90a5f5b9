"""The demo as a person uses it: a real Chromium against a real server, light and dark, wide and narrow."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from demo_browser import NARROW, PATIENCE, WIDE, Visit, browser, expect, loaded_width, screenshot, visit  # noqa: F401
from demo_server import EXAMPLES, Server, server  # noqa: F401
from PIL import Image

from demo.png import read_png
from demo.serving import DOUBLE_CLICK

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_from_a_prompt_to_its_inside(visit, size: tuple[int, int], scheme: str, tmp_path: Path) -> None:  # noqa: F811
    visitor = visit(size, scheme)
    page = visitor.page
    visitor.prompt.fill("red apple")
    visitor.prompt.press("Enter")
    expect(visitor.status).to_contain_text("Done in 3 steps", timeout=PATIENCE)
    expect(visitor.status).to_contain_text("12 core passes")
    picture = page.get_by_role("img", name="red apple", exact=True)
    expect(picture).to_be_visible()
    assert loaded_width(page, "#picture img") == 32
    box = picture.bounding_box()
    assert abs(box["width"] - box["height"]) < 3 and box["width"] > 250
    assert picture.evaluate("image => getComputedStyle(image).imageRendering") == "pixelated"
    screenshot(page, f"create-{scheme}-{size[0]}", tmp_path)

    page.get_by_role("button", name="Look inside").first.click()
    sections = page.locator(".film details")
    expect(sections).to_have_count(3, timeout=PATIENCE)
    expect(sections.first.locator("img.strip")).to_have_count(3)  # the pictures and two layers of gates
    assert all(page.locator(".film details[open] img.strip").evaluate_all("images => images.map(i => i.naturalWidth > 0)"))
    expect(sections.first.locator(".share")).to_have_count(4)  # two layers, two iterations
    screenshot(page, f"inside-{scheme}-{size[0]}", tmp_path)

    ground = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).slice(0, 3).map(Number)")
    assert (sum(ground) / 3 < 90) == (scheme == "dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert visitor.errors == [] and visitor.outside == []


def start_a_long_drawing(visitor: Visit) -> None:
    visitor.page.get_by_role("button", name="Advanced").first.click()
    visitor.write("steps", "32")
    visitor.prompt.fill("a long drawing")
    visitor.page.get_by_role("button", name="Generate").click()
    expect(visitor.status).to_contain_text("of 32", timeout=PATIENCE)


def test_a_closed_tab_frees_the_model(visit, server: Server) -> None:  # noqa: F811
    visitor = visit()
    begun = server.pipeline.steps_begun
    start_a_long_drawing(visitor)
    visitor.close()
    time.sleep(1.0)
    at_rest = server.pipeline.steps_begun
    time.sleep(0.6)
    assert server.pipeline.steps_begun == at_rest < begun + 32


def test_stop_frees_the_model_and_the_page_goes_on(visit, server: Server) -> None:  # noqa: F811
    visitor = visit()
    page = visitor.page
    stop = page.get_by_role("button", name="Stop").first
    expect(stop).to_be_disabled()
    start_a_long_drawing(visitor)
    stop.click()
    expect(visitor.status).to_contain_text("Stopped", timeout=PATIENCE)
    expect(stop).to_be_disabled()
    page.wait_for_timeout(600)
    at_rest = server.pipeline.steps_begun
    time.sleep(0.6)
    assert server.pipeline.steps_begun == at_rest
    expect(visitor.status).to_contain_text("Stopped")

    visitor.write("steps", "2")
    visitor.prompt.press("Enter")
    expect(visitor.status).to_contain_text("Done in 2 steps", timeout=PATIENCE)
    assert visitor.errors == []


def test_words_entered_during_a_drawing_are_drawn_next_but_a_double_click_draws_once(visit, server: Server) -> None:  # noqa: F811
    visitor = visit()
    page = visitor.page
    start_a_long_drawing(visitor)
    visitor.write("steps", "2")
    page.wait_for_timeout(DOUBLE_CLICK)  # nobody has a second thought as fast as this test
    visitor.prompt.fill("a second thought")
    visitor.prompt.press("Enter")
    expect(page.get_by_role("img", name="a second thought", exact=True)).to_be_visible(timeout=PATIENCE)
    expect(visitor.status).to_contain_text("Done in 2 steps", timeout=PATIENCE)
    expect(page.locator("#visit button img")).to_have_count(2)

    begun = server.pipeline.steps_begun
    visitor.prompt.fill("a hasty hand")
    page.get_by_role("button", name="Generate").dblclick()
    expect(page.get_by_role("img", name="a hasty hand", exact=True)).to_be_visible(timeout=PATIENCE)
    expect(visitor.status).to_contain_text("Done in 2 steps", timeout=PATIENCE)
    page.wait_for_timeout(1000)
    assert server.pipeline.steps_begun == begun + 2

    visitor.write("steps", "32")
    visitor.prompt.fill("a long one")
    visitor.prompt.press("Enter")
    expect(visitor.status).to_contain_text("of 32", timeout=PATIENCE)
    page.wait_for_timeout(DOUBLE_CLICK)
    visitor.prompt.press("Enter")
    page.get_by_role("button", name="Stop").first.click()  # nor does what was stopped begin again
    expect(visitor.status).to_contain_text("Stopped", timeout=PATIENCE)
    page.wait_for_timeout(1000)
    at_rest = server.pipeline.steps_begun
    page.wait_for_timeout(600)
    assert server.pipeline.steps_begun == at_rest and visitor.errors == []


def test_a_page_that_is_loaded_anew_keeps_what_was_asked_for(visit) -> None:  # noqa: F811
    """As Gradio does by itself when a phone that slept has lost its connection."""
    visitor = visit()
    page = visitor.page
    page.get_by_role("button", name="Advanced").first.click()
    visitor.write("steps", "2")
    visitor.prompt.fill("a pear & a plum")
    visitor.prompt.press("Enter")
    expect(visitor.status).to_contain_text("Done in 2 steps", timeout=PATIENCE)
    page.reload()
    expect(visitor.prompt).to_have_value("a pear & a plum", timeout=PATIENCE)
    page.get_by_role("button", name="Advanced").first.click()
    expect(page.locator("#steps input[type=number]")).to_have_value("2")
    expect(page.get_by_role("checkbox", name="Random")).to_be_checked()
    assert visitor.errors == []


def test_an_example_runs_and_its_picture_is_saved_with_its_parameters(visit, tmp_path: Path) -> None:  # noqa: F811
    visitor = visit()
    page = visitor.page
    page.get_by_role("button", name=EXAMPLES[1]).click()
    expect(visitor.status).to_contain_text("Done in", timeout=PATIENCE)
    expect(visitor.prompt).to_have_value(EXAMPLES[1])
    with page.expect_download() as download:
        page.get_by_text("Save PNG").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    stored = read_png(path)
    assert stored["prompt"] == EXAMPLES[1] and path.name == f"iris-blue-bird-{stored['seed']}.png"
    assert Image.open(path).size == (32, 32)
    expect(visitor.status).to_contain_text(f"seed {stored['seed']}")


def test_an_empty_prompt_is_answered_with_a_sentence(visit) -> None:  # noqa: F811
    visitor = visit()
    visitor.prompt.press("Enter")
    expect(visitor.page.get_by_text("Write a prompt first")).to_be_visible(timeout=PATIENCE)
    expect(visitor.status).to_contain_text("Not finished; the message says why")
    expect(visitor.page.get_by_role("button", name="Stop").first).to_be_disabled()
