"""What every event of the page shares: errors as sentences, ZeroGPU when there is one, files in Gradio's cache."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder
from PIL import Image

from demo.limits import within
from demo.status import status_html
from iris.prompts import without_control

# One group for every event that runs the model, so that a Create and an Inside request never compute at once.
MODEL_QUEUE = "model"
MAX_SECONDS = 300.0  # of one event; the next visitor waits for it
SWEEP_SECONDS = 60.0  # how often old files are looked for
DOUBLE_CLICK = 500  # milliseconds in which a second start is the first one's
GENERIC_ERROR = "Something went wrong on the server while drawing. Please try again."

log = logging.getLogger(__name__)
_runs = itertools.count()
_NO_TAGS = str.maketrans("<>", "‹›")  # a message is shown as HTML by the page


def without_tags(text: str) -> str:
    """A message that may quote a visitor or a file, as the page may show it."""
    return without_control(text).translate(_NO_TAGS)


def sentences(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """A generator event whose errors a visitor can read.

    It ends after MAX_SECONDS, with a sentence too. The project's own ValueErrors become their one sentence; anything else is logged here and answered with a general
    sentence, because a foreign message may hold a path.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            yield from within(MAX_SECONDS, function(*args, **kwargs))
        except gr.Error:
            raise
        except Exception as error:
            raise gr.Error(_sentence(error), print_exception=False) from error

    return wrapped


def on_gpu(seconds: Callable[..., int]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A generator that borrows a ZeroGPU for `seconds(*arguments)` per call; without the `spaces` package it stays as it is.

    There it runs in another process, from which an error comes back as its type's name alone unless it is a gr.Error.
    """
    try:
        import spaces
    except ImportError:
        return lambda function: function

    def borrowing(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        @functools.wraps(function)
        def told(*args: Any, **kwargs: Any) -> Iterator[Any]:
            try:
                yield from function(*args, **kwargs)
            except Exception as error:
                raise gr.Error(_sentence(error), print_exception=False) from error

        return spaces.GPU(duration=seconds)(told)

    return borrowing


def runs_until_stopped(
    start: Any, stop: gr.Button, status: gr.HTML, event: Callable[..., Iterator[Any]], inputs: list[Component], outputs: list[Component], go: gr.Button | None = None,
) -> Any:
    """After `start`, run the model's `event` in its queue, with `stop` pressable from the first moment to the last.

    Stop is switched, and answers, in the browser: a round trip would let later moments of the run tell over it. Each moment switches it on again, for
    another run of the same tab may have ended meanwhile. Gradio does not hear a start whose last run still goes on; the page remembers it, and presses
    `go` when that run has ended, unless it was stopped. So the words of a second Enter are drawn next; a double click asks for nothing twice.
    """
    private = {"api_visibility": "private", "show_progress": "hidden"}
    waiting, failed, stopped = (json.dumps(status_html(words)) for words in ("Waiting for the model", "Not finished; the message says why", "Stopped"))
    run = f"const run = (window.irisRuns ??= {{}})[{next(_runs)}] ??= {{}};"
    again = "" if go is None else f"if (run.more && !run.halted) setTimeout({press(go)});"
    begin = (f"told => {{ {run} if (run.on) {{ run.more = Date.now() - run.begun > {DOUBLE_CLICK}; return [{_switch(True)}, told]; }} "
             f"Object.assign(run, {{on: true, begun: Date.now(), more: false, halted: false}}); return [{_switch(True)}, {waiting}]; }}")
    begun = start(fn=None, js=begin, inputs=status, outputs=[stop, status], **private)
    running = begun.then(
        _stoppable(event), inputs, [*outputs, stop], concurrency_id=MODEL_QUEUE, show_progress="minimal", show_progress_on=[status], api_visibility="private",
    )
    running.success(fn=None, js=f"() => {{ {run} run.on = false; {again} return {_switch(False)}; }}", outputs=stop, **private)
    # Gradio counts a stopped run as failed too, twice even; nothing may begin again between.
    running.failure(fn=None, js=f"() => {{ {run} run.on = false; {again} return [{_switch(False)}, run.halted ? {stopped} : {failed}]; }}", outputs=[stop, status], **private)
    halt = f"told => {{ {run} if (!run.on) return [{_switch(False)}, told]; run.more = false; run.halted = true; return [{_switch(False)}, {stopped}]; }}"
    stop.click(fn=None, js=halt, inputs=status, outputs=[stop, status], cancels=[running], queue=False, **private)
    return running


def press(button: gr.Button) -> str:
    """The browser's function that presses a button."""
    return f"() => {{ document.getElementById({json.dumps(button.elem_id)})?.click(); }}"


def _stoppable(event: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[tuple]]:
    """The event with one more output, its Stop button, switched on."""

    @functools.wraps(event)
    def wrapped(*args: Any, **kwargs: Any) -> Iterator[tuple]:
        with contextlib.closing(event(*args, **kwargs)) as moments:
            for moment in moments:
                yield *(moment if isinstance(moment, tuple) else (moment,)), gr.update(interactive=True)

    return wrapped


def _switch(on: bool) -> str:
    return f"{{__type__: 'update', interactive: {json.dumps(on)}}}"


def cache_file(data: bytes, name: str) -> str:
    """Put bytes where Gradio serves them from, and deletes them later; returns the path for an output component.

    A file that lies there already is not written again: somebody may be reading it.
    """
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / name
        draft.write_bytes(data)
        kept = save_file_to_cache(draft, get_upload_folder())
    os.utime(kept)  # asked for again, it is young again (see `sweep`)
    return kept


def cache_picture(image: Image.Image) -> str:
    """A picture on its way to a component. Handed over as an image, Gradio would write it again under the reader's eyes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return cache_file(buffer.getvalue(), "picture.png")


def sweep(folder: Path, seconds: float, most_bytes: float, kept: Collection[str] = ()) -> None:
    """Remove the files below `folder` that were made longer ago, the oldest of what is more than `most_bytes`, and folders that have been empty so long.

    But those `kept`. Gradio's own sweep ends for good where it meets a request, and every preview is a file in a folder of its own.
    """
    found, taken = [], 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            found.append((path.stat(), path))
    for facts, path in sorted(found, key=lambda each: each[0].st_mtime, reverse=True):
        is_file = stat.S_ISREG(facts.st_mode)
        taken += facts.st_size if is_file else 0
        if str(path) not in kept and (time.time() - facts.st_mtime > seconds or (is_file and taken > most_bytes)):
            with contextlib.suppress(OSError):  # a folder that is not empty stays
                path.unlink() if is_file else path.rmdir()


def sweep_for_ever(page: gr.Blocks, seconds: float, most_bytes: float) -> None:
    """The same every minute, in a thread of its own. What the page was built with, such as an empty picture, stays: it is written once."""
    kept = set().union(*(block.keep_in_cache for block in page.blocks.values()))
    while True:
        with contextlib.suppress(OSError):
            sweep(Path(get_upload_folder()), seconds, most_bytes, kept)
        time.sleep(SWEEP_SECONDS)


def _sentence(error: Exception) -> str:
    own = isinstance(error, ValueError) and type(error).__module__.split(".")[0] in ("iris", "demo")
    if own:
        return without_tags(str(error))
    log.error("An event failed", exc_info=error)
    return GENERIC_ERROR
