"""What a visitor of `make demo` meets: the command, the shipped model, every endpoint, and ten people at once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, subprocess_environment
from demo_server import free_port
from gradio_client import Client, handle_file
from gradio_client.utils import Status
from PIL import Image

from demo.app import default_model
from iris.pipeline import IRISPipeline

PROMPTS = [f"a {colour} {shape}" for colour in ("red", "blue", "green", "yellow", "white") for shape in ("circle", "star")]
SETTINGS = {"num_steps": 2, "num_iterations": 2}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server as the README starts it, on the model it takes by itself."""
    folder, port = tmp_path_factory.mktemp("served"), free_port()
    environment = {**subprocess_environment(), "GRADIO_TEMP_DIR": str(folder)}
    command = [sys.executable, "-m", "demo.app", "--port", str(port)]
    with (folder / "errors.txt").open("w") as errors, subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
        try:
            assert str(port) in next((line for line in process.stdout if "ready" in line), ""), (folder / "errors.txt").read_text()
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def shipped() -> IRISPipeline:
    return IRISPipeline.from_pretrained(default_model())


def connect(url: str, folder: Path) -> Client:
    return Client(url, verbose=False, httpx_kwargs={"timeout": 120}, download_files=str(folder))


def test_every_endpoint_answers_with_the_shipped_model(url: str, tmp_path: Path) -> None:
    client = connect(url, tmp_path)
    file, told = client.predict(prompt="red apple", seed=7, **SETTINGS, api_name="/generate")
    assert told["seed"] == 7 and np.asarray(Image.open(file)).std() > 5  # a picture, not one colour
    mask = tmp_path / "mask.png"
    Image.fromarray(np.pad(np.full((20, 20), 255, np.uint8), 10)).resize(Image.open(file).size, 0).save(mask)
    calls = {
        "/compare_depths": {"prompt": "red apple", "seed": 7, "depths": [1, 2], "num_steps": 2},
        "/inspect": {"prompt": "red apple", "seed": 7, **SETTINGS},
        "/edit": {"image": handle_file(file), "prompt": "green apple", **SETTINGS},
        "/inpaint": {"image": handle_file(file), "mask": handle_file(mask), "prompt": "green apple", **SETTINGS},
        "/interpolate": {"prompt": "red apple", "other_prompt": "green apple", "frames": 3, **SETTINGS},
        "/encode": {"image": handle_file(file)},
    }
    assert {"/generate", *calls} == set(client.view_api(return_format="dict", print_info=False)["named_endpoints"])
    answers = {name: client.predict(**values, api_name=name) for name, values in calls.items()}
    assert answers["/encode"][1]["psnr"] > 20
    for name in ("/edit", "/inpaint", "/interpolate"):
        assert Image.open(answers[name][0]).size == Image.open(file).size
    assert answers["/compare_depths"][1][1]["core_passes"] == 2 * answers["/compare_depths"][1][0]["core_passes"]


def test_ten_visitors_at_once_are_served_in_turn_each_with_the_own_prompt(url: str, shipped: IRISPipeline, tmp_path: Path) -> None:
    visitors = [connect(url, tmp_path / str(number)) for number in range(len(PROMPTS))]
    depths = [32] + [2] * 9  # the first drawing lasts until the other nine have come
    jobs, done = [], []
    for number, (visitor, prompt) in enumerate(zip(visitors, PROMPTS, strict=True)):
        job = visitor.submit(prompt=prompt, seed=number, num_steps=8, num_iterations=depths[number], guidance_scale=2.0, api_name="/generate")
        job.add_done_callback(lambda _, number=number: done.append(number))
        jobs.append(job)
        while job.status().code not in (Status.IN_QUEUE, Status.PROCESSING, Status.ITERATING):  # so that "in turn" has a meaning
            time.sleep(0.01)
    assert len(done) < 5, "the crowd was no crowd"
    answers = [job.result(timeout=300) for job in jobs]
    assert done == sorted(done)
    for number, (_, told) in enumerate(answers):
        assert (told["prompt"], told["seed"], told["step"]) == (PROMPTS[number], number, 8)
    for number in (0, 9):
        plain = shipped(PROMPTS[number], seed=number, num_steps=8, num_iterations=depths[number], guidance_scale=2.0)
        np.testing.assert_array_equal(np.asarray(Image.open(answers[number][0])), np.asarray(plain.images[0]))
