"""A visitor for the browser tests: a real Chromium, everything it complained about, and axe's eye for accessibility.

Screenshots go to the folder in IRIS_SCREENSHOTS, or to pytest's temporary folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

try:
    import axe_playwright_python
    from playwright.sync_api import Browser, Page, TimeoutError, expect, sync_playwright
except ImportError:
    Browser = Page = None
from demo_server import Server, server  # noqa: F401

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if Page is None or CHROMIUM is None:
    missing = "playwright with axe" if Page is None else "Chromium"
    warnings.warn(f"NO BROWSER TESTS: {missing} is not installed, so nobody has looked at the demo's pages.", stacklevel=1)
    pytest.skip(f"{missing} is not installed", allow_module_level=True)

AXE = Path(axe_playwright_python.__file__).parent / "axe.min.js"
PATIENCE = 90_000  # ms: two cores may be busy with something else
WIDE, NARROW = (1280, 800), (360, 740)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Visit:
    """One visitor's page, with everything that the browser complained about or asked other machines for."""

    def __init__(self, browser: Browser, url: str, size: tuple[int, int], scheme: str) -> None:
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, accept_downloads=True)
        self.context.set_default_timeout(PATIENCE)
        self.page: Page = self.context.new_page()
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: None if request.url.startswith((url, "data:", "blob:")) else self.outside.append(request.url))
        self.page.goto(url)
        expect(self.prompt).to_be_visible(timeout=PATIENCE)

    @property
    def prompt(self):
        return self.page.get_by_role("textbox", name="Prompt", exact=True)

    @property
    def status(self):
        return self.page.get_by_role("status").first

    def tab(self, *names: str) -> None:
        """Open a tab, and one inside it; on a narrow screen it may stand in the menu of those that found no room."""
        for name in names:
            assert any(self._chosen(name) for _ in range(10)), f"the tab {name} cannot be opened"

    def _chosen(self, name: str) -> bool:
        """One try; while a page opens, its tabs still move into the menu and out of it."""
        shown = self.page.get_by_role("tab", name=name, exact=True).locator("visible=true").first
        with contextlib.suppress(TimeoutError):
            shown.click(timeout=1500)
            return True
        with contextlib.suppress(TimeoutError):
            self.page.locator(".overflow-menu > button").locator("visible=true").first.click(timeout=1500)
            self.page.locator(".overflow-dropdown button", has_text=name).first.click(timeout=1500)
            return True
        return False

    def write(self, elem_id: str, text: str) -> None:
        """Type into a textbox or a number."""
        field = self.page.locator(f"#{elem_id}").locator("textarea, input[type=text], input[type=number], input:not([type])").first
        for _ in range(5):  # a page that is still opening may put its own value back
            field.fill(text)
            field.press("Tab")
            self.page.wait_for_timeout(200)
            if field.input_value() == text:
                return
        raise AssertionError(f"#{elem_id} does not keep {text!r}; it shows {field.input_value()!r}")

    def faults(self) -> list[str]:
        """What axe calls critical or serious, with the first place of each; Gradio's own pop-up messages left out."""
        self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found = self.page.evaluate("axe.run({exclude: ['.toast-wrap']}, {resultTypes: ['violations']}).then(result => result.violations)")
        return [f"{fault['id']}: {fault['nodes'][0]['html'][:160]}" for fault in found if fault["impact"] in ("critical", "serious")]

    def is_clean(self) -> None:
        """No complaint of the browser, no other machine asked, nothing wider than the screen."""
        assert self.errors == [] and self.outside == []
        assert self.page.evaluate("document.documentElement.scrollWidth") <= self.page.viewport_size["width"]

    def close(self) -> None:
        self.context.close()


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator:  # noqa: F811
    open_visits: list[Visit] = []

    def open_one(size: tuple[int, int] = WIDE, scheme: str = "light") -> Visit:
        open_visits.append(Visit(browser, server.url, size, scheme))
        return open_visits[-1]

    yield open_one
    for one in open_visits:
        one.close()


def screenshot(page: Page, name: str, tmp_path: Path) -> None:
    folder = Path(os.environ.get("IRIS_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png", full_page=True)


def loaded_width(page: Page, selector: str) -> int:
    """The width of a picture, once the browser has fetched it."""
    loaded = "s => { const i = document.querySelector(s); return i && i.complete && i.naturalWidth; }"
    return page.wait_for_function(loaded, arg=selector, timeout=PATIENCE).json_value()


