"""Every tab used as a person would, light and dark, wide and narrow; nothing that axe calls critical or serious."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from demo_browser import NARROW, PATIENCE, WIDE, Visit, browser, expect, loaded_width, screenshot, visit  # noqa: F401
from demo_server import Server, nano_pipeline, server  # noqa: F401
from PIL import Image

from demo.png import read_png
from demo.tabs import train
from iris.pipeline import SamplingDefaults

pytestmark = pytest.mark.browser
LOOKS = pytest.mark.parametrize(("size", "scheme"), [(WIDE, "light"), (WIDE, "dark"), (NARROW, "light"), (NARROW, "dark")],
                                ids=["wide-light", "wide-dark", "narrow-light", "narrow-dark"])


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    across, down = np.meshgrid(np.linspace(0, 255, 32), np.linspace(0, 255, 32))
    Image.fromarray(np.stack([across, down, 255 - across], -1).astype(np.uint8)).save(tmp_path / "mine.png")
    return tmp_path / "mine.png"


def look_at(visitor: Visit, name: str, size: tuple[int, int], scheme: str, tmp_path: Path) -> None:
    screenshot(visitor.page, f"{name}-{scheme}-{size[0]}", tmp_path)
    assert visitor.faults() == []
    visitor.is_clean()


def draw(visitor: Visit, prompt: str = "red apple") -> None:
    visitor.prompt.fill(prompt)
    visitor.prompt.press("Enter")
    expect(visitor.status).to_contain_text("Done in", timeout=PATIENCE)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def save(visitor: Visit, text: str, path: Path) -> Path:
    with visitor.page.expect_download() as download:
        visitor.page.get_by_text(text).locator("visible=true").first.click()
    download.value.save_as(path)
    return path


# --- Create --------------------------------------------------------------------------------------------------------


@LOOKS
def test_create_with_several_pictures_and_the_gallery(visit, size: tuple[int, int], scheme: str, tmp_path: Path) -> None:  # noqa: F811
    visitor = visit(size, scheme)
    page = visitor.page
    expect(page.get_by_role("radio", name="Best")).to_be_checked()  # what the model's makers chose
    page.get_by_role("button", name="Advanced").first.click()
    expect(page.locator("#steps input[type=number]")).to_have_value("3")
    expect(page.locator("#iterations input[type=number]")).to_have_value("2")
    visitor.write("images", "2")
    page.locator("#watch input").check()
    visitor.prompt.fill("red apple")
    visitor.prompt.press("Enter")
    expect(visitor.status).to_contain_text("Picture 2 of 2: Done in 3 steps", timeout=PATIENCE)
    shelf = page.locator("#visit button.thumbnail-lg, #visit .thumbnail-item")
    expect(shelf).to_have_count(2)
    shelf.nth(1).click()
    expect(visitor.status).to_contain_text("A picture of this visit")
    first = save(visitor, "Save PNG", tmp_path / "first.png")
    page.locator("#again").click()
    expect(page.locator("#randomise input")).not_to_be_checked()
    expect(page.locator("#seed input[type=number]")).to_have_value(str(read_png(first)["seed"]))
    visitor.write("images", "1")
    draw(visitor)
    np.testing.assert_array_equal(pixels(save(visitor, "Save PNG", tmp_path / "again.png")), pixels(first))
    look_at(visitor, "create", size, scheme, tmp_path)


def test_a_number_moved_by_hand_takes_the_efforts_name_away(visit) -> None:  # noqa: F811
    visitor = visit()
    page = visitor.page
    page.get_by_role("radio", name="Automatic").check()
    page.get_by_role("button", name="Advanced").first.click()
    expect(page.locator("#auto input")).to_be_checked()
    expect(page.locator("#iterations input[type=number]")).to_be_disabled()
    visitor.write("steps", "7")
    expect(page.get_by_role("radio", name="Automatic")).not_to_be_checked(timeout=PATIENCE)


def test_a_saved_png_restores_and_draws_the_same_picture(visit, tmp_path: Path) -> None:  # noqa: F811
    visitor = visit()
    page = visitor.page
    page.get_by_role("radio", name="Automatic").check()
    draw(visitor, "ein roter Apfel")
    path = save(visitor, "Save PNG", tmp_path / "one.png")
    other = visit(NARROW)
    other.page.get_by_role("button", name="Advanced").first.click()
    other.write("images", "3")
    other.page.get_by_role("button", name="Share and restore").click()
    other.page.locator("#drop input[type=file]").set_input_files(path)
    expect(other.status).to_contain_text("Restored", timeout=PATIENCE)
    expect(other.prompt).to_have_value("ein roter Apfel")
    expect(other.page.locator("#images input[type=number]")).to_have_value("1")  # it is one picture that is drawn again
    other.prompt.press("Enter")
    expect(other.status).to_contain_text("Done in", timeout=PATIENCE)
    np.testing.assert_array_equal(pixels(save(other, "Save PNG", tmp_path / "two.png")), pixels(path))
    other.is_clean()


def test_a_foreign_png_restores_nothing_and_says_so(visit, picture: Path) -> None:  # noqa: F811
    visitor = visit()
    visitor.page.get_by_role("button", name="Share and restore").click()
    visitor.page.locator("#drop input[type=file]").set_input_files(picture)
    expect(visitor.page.get_by_text("carries no IRIS parameters")).to_be_visible(timeout=PATIENCE)
    expect(visitor.status).to_contain_text("Nothing was restored")


def test_a_link_restores_the_page(visit, server: Server) -> None:  # noqa: F811
    visitor = visit()
    page = visitor.page
    page.get_by_role("radio", name="Best").check()
    draw(visitor, "two blue birds & <b>")
    page.get_by_role("button", name="Share and restore").click()
    page.get_by_role("button", name="Copy a link").click()
    expect(page.locator("#link")).to_have_text("Link copied")
    other = visit()
    other.page.goto(page.url)
    expect(other.prompt).to_have_value("two blue birds & <b>", timeout=PATIENCE)
    expect(other.page.get_by_role("radio", name="Best")).to_be_checked()
    expect(other.page.locator("#seed input[type=number]")).to_have_value(page.locator("#seed input[type=number]").input_value())
    other.page.goto(f"{server.url}?prompt=x&seed=abc")
    expect(other.status).to_contain_text("The link's seed is no number", timeout=PATIENCE)


# --- Depth and Inside ----------------------------------------------------------------------------------------------


@LOOKS
def test_depth_compares_and_goes_back_in_time(visit, size: tuple[int, int], scheme: str, tmp_path: Path) -> None:  # noqa: F811
    visitor = visit(size, scheme)
    page = visitor.page
    visitor.tab("Depth")
    visitor.write("depth-prompt", "red apple")
    page.locator("#depth-go").click()
    expect(page.locator("#turns .scrub")).to_be_visible(timeout=PATIENCE)
    assert page.locator("#depths img").count() >= 5
    frame = page.locator("#turns .frame").first
    before = frame.evaluate("element => getComputedStyle(element).backgroundPosition")
    page.locator("#turns input[type=range]").first.fill("1")
    page.locator("#turns input[type=range]").last.fill("1")
    expect(frame).not_to_have_css("background-position", before)
    look_at(visitor, "depth", size, scheme, tmp_path)


@LOOKS
def test_inside_silences_each_path(visit, size: tuple[int, int], scheme: str, tmp_path: Path) -> None:  # noqa: F811
    visitor = visit(size, scheme)
    visitor.tab("Inside")
    visitor.write("inside-prompt", "red apple")
    visitor.page.locator("#inside-go").click()
    expect(visitor.page.locator(".film details")).to_have_count(3, timeout=PATIENCE)
    visitor.page.locator("#silence").click()
    expect(visitor.page.locator("#silenced img")).to_have_count(4, timeout=PATIENCE)
    look_at(visitor, "inside", size, scheme, tmp_path)


# --- Edit ----------------------------------------------------------------------------------------------------------


@LOOKS
def test_painting_changes_only_what_is_painted(visit, size: tuple[int, int], scheme: str, tmp_path: Path) -> None:  # noqa: F811
    visitor = visit(size, scheme)
    page = visitor.page
    draw(visitor)
    source = pixels(save(visitor, "Save PNG", tmp_path / "source.png"))
    page.locator("#edit").click()
    canvas = page.locator("#editor canvas").first
    expect(canvas).to_be_visible(timeout=PATIENCE)
    page.get_by_role("radio", name="Repaint").check()
    expect(page.get_by_text("Paint over a part")).to_be_visible()
    page.wait_for_timeout(1500)  # the editor fits the picture to its room
    page.locator("#editor button[aria-label='Brush']").click()
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 10, y)
    page.mouse.down()
    page.mouse.move(x + 20, y, steps=6)
    page.mouse.up()
    page.wait_for_timeout(800)
    visitor.write("edit-prompt", "blue bird")
    page.locator("#edit-go").click()
    expect(page.get_by_role("status").locator("visible=true").first).to_contain_text("Done", timeout=PATIENCE)
    edited = pixels(save(visitor, "Save PNG", tmp_path / "edited.png"))
    changed = (edited != source).any(-1)
    rows, columns = np.where(changed)
    assert 4 < changed.sum() < 400, changed.sum()  # a stroke's worth, and the rest bit for bit
    assert 6 < rows.mean() < 26 and np.ptp(rows) < 24 and np.ptp(columns) < 31
    look_at(visitor, "edit", size, scheme, tmp_path)


@pytest.mark.parametrize(("kind", "name"), [("Redraw", "image-to-image"), ("Change words", "prompt-to-prompt"), ("Extend", "inpaint")])
def test_the_other_edits(visit, tmp_path: Path, kind: str, name: str) -> None:  # noqa: F811
    visitor = visit()
    page = visitor.page
    draw(visitor)
    page.locator("#edit").click()
    expect(page.locator("#editor canvas").first).to_be_visible(timeout=PATIENCE)
    page.wait_for_timeout(1500)
    page.get_by_role("radio", name=kind).check()
    visitor.write("edit-prompt", "blue bird")
    page.locator("#edit-go").click()
    expect(page.get_by_role("status").locator("visible=true").first).to_contain_text("Done", timeout=PATIENCE)
    told = read_png(save(visitor, "Save PNG", tmp_path / "edited.png"))
    assert told["edit"] == name and told["prompt"] == "blue bird"
    page.locator("#further").click()
    expect(page.locator("#edit-prompt").locator("textarea, input").first).to_have_value("blue bird")
    visitor.is_clean()


def test_a_photograph_of_a_phone_is_edited(visit, tmp_path: Path) -> None:  # noqa: F811
    """Twelve megapixels of noise: sent back as a PNG, as the editor's own upload does, it would be past every limit."""
    photo, broken = tmp_path / "photo.jpg", tmp_path / "broken.png"
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((4000, 3000), Image.Resampling.NEAREST).save(photo, quality=80)
    broken.write_bytes(b"no picture")
    visitor = visit()
    page = visitor.page
    visitor.tab("Edit")
    page.get_by_test_id("Choose a picture-upload-button").set_input_files(broken)
    expect(page.get_by_text("cannot be decoded")).to_be_visible(timeout=PATIENCE)
    page.get_by_test_id("Choose a picture-upload-button").set_input_files(photo)
    expect(page.get_by_text("Write what it should show and press Apply")).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#editor canvas").first).to_be_visible(timeout=PATIENCE)
    page.wait_for_timeout(1500)  # the editor hands over what it shows
    visitor.write("edit-prompt", "blue bird")
    page.locator("#edit-go").click()
    expect(page.get_by_role("status").locator("visible=true").first).to_contain_text("Done", timeout=PATIENCE)


