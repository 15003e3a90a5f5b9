"""What every event of the page shares: errors as sentences, ZeroGPU when there is one, files in Gradio's cache."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import logging
import os
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
SWEEP_SECONDS = 600.0  # how often old files are looked for
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
    start: Any, stop: gr.Button, status: gr.HTML, event: Callable[..., Iterator[Any]], inputs: list[Component], outputs: list[Component],
) -> Any:
    """After `start`, run the model's `event` in its queue, with `stop` pressable from the first moment to the last.

    Switching `stop` happens in the browser, so that a press answers at once and not after a round trip; each moment switches it on
    again, for another run of the same tab may have ended meanwhile. Gradio does not hear a start whose last run still goes on, so the
    status goes on telling of that run.
    """
    private = {"api_visibility": "private", "show_progress": "hidden"}
    waiting, failed, stopped = map(status_html, ("Waiting for the model", "Nothing was drawn; the message says why", "Stopped"))
    going = f"(window.irisRuns ??= {{}})[{next(_runs)}]"
    begun = start(
        fn=None, js=f"told => {{ const on = {going}; {going} = true; return [{_switch(True)}, on ? told : {json.dumps(waiting)}]; }}", inputs=status,
        outputs=[stop, status], **private,
    )
    running = begun.then(
        _stoppable(event), inputs, [*outputs, stop], concurrency_id=MODEL_QUEUE, show_progress="minimal", show_progress_on=[status], api_visibility="private",
    )
    running.success(fn=None, js=f"() => {{ {going} = false; return {_switch(False)}; }}", outputs=stop, **private)
    # Gradio counts a stopped run as failed too; the word that Stop left must stay then.
    tell = f"told => {{ {going} = false; return [{_switch(False)}, told === {json.dumps(stopped)} ? told : {json.dumps(failed)}]; }}"
    running.failure(fn=None, js=tell, inputs=status, outputs=[stop, status], **private)
    stop.click(
        lambda: (gr.update(interactive=False), stopped), None, [stop, status], cancels=[running], queue=False, **private,
    )
    return running


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


def sweep(folder: Path, seconds: float, kept: Collection[str] = ()) -> None:
    """Remove the files below `folder` that were made longer ago, but those `kept`, and the folders that have been empty so long.

    Gradio's own sweep ends for good where it meets a request, and every preview is a file in a folder of its own.
    """
    for path in sorted(folder.rglob("*"), reverse=True):
        with contextlib.suppress(OSError):  # a folder that is not empty stays
            if str(path) not in kept and time.time() - path.stat().st_mtime > seconds:
                path.rmdir() if path.is_dir() else path.unlink()


def sweep_for_ever(page: gr.Blocks, seconds: float) -> None:
    """The same every ten minutes, in a thread of its own. What the page was built with, such as an empty picture, stays: it is written once."""
    kept = set().union(*(block.keep_in_cache for block in page.blocks.values()))
    while True:
        with contextlib.suppress(OSError):
            sweep(Path(get_upload_folder()), seconds, kept)
        time.sleep(SWEEP_SECONDS)


def _sentence(error: Exception) -> str:
    own = isinstance(error, ValueError) and type(error).__module__.split(".")[0] in ("iris", "demo")
    if own:
        return without_tags(str(error))
    log.error("An event failed", exc_info=error)
    return GENERIC_ERROR
