"""What is written about the model: its card, and the report with its figures, as Markdown that shows without a network."""

from __future__ import annotations

import base64
import re
from functools import lru_cache
from pathlib import Path

from demo.model import ROOT

MAX_TEXT, MAX_PICTURE = 400_000, 3_000_000  # bytes
NO_CARD = "This model brings no card. Its folder may hold one as `README.md`."
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_PICTURE = re.compile(r"!\[([^\]\n]*)\]\(([^)\s]+)\)")
_LOCAL_LINK = re.compile(r"(?<!!)\[([^\]\n]*)\]\((?!https?://|#)[^)\s]*\)")
_TABLE = re.compile(r"(?:^\|.*\|[ ]*(?:\n|\Z))+", re.MULTILINE)
_CHAPTER = re.compile(r"^## (.+)$", re.MULTILINE)


def model_card(folder: Path | None) -> str:
    """The card in a model folder, with its own pictures inside the text."""
    card = folder / "README.md" if folder is not None else None
    return readable(card) if card is not None and card.is_file() else NO_CARD


def report_pages(report: Path | None = None) -> dict[str, str]:
    """The report's pages by name: one for each heading, the first named Claims; {} when there is no report."""
    report = report or ROOT / "reports" / "REPORT.md"
    if not report.is_file():
        return {}
    text = report.read_text(encoding="utf-8")
    names, parts = ["Claims", *_CHAPTER.findall(text)], re.split(_CHAPTER, text)
    return {name: part for name, part in zip(names, [parts[0], *parts[2::2]], strict=True)}


def report_page(name: str, report: Path | None = None) -> str:
    """One page with its figures; an unknown name gives the first."""
    report = report or ROOT / "reports" / "REPORT.md"
    pages = report_pages(report)
    return _without_network(pages.get(name) or next(iter(pages.values()), "There is no report yet: `make reports` writes it."), report.parent)


def readable(file: Path) -> str:
    """A Markdown file without its front matter, complete in itself."""
    return _readable(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _readable(file: Path, _: int) -> str:
    """Megabytes of pictures: not read anew for every visitor, but when the file is another one."""
    text = file.read_text(encoding="utf-8", errors="replace")[:MAX_TEXT]
    return _without_network(_FRONT_MATTER.sub("", text), file.parent)


def _without_network(text: str, folder: Path) -> str:
    """Pictures beside the text go into it; pictures from elsewhere, and links to files that no visitor can open, become words."""
    text = _LOCAL_LINK.sub(r"\1", _PICTURE.sub(lambda match: _inside(match[1], match[2], folder), text))
    # A table wider than the screen scrolls by itself, and what scrolls must be reachable by keyboard.
    return _TABLE.sub(lambda match: f'<div class="scroll" tabindex="0" role="region" aria-label="Table">\n\n{match[0]}\n</div>\n', text)


def _inside(words: str, name: str, folder: Path) -> str:
    path = (folder / name).resolve()
    fits = path.is_relative_to(folder.resolve()) and path.suffix == ".png" and path.is_file() and path.stat().st_size <= MAX_PICTURE
    return f"![{words}](data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()})" if fits else words