def test_editing_nothing_is_answered_with_a_sentence(visit) -> None:  # noqa: F811
    visitor = visit()
    visitor.tab("Edit")
    visitor.write("edit-prompt", "blue bird")
    visitor.page.locator("#edit-go").click()
    expect(visitor.page.get_by_text("Choose a picture first")).to_be_visible(timeout=PATIENCE)


@LOOKS
def test_between_two_becomes_an_animation(visit, size: tuple[int, int], scheme: str, tmp_path: Path) -> None:  # noqa: F811
    visitor = visit(size, scheme)
    page = visitor.page
    visitor.tab("Edit", "Between two")
    visitor.write("from", "red apple")
    visitor.write("to", "blue bird")
    visitor.write("frames", "4")
    page.locator("#between-go").click()
    expect(page.locator("#between .frames img")).to_have_count(4, timeout=PATIENCE)
    expect(page.get_by_role("status").locator("visible=true").first).to_contain_text("4 frames", timeout=PATIENCE)
    with Image.open(save(visitor, "Save animation", tmp_path / "way.webp")) as film:
        assert film.n_frames == 6 and film.size == (32, 32)
    look_at(visitor, "between", size, scheme, tmp_path)


# --- Latents, Train, Model -----------------------------------------------------------------------------------------


@LOOKS
def test_latents_of_an_upload(visit, picture: Path, size: tuple[int, int], scheme: str, tmp_path: Path) -> None:  # noqa: F811
    visitor = visit(size, scheme)
    page = visitor.page
    visitor.tab("Latents")
    page.locator("#latents-source input[type=file]").set_input_files(picture)
    expect(page.locator("#bands img")).to_have_count(4, timeout=PATIENCE)
    expect(page.locator("#maps img")).to_have_count(8)
    expect(page.get_by_role("status").locator("visible=true").first).to_contain_text("dB")
    look_at(visitor, "latents", size, scheme, tmp_path)


