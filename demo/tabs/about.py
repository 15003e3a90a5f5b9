"""Model: which one is loaded, what its card says, the report's pages; and, at home, the choice of another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from demo.model import LoadedModel
from demo.papers import model_card, report_page, report_pages
from demo.serving import MODEL_QUEUE, sentences
from demo.settings import PRIVATE
from demo.status import status_html, status_line
from iris.nn.generator import parameter_count

CHOICE_INFO = "A model on this disk, any other folder, or a Hub id such as user/name. The present one leaves the memory."
RELOAD = "() => { setTimeout(() => location.assign(location.pathname), 300); }"  # the whole page belongs to the new model


@dataclass(frozen=True)
class AboutTab:
    """What the page joins to: `refresh_on(event)` brings the list of models, the facts and the card up to date."""

    refresh_on: Callable[[Callable[..., Any]], Any]


def build_tab(model: LoadedModel) -> AboutTab:
    """The tab's components and events inside the current Blocks."""
    facts = gr.HTML(facts_html(model), elem_id="facts", elem_classes="plain")
    refreshed: list[Any] = [facts]
    if not model.public:
        refreshed.append(_choice(model))
    with gr.Tabs():
        with gr.Tab("Model card"):
            card = gr.Markdown("", elem_id="card", elem_classes="paper", buttons=[])
        with gr.Tab("Report") as report:
            names = list(report_pages())
            page = gr.Dropdown(names, value=names[0] if names else None, label="Page", elem_id="page", visible=bool(names), filterable=False)
            paper = gr.Markdown("", elem_id="report", elem_classes="paper", buttons=[])
    report.select(report_page, page, paper, **PRIVATE)
    page.input(report_page, page, paper, **PRIVATE)
    shown = gr.State("")  # whose card: it is megabytes of pictures, and sent once
    refreshed += [card, shown]
    built_for = _loaded(model)

    def fresh(known: str) -> tuple:
        loaded = _loaded(model)
        other = {} if loaded == (known or built_for) else {"value": present(model)}  # else what the visitor has typed there meanwhile stays
        choices = [] if model.public else [gr.update(choices=model.choices(), **other)]
        return facts_html(model), *choices, gr.skip() if known == loaded else model_card(model.folder), loaded

    return AboutTab(lambda event: event(fresh, shown, refreshed, **PRIVATE))


def _loaded(model: LoadedModel) -> str:
    return f"{model.folder} {model.pipeline.metadata.get('hash', '')}"


def present(model: LoadedModel) -> str:
    """The loaded model as the list names it, or its own name."""
    return model.source if model.source in {source for _, source in model.choices()} else model.name


def facts_html(model: LoadedModel) -> str:
    """The loaded model in one line of numbers. Its name is a file's, so only plain characters pass."""
    pipeline = model.pipeline
    generator, core = parameter_count(pipeline.generator), parameter_count(pipeline.generator.core)
    name = "".join(letter for letter in model.name if letter.isalnum() or letter in "-_./: ")[:80]
    told = [f"{generator / 1e6:.1f} M parameters in the generator", f"{core / 1e6:.1f} M of them in the core that repeats",
            f"{parameter_count(pipeline.autoencoder) / 1e6:.1f} M in the autoencoder", f"{pipeline.image_size} px",
            f"on {pipeline.device.type.upper()}"]
    digest = str(pipeline.metadata.get("hash", ""))[:12]
    if digest.isalnum():
        told.append(f"fingerprint {digest}")
    return f'<h2 class="name">{name}</h2><p class="note">{" · ".join(told)}</p>'


def _choice(model: LoadedModel) -> gr.Dropdown:
    with gr.Row(elem_classes="choose"):
        choice = gr.Dropdown(
            model.choices(), value=present(model), label="Change the model", info=CHOICE_INFO, allow_custom_value=True, scale=4, min_width=240,
            elem_id="choice",
        )
        load = gr.Button("Load", scale=0, min_width=110, elem_id="load")
    status = status_line("")

    @sentences
    def change(source: str) -> Iterator[str]:
        yield status_html("Loading and checking every file", progress=0.5)
        model.switch(source)
        yield status_html("Loaded; the page opens anew")

    changed = load.click(change, choice, status, concurrency_id=MODEL_QUEUE, api_visibility="private", show_progress="hidden")
    changed.success(fn=None, js=RELOAD, api_visibility="private", queue=False)
    changed.failure(lambda: status_html("Nothing was changed; the message says why"), None, status, **PRIVATE)
    return choice
