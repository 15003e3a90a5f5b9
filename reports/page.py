"""The reader's pages: every executed notebook as HTML without code, and one index page. Self-contained, no network needed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from reports.claims import FAILS, HOLDS
from reports.notebooks import ROOT
from reports.results import write_text
from reports.runner import Task
from reports.writing import Judged, count_verdicts

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --soft: #666; --line: #ddd; --ground: #fff; --good: #0a7a4b; --bad: #b3341f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --soft: #a5a5a5; --line: #3a3a3a; --ground: #161616; --good: #4ecb94; --bad: #ff8a70; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--ground); margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0 .5rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; } a { color: inherit; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; } .wide { overflow-x: auto; }
pre { overflow-x: auto; font-size: .85rem; color: var(--soft); white-space: pre-wrap; }
table { border-collapse: collapse; font-size: .92rem; } th, td { text-align: left; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.soft { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); font-weight: 600; }
.shots { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; } .shots figure { margin: 0; } figcaption { font-size: .85rem; color: var(--soft); }
.anchor-link { display: none; }
"""
_CARRIAGE = re.compile(r"[^\n]*\r(?!\n)")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_BAR = re.compile(r"\d+%\|.*\||\d+(?:step|batch|it|cell|emoji) \[")
_WIDGET = "application/vnd.jupyter.widget-view+json"


def page(title: str, body: str) -> str:
    """A whole HTML document."""
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n")


def notebook_page(executed: Path, title: str) -> str:
    """An executed notebook as a page: prose, figures and printed lines; no code, no progress bars, none of this machine's folders."""
    import nbformat
    from nbconvert import HTMLExporter

    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(_readable, cell.outputs) if output is not None]
    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True)
    body, _ = exporter.from_notebook_node(notebook)
    return page(title, f'<p><a href="../index.html">All notebooks</a></p>\n{body}'.replace(str(ROOT), "."))


def _readable(output: Any) -> Any:
    """An output without what only makes sense while it happens: widgets, progress bars, colour codes; None if nothing is left."""
    if output.output_type == "stream":
        lines = _ESCAPES.sub("", _CARRIAGE.sub("", output.text)).split("\n")
        output.text = "\n".join(line for line in lines if not _BAR.search(line))
        return output if output.text.strip() else None
    if _WIDGET in output.get("data", {}):
        return None
    return output


def write_pages(tasks: Sequence[Task], site: Path, profile: str) -> dict[str, str]:
    """A page for each executed notebook in SITE/PROFILE, unless it is there already; returns number -> address relative to SITE."""
    written = {}
    for task in tasks:
        if task.executed.is_file():
            address = f"{profile}/{task.notebook.name}.html"
            if not (site / address).is_file() or (site / address).stat().st_mtime < task.executed.stat().st_mtime:
                write_text(site / address, notebook_page(task.executed, task.notebook.title))
            written[task.notebook.number] = address
    return written


def write_index(results: Mapping[str, Any], judged: Sequence[Judged], pages: Mapping[str, str], tasks: Sequence[Task], site: Path) -> Path:
    """SITE/index.html: what was run, the claims with their verdicts, and a picture from each notebook."""
    about = results["about"]
    body = [f"<h1>IRIS: profile {escape(results['profile'])}</h1>", f"<p>{escape(about['cost'])} {escape(about['reaches'])}</p>",
            f'<p class="soft">{escape(results["machine"] or "")} · {results["date"]}</p>',
            "<h2>Notebooks</h2>", _notebook_table(results, pages),
            "<h2>What was promised and what was measured</h2>", f"<p>{escape(count_verdicts(judged))}</p>", _claim_table(judged, pages),
            "<h2>Figures</h2>", _shots(tasks, pages)]
    write_text(site / "index.html", page(f"IRIS: profile {results['profile']}", "\n".join(body)))
    return site / "index.html"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of ready HTML."""
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    return f'<div class="wide"><table><thead><tr>{"".join(f"<th>{name}</th>" for name in head)}</tr></thead><tbody>\n{lines}</tbody></table></div>'


def _notebook_table(results: Mapping[str, Any], pages: Mapping[str, str]) -> str:
    rows = []
    for number, row in results["notebooks"].items():
        title = f"{number} {escape(row['title'])}"
        linked = f'<a href="{pages[number]}">{title}</a>' if number in pages else title
        steps = f"{row['step']:,}" if isinstance(row.get("step"), int) else ""
        readings = "<br>".join(escape(sentence) for sentence in results["readings"].get(number, [])[:2])
        rows.append((linked, escape(row["status"]), f"{row['seconds'] / 60:.1f}", steps, readings))
    return _table(("notebook", "status", "minutes", "steps", "reading"), rows)


def _claim_table(judged: Sequence[Judged], pages: Mapping[str, str]) -> str:
    rows = []
    for item in judged:
        kind = {HOLDS: "good", FAILS: "bad"}.get(item.verdict, "soft")
        number = item.claim.notebook
        where = f'<a href="{pages[number]}">{number}</a>' if number in pages else escape(number)
        note = f'<br><span class="soft">{escape(item.claim.note)}</span>' if item.claim.note else ""
        rows.append((escape(item.claim.text) + note, escape(item.claim.claimed), escape(item.measured),
                     f'<span class="{kind}">{item.verdict}</span>', where, escape(item.profile), escape(item.commit)))
    return _table(("claim", "claimed", "measured", "verdict", "notebook", "profile", "commit"), rows)


def _shots(tasks: Sequence[Task], pages: Mapping[str, str]) -> str:
    """Two small pictures from each notebook, embedded, each linked to its page; the last ones: they show what came out."""
    shots = []
    for task in tasks:
        for path in sorted((task.folder / "figures").glob("[0-9]*.png"))[-2:] if task.notebook.number in pages else ():
            name = f"{task.notebook.number} {path.stem.replace('_', ' ')}"
            shots.append(f'<figure><a href="{pages[task.notebook.number]}"><img loading="lazy" alt="{escape(name)}" src="{_thumbnail(path)}"></a>'
                         f"<figcaption>{escape(name)}</figcaption></figure>")
    return f'<div class="shots">{"".join(shots)}</div>'


def _thumbnail(path: Path) -> str:
    """A picture at most 480 px wide as a data address."""
    import base64
    import io

    from PIL import Image

    image, stream = Image.open(path).convert("RGB"), io.BytesIO()
    image.thumbnail((480, 960), Image.Resampling.LANCZOS)
    image.save(stream, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
