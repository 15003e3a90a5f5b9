"""What a ZeroGPU Space asks of the demo: every event of the model runs in a forked process that lends a GPU for a told time.

`Lender` stands in for the `spaces` package (read at 0.51): arguments and answers are pickled, and of an error only a gr.Error
keeps its message.
"""

from __future__ import annotations

import multiprocessing
import pickle
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from demo_server import nano_pipeline
from PIL import Image

from demo import model as models
from demo.drawing import drawing_stream
from demo.editing import REPAINT, REWORD, EditJob, editing_stream
from demo.encoding import encoding_stream
from demo.model import LoadedModel, load_pipeline
from demo.request import GenerationRequest
from demo.tabs.between import Way, filming
from demo.tabs.inside import look_stream, silencing_stream
from demo.thinking import comparing_stream, refining_stream, thinking_stream
from iris.pipeline import IRISPipeline

FORK = multiprocessing.get_context("fork")
REQUEST = GenerationRequest.parse("red apple", "", 3, 2, 2, 2.0)


class Lender(types.ModuleType):
    """`spaces.GPU` as far as the demo uses it; `lent` lists the seconds that were asked for."""

    def __init__(self) -> None:
        super().__init__("spaces")
        self.lent: list[int] = []

    def GPU(self, duration: Callable[..., int]) -> Callable[[Callable], Callable]:
        def decorate(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
            def borrowed(*args: Any) -> Iterator[Any]:
                self.lent.append(duration(*args))
                receiver, sender = FORK.Pipe(duplex=False)
                worker = FORK.Process(target=_work, args=(sender, function, pickle.dumps(args)), daemon=True)
                worker.start()
                sender.close()
                try:
                    yield from _received(receiver)
                finally:
                    worker.kill()
            return borrowed
        return decorate


def _work(sender: Any, function: Callable[..., Iterator[Any]], args: bytes) -> None:
    def send(kind: str, value: Any = None) -> None:
        sender.send_bytes(pickle.dumps((kind, value)))

    try:
        for value in function(*pickle.loads(args)):
            send("value", value)
        send("end")
    except gr.Error as error:
        send("sentence", str(error.message))
    except Exception as error:
        send("sentence", type(error).__name__)


def _received(receiver: Any) -> Iterator[Any]:
    while True:
        kind, value = pickle.loads(receiver.recv_bytes())
        if kind == "end":
            return
        if kind == "sentence":
            raise gr.Error(value)
        yield value


@pytest.fixture
def lender(monkeypatch: pytest.MonkeyPatch) -> Lender:
    lender = Lender()
    monkeypatch.setitem(sys.modules, "spaces", lender)
    return lender


def pictures(values: list[Any]) -> list[np.ndarray]:
    """Every picture in what a stream gave."""
    found = []
    for value in values:
        if isinstance(value, Image.Image):
            found.append(np.asarray(value))
        elif isinstance(value, np.ndarray):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += pictures(list(value))
        elif hasattr(value, "__dict__"):
            found += pictures(list(vars(value).values()))
    return found


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))


MASK = np.zeros((32, 32), bool)
MASK[4:20, 10:30] = True
STREAMS: dict[str, tuple[Callable[[LoadedModel], Callable], Callable[[], tuple]]] = {
    "create": (drawing_stream, lambda: (REQUEST, False)),
    "create, every iteration": (drawing_stream, lambda: (REQUEST, True)),
    "depth": (comparing_stream, lambda: (REQUEST, [1, "auto"])),
    "thinking map": (thinking_stream, lambda: (REQUEST,)),
    "refine": (refining_stream, lambda: (REQUEST,)),
    "inside": (look_stream, lambda: (REQUEST,)),
    "knock-out": (silencing_stream, lambda: (REQUEST,)),
    "inpaint": (editing_stream, lambda: (EditJob(REPAINT, REQUEST, picture(), 1.0, MASK, ""),)),
    "reword": (editing_stream, lambda: (EditJob(REWORD, REQUEST, picture(), 0.7, None, "blue bird"),)),
    "between": (filming, lambda: (Way(REQUEST, "blue bird", 5, 3),)),
    "latents": (encoding_stream, lambda: (picture(),)),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_lent_gpu_draws_what_the_own_processor_draws(name: str, lender: Lender, monkeypatch: pytest.MonkeyPatch) -> None:
    build, arguments = STREAMS[name]
    model = LoadedModel(nano_pipeline())
    lent = pictures(list(build(model)(*arguments())))
    assert len(lender.lent) == 1 and type(lender.lent[0]) is int and 1 <= lender.lent[0] <= 120
    monkeypatch.delitem(sys.modules, "spaces")
    monkeypatch.setitem(sys.modules, "spaces", None)  # not installed
    own = pictures(list(build(model)(*arguments())))
    assert len(lent) == len(own) > 0
    for ours, theirs in zip(own, lent, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_refining_goes_on_from_what_came_back(lender: Lender) -> None:
    stream = refining_stream(LoadedModel(nano_pipeline()))
    first = list(stream(REQUEST))[-1]
    again = list(stream(first))[-1]
    assert len(again.pictures) == 3 and again.result.state.device.type == "cpu"


def test_an_error_in_the_other_process_is_still_a_sentence(lender: Lender, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LoadedModel(nano_pipeline())
    empty = EditJob(REPAINT, REQUEST, picture(), 1.0, np.zeros((32, 32), bool), "")
    with pytest.raises(gr.Error, match="the mask is empty"):
        list(editing_stream(model)(empty))
    monkeypatch.setattr(IRISPipeline, "encode", lambda self, images: (_ for _ in ()).throw(OSError("/secret/place")))
    with pytest.raises(gr.Error, match="went wrong on the server"):
        list(encoding_stream(model)(picture()))


def test_nothing_is_computed_before_a_gpu_is_lent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = nano_pipeline().save_pretrained(tmp_path / "nano")
    calls = []
    monkeypatch.setattr(IRISPipeline, "__call__", lambda self, *args, **kwargs: calls.append(args))
    load_pipeline(folder)
    assert len(calls) == 1  # warmed up
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert models.on_zero_gpu()
    load_pipeline(folder)
    assert len(calls) == 1


def test_longer_work_borrows_for_longer(lender: Lender) -> None:
    stream = drawing_stream(LoadedModel(nano_pipeline()))
    for steps, depth in ((1, 1), (16, 16), (32, "auto")):
        next(stream(replace(REQUEST, num_steps=steps, num_iterations=depth), False))
    assert lender.lent == sorted(lender.lent) and lender.lent[0] < lender.lent[-1] <= 120
