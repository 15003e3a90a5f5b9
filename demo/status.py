"""The status line under a prompt: numbers and fixed words only, so it is safe as HTML and a screen reader reads it."""

from __future__ import annotations

from collections.abc import Sequence

import gradio as gr

IDLE = "Ready. Write a prompt and press Enter."


def status_line(idle: str = IDLE) -> gr.HTML:
    """The component; its value comes from `status_html`."""
    return gr.HTML(status_html(idle), elem_classes="plain")


def status_html(headline: str, facts: Sequence[str] = (), progress: float | None = None) -> str:
    """A thin bar (`progress` in [0, 1]; None hides it but keeps its room), a headline and a row of facts."""
    bar = f'<div class="bar{" off" if progress is None else ""}"><span style="width:{100 * (progress or 0):.0f}%"></span></div>'
    row = f'<p class="facts">{" · ".join(facts)}</p>' if facts else ""
    return f'<div class="status" role="status">{bar}<p>{headline}</p>{row}</div>'


def count(number: int, noun: str) -> str:
    """`1 step`, `4 steps`, `3 core passes`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}es" if noun.endswith("s") else f"{number} {noun}s"