def test_taking_a_picture_that_is_not_there_is_answered_with_a_sentence(visit) -> None:  # noqa: F811
    visitor = visit()
    visitor.tab("Latents")
    visitor.page.locator("#latents-take").click()
    expect(visitor.page.get_by_text("There is no picture in Create yet")).to_be_visible(timeout=PATIENCE)


@LOOKS
def test_train_says_what_it_needs(visit, size: tuple[int, int], scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(train.training, "JOBS", tmp_path / "jobs")
    visitor = visit(size, scheme)
    visitor.tab("Train")
    page = visitor.page
    page.get_by_role("radio", name="My own zip").check()
    expect(page.locator("#archive")).to_be_visible()
    page.locator("#train-go").click()
    expect(page.get_by_text("Upload a zip of captioned pictures first")).to_be_visible(timeout=PATIENCE)
    page.keyboard.press("Escape")
    look_at(visitor, "train", size, scheme, tmp_path)


@LOOKS
def test_model_shows_its_card_and_the_report(visit, size: tuple[int, int], scheme: str, tmp_path: Path) -> None:  # noqa: F811
    visitor = visit(size, scheme)
    visitor.tab("Model")
    expect(visitor.page.locator("#facts")).to_contain_text("nano", timeout=PATIENCE)
    visitor.tab("Report")
    expect(visitor.page.locator("#report")).to_contain_text("claim", timeout=PATIENCE)
    look_at(visitor, "model", size, scheme, tmp_path)


def test_a_model_that_is_typed_while_the_list_is_still_on_its_way_stays(visit) -> None:  # noqa: F811
    """Choosing the tab asks for the list anew; an answer that comes late may not take back what stands in the field by then."""
    visitor = visit()
    visitor.page.wait_for_timeout(1000)  # the page has opened
    held = []
    visitor.page.route("**/run/predict*", lambda route: held.append(route))
    visitor.tab("Model")
    visitor.write("choice", "someone/else")
    assert held, "the tab asked for nothing"
    with visitor.page.expect_response("**/run/predict*"):
        for request in held:
            request.continue_()
    visitor.page.wait_for_timeout(500)
    expect(visitor.page.locator("#choice input")).to_have_value("someone/else")


def test_another_model_brings_its_own_suggestions_to_every_page(visit, tmp_path: Path) -> None:  # noqa: F811
    """The last test of this server: it goes on with the other model."""
    other = nano_pipeline()
    other.metadata["examples"], other.metadata["by_iterations"] = ["green tree"], {"1": 0.25, "8": 0.5}
    other.defaults = SamplingDefaults(num_steps=5, num_iterations=7, guidance_scale=1.5)
    folder = other.save_pretrained(tmp_path / "green")
    visitor = visit()
    visitor.tab("Depth")
    expect(visitor.page.locator("#depth-note")).to_contain_text("has not been measured")
    visitor.tab("Model")
    visitor.write("choice", str(folder))
    visitor.page.locator("#load").click()
    expect(visitor.page.locator("#examples")).to_contain_text("green tree", timeout=PATIENCE)
    for one in (visitor, visit()):  # the one that loaded it, and one that is opened later
        page = one.page
        expect(page.locator("#examples")).to_contain_text("green tree", timeout=PATIENCE)
        expect(page.locator("#examples")).not_to_contain_text("red apple")
        expect(page.locator("#prompt textarea, #prompt input").first).to_have_attribute("placeholder", re.compile("green tree"))
        one.tab("Depth")
        expect(page.locator("#depth-prompt textarea, #depth-prompt input").first).to_have_attribute("placeholder", re.compile("green tree"))
        expect(page.locator("#depth-note")).to_contain_text("25% after 1 iteration, 50% after 8 iterations")
        expect(page.locator("#depth-steps input[type=number]")).to_have_value("5")
