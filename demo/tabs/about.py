"""Model: which one draws, what it is, its card and the report; at home also the choice of another one."""

import html
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from demo.model import LoadedModel, shown_name
from demo.pages import CARD, page_names, read_page
from demo.serving import MODEL_QUEUE, sentences
from demo.settings import PRIVATE
from demo.status import status_html, status_line
from iris.nn.generator import parameter_count


@dataclass(frozen=True)
class AboutTab:
    """What the page joins to: `then` of the event that changed the model, and what is refreshed when the tab is looked at."""

    changed: Callable[..., Any] | None
    choice: Component | None


def build_tab(model: LoadedModel, tab: gr.Tab) -> AboutTab:
    """The tab's components and events inside the current Blocks."""
    facts = gr.HTML(facts_html(model), elem_id="facts", elem_classes="plain")
    choice, changed = None, None
    if not model.public:
        with gr.Row(elem_classes="ask"):
            choice = gr.Dropdown(
                model.choices(), label="Model", value=None, allow_custom_value=True, scale=5, min_width=240, elem_id="choose",
                info="One on this disk, or write a folder or a Hub id such as user/name. The present one is freed.",
            )
            load = gr.Button("Load", variant="primary", scale=0, min_width=110, elem_id="load")
        status = status_line("The model above draws on every tab.")
        changed = load.click(
            _load_event(model), choice, [facts, status], concurrency_id=MODEL_QUEUE, api_visibility="private", show_progress="minimal",
        ).success
    page = gr.Dropdown(page_names(), value=CARD, label="Read", elem_id="page", filterable=False)
    text = gr.Markdown("", elem_id="document", elem_classes="document", buttons=[])

    def read(name: str) -> str:
        return read_page(name, model.folder)

    page.change(read, page, text, **PRIVATE)
    tab.select(read, page, text, **PRIVATE)
    tab.select(lambda: facts_html(model), None, facts, **PRIVATE)
    if choice is not None:
        tab.select(lambda: gr.update(choices=model.choices()), None, choice, **PRIVATE)
        changed(read, page, text, **PRIVATE)
    return AboutTab(changed, choice)


def facts_html(model: LoadedModel) -> str:
    """What is loaded, as a table of words and numbers; a name from a file is escaped."""
    pipeline, config = model.pipeline, model.pipeline.config
    defaults = pipeline.defaults
    rows = {
        "model": html.escape(f"{shown_name(model.folder)} (preset {config.name})" if model.folder else f"preset {config.name}"),
        "pictures": f"{pipeline.image_size} × {pipeline.image_size} pixels",
        "generator": f"{parameter_count(pipeline.generator) / 1e6:.2f} M weights, "
                     f"{parameter_count(pipeline.generator.core) / parameter_count(pipeline.generator):.0%} of them in the core that is used again and again",
        "autoencoder": f"{parameter_count(pipeline.autoencoder) / 1e6:.2f} M weights",
        "text": html.escape(config.text.encoder),
        "its own settings": f"{defaults.num_steps} steps × {html.escape(str(defaults.num_iterations))} iterations, guidance {defaults.guidance_scale:g}",
        "hash": html.escape(str(pipeline.metadata.get("hash", "")) or "not stored yet"),
    }
    cells = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in rows.items())
    return f'<table class="facts-table">{cells}</table>'


def _load_event(model: LoadedModel) -> Callable[..., Iterator[tuple]]:
    @sentences
    def load(source: str | None) -> Iterator[tuple]:
        yield gr.skip(), status_html("Loading")
        model.switch(source)
        yield facts_html(model), status_html("Loaded; every tab draws with it now")

    return load
