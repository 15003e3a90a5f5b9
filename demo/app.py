"""The page: `create_demo(pipeline)` builds it, `main()` loads a model and serves it.

    python -m demo.app --port 7860 --model demo/models/NAME [--mcp]

A Space runs this file as a script (`app_file: demo/app.py`), so the repository's root is put on the path first.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("GRADIO_TEMP_DIR", os.path.join(tempfile.gettempdir(), "iris-demo"))  # our own, so that it can be swept

# ZeroGPU asks for its import before torch's; everywhere else the package is absent.
with contextlib.suppress(ImportError):
    import spaces  # noqa: F401

import gradio as gr  # noqa: E402
import PIL.Image  # noqa: E402

from demo.limits import visitor_limits  # noqa: E402
from demo.model import MODELS, LoadedModel, load_pipeline, shipped_models  # noqa: E402
from demo.serving import sweep_for_ever  # noqa: E402
from demo.settings import PRIVATE, QUEUED  # noqa: E402
from demo.tabs import about, between, create, depth, edit, inside, latents, train  # noqa: E402
from demo.theme import CSS, iris_theme  # noqa: E402
from iris.checkpoint import resolve_folder  # noqa: E402
from iris.data.images import MAX_PIXELS  # noqa: E402
from iris.pipeline import IRISPipeline  # noqa: E402

HEAD = """<div id="head"><h1><i>I</i>RIS</h1>
<p>Words into pictures, by a small model that can think longer before it draws.</p></div>"""


def create_demo(pipeline: IRISPipeline, folder: Path | None = None, public: bool = False) -> gr.Blocks:
    """The whole page as a function of one loaded pipeline, which it only ever reads; `folder` is where that came from.

    public: visitors share this server, so none of them may change the model or train.
    """
    model = LoadedModel(pipeline, folder, public)
    with gr.Blocks(title="IRIS", analytics_enabled=False) as page:
        gr.HTML(HEAD, elem_classes="plain")
        with gr.Tabs() as tabs:
            with gr.Tab("Create", id="create"):
                made = create.build_tab(model)
            with gr.Tab("Depth", id="depth"):
                compared = depth.build_tab(model)
            with gr.Tab("Inside", id="inside"):
                looked = inside.build_tab(model)
            with gr.Tab("Edit", id="edit"), gr.Tabs():
                with gr.Tab("One picture"):
                    edited = edit.build_tab(model)
                with gr.Tab("Between two"):
                    follow = between.build_tab(model)
            with gr.Tab("Latents", id="latents"):
                taken = latents.build_tab(model)
            if not public:
                with gr.Tab("Train", id="train") as train_tab:
                    train.build_tab(model, train_tab)
            with gr.Tab("Model", id="model") as model_tab:
                told = about.build_tab(model)
        _hand_over(made.think_longer, made, tabs, "depth", depth.receive, compared)
        _hand_over(made.look_inside, made, tabs, "inside", inside.receive, looked)
        made.edit.click(lambda drawn: (gr.Tabs(selected="edit"), *edit.receive(drawn)), made.chosen, [tabs, *edited.inputs], **PRIVATE)
        taken.run_after(taken.take.click(latents.receive, made.chosen, taken.inputs, **QUEUED).success)
        made.restore_on(page.load)
        for refresh_on in (made.refresh_on, compared.refresh_on, looked.refresh_on, edited.refresh_on, taken.refresh_on, follow):
            refresh_on(page.load)
        told.refresh_on(model_tab.select)
    # One picture at a time, and a 33rd visitor is told so at once (503). What draws is reached through the queue alone.
    return page.queue(max_size=32, default_concurrency_limit=1, api_open=False)


def _hand_over(button: gr.Button, made: create.CreateTab, tabs: gr.Tabs, name: str, receive: Callable[..., tuple], tab: Any) -> None:
    """A button of Create opens another tab with the request of the picture on show, or of the fields before there is one, and sets it going."""
    opened = button.click(lambda drawn, *values: (gr.Tabs(selected=name), *receive(*create.asked_of(drawn, values))),
                          [made.chosen, *made.request], [tabs, *tab.request], **PRIVATE)
    tab.run_after(opened.then)


def launch_options(host: str, port: int | None, share: bool = False, public: bool = False, mcp: bool = False) -> dict[str, Any]:
    """Everything `launch()` takes: the looks, and a server that answers nothing it was not asked to.

    Uploads are pictures; at home also archives of them, to train on. In public each visitor has a share of the server (`demo.limits`).
    mcp: the endpoints are tools for a language model too. Said outright, for the environment could switch it on otherwise.
    """
    limits = {"app_kwargs": {"middleware": visitor_limits(proxies=1 if os.environ.get("SPACE_ID") else 0)}} if public else {}
    return limits | {
        "server_name": host, "server_port": port, "share": share, "theme": iris_theme(), "css": CSS,
        "show_error": False, "allowed_paths": [], "max_file_size": "10mb" if public else "260mb", "enable_monitoring": False, "run_history": False,
        "ssr_mode": False, "state_session_capacity": 1000, "footer_links": ["api", "settings"], "quiet": True, "mcp_server": mcp,
    }


def default_model(folder: Path = MODELS) -> Path:
    """The model of demo/models that the demo starts on; SystemExit with a sentence when there is none."""
    found = shipped_models(folder)
    if not found:
        raise SystemExit("No model in demo/models: train one (see README.md) or pass --model FOLDER or --model ORG/NAME.")
    return found[0]


def check_mcp(wanted: bool, public: bool) -> None:
    """SystemExit with a sentence where tools for language models cannot be offered.

    Gradio's tools fetch a file from any address and reach the queue as the server itself, past what each visitor may ask for.
    """
    if wanted and public:
        raise SystemExit("--mcp is for a server of your own: its tools fetch addresses and know no visitors; leave out --public and --share.")
    if wanted and importlib.util.find_spec("mcp") is None:
        raise SystemExit("--mcp needs one more package: pip install 'gradio[mcp]'.")


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, load the model, serve until interrupted."""
    on_space = bool(os.environ.get("SPACE_ID"))
    parser = argparse.ArgumentParser(prog="python -m demo.app", description="Serve the IRIS page.")
    parser.add_argument("--model", default=os.environ.get("IRIS_MODEL"), help="a model folder or a Hub id (default: $IRIS_MODEL, else iris-tiny-emoji of demo/models, else its first)")
    parser.add_argument("--port", type=int, default=os.environ.get("GRADIO_SERVER_PORT", "7860"))
    parser.add_argument("--host", default="0.0.0.0" if on_space else "127.0.0.1")
    parser.add_argument("--share", action="store_true", help="also open a public link through Gradio's tunnel; implies --public")
    parser.add_argument("--public", action="store_true", default=on_space, help="visitors may not change the model or train (a Space's default)")
    parser.add_argument("--mcp", action="store_true", help="offer the endpoints as tools to language models (pip install 'gradio[mcp]'); not in public")
    options = parser.parse_args(arguments)
    options.public |= options.share  # a public link is the open internet
    check_mcp(options.mcp, options.public)

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    PIL.Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses twice as many, where gradio decodes too
    try:
        folder = resolve_folder(options.model) if options.model else default_model()
        pipeline = load_pipeline(folder)
    except (ValueError, OSError) as error:
        raise SystemExit(f"The model could not be loaded: {error}") from error
    page = create_demo(pipeline, folder, options.public)
    threading.Thread(target=sweep_for_ever, args=[page, *((3 * 3600, 4e9) if options.public else (24 * 3600, 20e9))], daemon=True).start()
    try:
        page.launch(**launch_options(options.host, options.port, options.share, options.public, options.mcp), prevent_thread_lock=True)
    except OSError as error:
        raise SystemExit(f"Port {options.port} cannot be used; pass another one with --port.") from error
    print(f"IRIS is ready: {page.local_url}" + (f" and {page.share_url}" if page.share_url else "") + (f"; tools: {page.local_url}gradio_api/mcp/" if options.mcp else ""), flush=True)
    page.block_thread()


if __name__ == "__main__":
    main()
