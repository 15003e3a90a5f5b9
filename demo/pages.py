"""Documents shown inside the app: a model's card and the report, cut into pages, with their own pictures inside and no one else's."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

from PIL import Image

from demo.model import ROOT

REPORT = ROOT / "reports" / "REPORT.md"
CARD = "Model card"
MAX_CHARACTERS = 200_000
MAX_WIDTH = 1200  # px of a figure
_PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?://)[^)]*\)")


def page_names() -> list[str]:
    """The model card, then the report's headings."""
    return [CARD, *report_pages()]


def report_pages() -> dict[str, str]:
    """heading -> Markdown of that part of reports/REPORT.md; {} where there is no report."""
    if not REPORT.is_file():
        return {}
    pages: dict[str, str] = {}
    for part in re.split(r"^(?=#{1,3} )", REPORT.read_text(encoding="utf-8"), flags=re.MULTILINE):
        heading, _, body = part.partition("\n")
        if body.strip():
            pages[heading.lstrip("# ").strip()] = part
    return pages


def read_page(name: object, folder: Path | None) -> str:
    """The Markdown of a page, pictures inside; a sentence where there is none."""
    if name == CARD:
        card = folder / "README.md" if folder is not None else None
        if card is None or not card.is_file():
            return "This model has no card."
        text = card.read_text(encoding="utf-8", errors="replace")[:MAX_CHARACTERS]
        return embed(re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL), card.parent)
    page = report_pages().get(str(name))
    return embed(page, REPORT.parent) if page else "There is no such page."


def embed(text: str, folder: Path) -> str:
    """Pictures that lie below `folder` as data; any other picture as its words, so that no page asks another machine."""

    def shown(match: re.Match[str]) -> str:
        path = (folder / match[2]).resolve()
        if not path.is_relative_to(folder.resolve()) or path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp") or not path.is_file():
            return match[1]
        return f"![{match[1]}](data:image/png;base64,{_shrunk(path)})"

    return _PICTURE.sub(shown, _LINK.sub(r"\1", text))


def _shrunk(path: Path) -> str:
    """A figure of at most MAX_WIDTH pixels in 256 colours: a quarter of its bytes, and text stays sharp."""
    with Image.open(path, formats=["PNG", "JPEG", "WEBP"]) as picture:
        picture = picture.convert("RGB")
        picture.thumbnail((MAX_WIDTH, 4 * MAX_WIDTH))
        buffer = io.BytesIO()
        picture.quantize(256, method=Image.Quantize.MEDIANCUT).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
