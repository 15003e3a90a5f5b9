"""The demo's server: what the endpoints answer, also to bad input, and what a PNG carries."""

from __future__ import annotations

import io
import json
import re
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest
from demo_server import Server, free_port, nano_pipeline, server  # noqa: F401
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image, PngImagePlugin

from demo import app, space
from demo.filmstrip import filmstrip_html, gate_frame
from demo.png import KEYWORD, PngError, file_name, read_png, write_png
from demo.request import MAX_SEED, GenerationRequest, RequestError
from demo.serving import GENERIC_ERROR, sentences
from iris.evaluation.probes import trace

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def client(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Client:  # noqa: F811
    return Client(server.url, verbose=False, httpx_kwargs={"timeout": 60}, download_files=str(tmp_path_factory.mktemp("downloads")))


def is_sentence(message: str) -> bool:
    """One line for a person: no traceback, no path, no markup."""
    return (
        0 < len(message) < 250 and message.rstrip().endswith(".") and "\n" not in message
        and not re.search(r"Traceback|Error:|/\w+/|\\\\|<|>", message)
    )


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


# --- /generate -----------------------------------------------------------------------------------------------------


def test_generate_needs_a_prompt_alone(client: Client) -> None:
    path, told = client.predict(prompt="red apple", api_name="/generate")
    assert Image.open(path).format == "PNG" and Image.open(path).size == (32, 32)
    assert told["prompt"] == "red apple" and 0 <= told["seed"] <= MAX_SEED and told["finished"]
    assert told["iterations"] == [2, 2, 2] and told["core_passes"] == 12  # 3 steps x 2 iterations, twice for guidance


def test_the_picture_is_the_pipelines_own(client: Client, server: Server) -> None:  # noqa: F811
    asked = {"seed": 7, "num_steps": 2, "num_iterations": 3, "guidance_scale": 1.0}
    path, told = client.predict(prompt="red apple", **asked, api_name="/generate")
    assert {name: told[name] for name in asked} == asked
    np.testing.assert_array_equal(pixels(path), np.asarray(server.pipeline("red apple", **asked).images[0]))


def test_png_to_its_parameters_to_the_same_picture(client: Client) -> None:
    path, told = client.predict(prompt="ein roter Apfel 🍎", num_iterations="auto", api_name="/generate")
    stored = read_png(path)
    assert {**stored} == {name: told[name] for name in stored}
    request = GenerationRequest.parse(**{name: stored[name] for name in GenerationRequest("x").to_dict()})
    again, _ = client.predict(**request.to_dict(), api_name="/generate")
    np.testing.assert_array_equal(pixels(path), pixels(again))


def test_a_preview_arrives_after_every_step(client: Client) -> None:
    job = client.submit(prompt="red apple", num_steps=4, api_name="/generate")
    job.result(timeout=60)
    moments = [told for _, told in job.outputs()]
    assert sorted({told["step"] for told in moments}) == [1, 2, 3, 4]
    assert [told["finished"] for told in moments if told["step"] < 4] == [False] * 3


@pytest.mark.parametrize("prompt", ["a\0b", "👩‍👩‍👧‍👦 at 🏖️", "תפוח אדום", "<img src=x onerror=alert(1)>", "../../etc/passwd", "a" * 1000, "🍎" * 1000, "\u202egnp"])
def test_odd_prompts_are_drawn(client: Client, prompt: str) -> None:
    path, told = client.predict(prompt=prompt, num_steps=1, num_iterations=1, api_name="/generate")
    assert pixels(path).shape == (32, 32, 3)
    assert re.fullmatch(r"iris[a-z0-9-]*-\d+\.png", Path(path).name)
    assert read_png(path)["prompt"] == told["prompt"] == prompt.replace("\0", "")


@pytest.mark.parametrize("prompt", ["", "   ", "\0", "x" * 100_000, None, 5, 1.5, True, ["red apple"], {"a": 1}])
def test_impossible_prompts_are_refused_with_a_sentence(client: Client, prompt: object) -> None:
    with pytest.raises(AppError) as refused:
        client.predict(prompt=prompt, api_name="/generate")
    assert is_sentence(str(refused.value)), str(refused.value)


BAD_VALUES = [("seed", value) for value in (-1, 1.7, 2**31, 1e99, "abc", "7", True, [1], 2**63)]
BAD_VALUES += [("num_steps", value) for value in (0, -3, 33, 10**9, 1.5, "4", None)]
BAD_VALUES += [("num_iterations", value) for value in (0, 33, 2.5, "many", None, True)]
BAD_VALUES += [("guidance_scale", value) for value in (-1, 11, 1e300, "strong", None)]
BAD_VALUES += [("negative_prompt", value) for value in ("y" * 5000, 5)]


REFUSED = [("/generate", *case) for case in BAD_VALUES] + [("/inspect", "num_iterations", value) for value in (0, 17, "auto", 1e99)]


@pytest.mark.parametrize(("endpoint", "name", "value"), REFUSED)
def test_values_out_of_range_are_refused_with_a_sentence(client: Client, endpoint: str, name: str, value: object) -> None:
    with pytest.raises(AppError) as refused:
        client.predict(prompt="red apple", **{name: value}, api_name=endpoint)
    assert is_sentence(str(refused.value)), str(refused.value)
    assert name in str(refused.value) or "prompt" in str(refused.value)


@pytest.mark.parametrize("body", ['{"data": ["red apple", "", NaN, 1, 1, 1]}', '{"data": ["red apple"]}', '{"data": {}}', "[]", "not json", "{}"])
def test_malformed_requests_tell_nothing_about_the_machine(server: Server, body: str) -> None:  # noqa: F811
    reply = httpx.post(f"{server.url}gradio_api/call/generate", content=body, headers={"content-type": "application/json"})
    told = reply.text
    if reply.status_code == 200:
        told += httpx.get(f"{server.url}gradio_api/call/generate/{reply.json()['event_id']}", timeout=30).text
    assert not re.search(r"Traceback|site-packages|/home/|/usr/|/tmp/|\.py", told), told
    assert "event: complete" not in told


def test_the_server_serves_no_file_but_its_own(server: Server) -> None:  # noqa: F811
    for path in ("/etc/passwd", str(ROOT / "pyproject.toml"), str(ROOT / "demo" / "app.py")):
        assert httpx.get(f"{server.url}gradio_api/file={path}").status_code in (403, 404)
    assert httpx.get(f"{server.url}monitoring/summary").status_code in (401, 403, 404)


# --- turns and Stop ------------------------------------------------------------------------------------------------


def test_every_visitor_gets_the_own_prompt_and_seed(server: Server, client: Client) -> None:  # noqa: F811
    jobs = {seed: client.submit(prompt=f"visitor {seed}", seed=seed, num_steps=1, num_iterations=1, api_name="/generate") for seed in range(10)}
    for seed, job in jobs.items():
        path, told = job.result(timeout=60)
        assert (told["prompt"], told["seed"]) == (f"visitor {seed}", seed)
        assert read_png(path)["seed"] == seed


def test_stop_ends_the_work_within_a_step(server: Server, client: Client) -> None:  # noqa: F811
    begun = server.pipeline.steps_begun
    job = client.submit(prompt="red apple", num_steps=32, num_iterations=1, api_name="/generate")
    deadline = time.monotonic() + 20
    while server.pipeline.steps_begun < begun + 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    job.cancel()
    time.sleep(0.4)
    at_rest = server.pipeline.steps_begun
    time.sleep(0.8)
    assert server.pipeline.steps_begun == at_rest < begun + 20
    assert client.predict(prompt="next", num_steps=1, num_iterations=1, api_name="/generate")[1]["prompt"] == "next"


# --- /inspect ------------------------------------------------------------------------------------------------------


def test_inspect_returns_the_numbers_of_every_iteration(client: Client) -> None:
    told = client.predict(prompt="red apple", seed=3, num_steps=2, num_iterations=4, api_name="/inspect")
    gates, shares = np.array(told["gates"]), np.array(told["shares"])
    assert told["seed"] == 3 and gates.shape == (2, 4, 2, 8, 8) and gates.min() >= 0 and gates.max() <= 1
    np.testing.assert_allclose(shares.sum(-1), np.ones((2, 4, 2)), atol=1e-3)
    assert np.array(told["changes"]).shape == (2, 4) and told["timesteps"] == [1.0, 0.5]


def test_filmstrip_shows_every_step_and_no_text_of_a_visitor() -> None:
    page = filmstrip_html(trace(nano_pipeline(), "<script>alert(1)</script>", num_steps=2, num_iterations=3), 0.07)
    assert page.count("<details") == 2 and page.count('class="share"') == 2 * 3 * 2 and page.count('class="change') == 2 * 3
    assert "script" not in page and "data:image/png;base64," in page


def test_gate_colours_lean_to_the_path_that_carries() -> None:
    picture = Image.new("RGB", (8, 8), "white")
    left, right = np.asarray(gate_frame(picture, np.array([[0.0, 1.0]]), 0.5)).reshape(-1, 3)[[0, -1]].astype(int)
    assert left[0] > left[2] and right[2] > right[0]  # 0 is the recurrence in orange, 1 Fourier in blue


# --- PNG -----------------------------------------------------------------------------------------------------------

PARAMETERS = {"prompt": "a “red” apple 🍎 תפוח", "negative_prompt": "", "seed": 5, "num_steps": 4, "num_iterations": "auto", "guidance_scale": 2.5,
              "iterations": [4, 3, 3, 2], "sampler": "euler", "model": "nano", "model_hash": "0123456789ab"}


def png_with(tmp_path: Path, stored: object) -> Path:
    text = PngImagePlugin.PngInfo()
    text.add_itxt(KEYWORD, stored if isinstance(stored, str) else json.dumps(stored))
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png", pnginfo=text)
    return tmp_path / "x.png"


def test_png_round_trip_is_exact(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    path = tmp_path / "picture.png"
    path.write_bytes(write_png(Image.fromarray(noise), PARAMETERS))
    assert read_png(path) == PARAMETERS
    np.testing.assert_array_equal(pixels(path), noise)


DAMAGED = [{}, [], 5, "{", "[" * 5000, {"format": 2}, {"format": 1}, "x" * 30_000]
DAMAGED += [{"format": 1, **PARAMETERS, **change} for change in (
    {"seed": -1}, {"seed": None}, {"seed": "5"}, {"num_steps": 1000}, {"prompt": None}, {"prompt": "x" * 5000}, {"guidance_scale": "1"},
    {"iterations": "many"}, {"iterations": [1] * 500}, {"model": ["a"]}, {"model_hash": "f" * 1000})]


@pytest.mark.parametrize("stored", DAMAGED)
def test_damaged_parameters_are_refused_with_a_sentence(tmp_path: Path, stored: object) -> None:
    with pytest.raises(PngError) as refused:
        read_png(png_with(tmp_path, stored))
    assert is_sentence(str(refused.value)), str(refused.value)


def bomb() -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\0IEND\xaeB`\x82"


def picture_bytes(format_name: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, format_name)
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"a text, not a picture", write_png(Image.new("RGB", (8, 8)), PARAMETERS)[:60], picture_bytes("PNG"),
                                     picture_bytes("GIF"), picture_bytes("JPEG"), bomb(), b"<svg></svg>"])
def test_other_files_are_refused_with_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(PngError) as refused:
        read_png(tmp_path / "x.png")
    assert is_sentence(str(refused.value)), str(refused.value)


def test_file_names_are_plain() -> None:
    assert file_name("Red Apple!", 42) == "iris-red-apple-42.png"
    assert file_name("תפוח", 1) == "iris-1.png"
    assert len(file_name("word " * 200, MAX_SEED)) < 64 and "/" not in file_name("../../x", 0)


# --- the rest ------------------------------------------------------------------------------------------------------


def test_foreign_errors_become_a_general_sentence() -> None:
    def event(error: Exception):
        yield 1
        raise error

    for error, expected in ((RuntimeError("/secret/path"), GENERIC_ERROR), (OSError(2, "No such file", "/etc/x"), GENERIC_ERROR),
                            (RequestError("seed is '<b>'; use a number."), "seed is '‹b›'; use a number."),
                            (RequestError("there is no\nfolder a\ud800b."), "there is no folder ab.")):
        with pytest.raises(app.gr.Error) as told:
            list(sentences(event)(error))
        assert told.value.message == expected


def test_without_a_model_main_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--model"):
        app.default_model(tmp_path)
    with pytest.raises(SystemExit) as refused:
        app.main(["--model", str(tmp_path)])
    assert "could not be loaded" in str(refused.value)


def test_the_environment_names_the_model_of_a_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Space passes no arguments. What is said on the command line counts more."""
    monkeypatch.setenv("IRIS_MODEL", str(tmp_path / "from-the-environment"))
    for arguments, named in (([], "from-the-environment"), (["--model", str(tmp_path / "said")], "said")):
        with pytest.raises(SystemExit, match=f"could not be loaded: .*{named}"):
            app.main(arguments)


def test_the_command_serves_a_model_folder(tmp_path: Path) -> None:
    folder = nano_pipeline().save_pretrained(tmp_path / "nano")
    port = free_port()
    # As a Space runs it: a script, from another folder.
    command = [sys.executable, str(ROOT / "demo" / "app.py"), "--model", str(folder), "--port", str(port)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert str(port) in next(line for line in process.stdout if "ready" in line)
            assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
        finally:
            process.terminate()


def test_space_lists_tracked_files_and_explains_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    with pytest.raises(space.SpaceError, match=r"requirements\.txt"):
        space.check_files(tmp_path, space.tracked_files(tmp_path))
    contents = {"README.md": "---\nsdk: gradio\n---\n", "requirements.txt": "", "demo/app.py": "", "demo/models/m/config.json": "{}", "local.txt": ""}
    for name, text in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "add", "README.md", "requirements.txt", "demo"], cwd=tmp_path, check=True)
    monkeypatch.setattr(space, "ROOT", tmp_path)
    space.main(["user/name", "--dry-run"])
    listed = capsys.readouterr().out
    assert "demo/models/m/config.json" in listed and "local.txt" not in listed and "4 files" in listed
    with pytest.raises(SystemExit, match="user/name"):
        space.main(["no-slash"])


def test_space_without_a_login_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError

    def nobody(*args: object, **kwargs: object) -> None:
        raise LocalTokenNotFoundError("no token")

    monkeypatch.setattr(HfApi, "whoami", nobody)
    with pytest.raises(space.SpaceError, match="hf auth login"):
        space.upload("user/name", tmp_path, [], private=True)


@pytest.mark.parametrize("is_private", [True, False])
def test_a_space_that_is_public_does_not_become_private_unheard(is_private: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from types import SimpleNamespace

    from huggingface_hub import HfApi

    sent = []
    for name, answer in {"whoami": {}, "create_repo": None, "repo_info": SimpleNamespace(private=is_private)}.items():
        monkeypatch.setattr(HfApi, name, lambda *_, answer=answer, **__: answer)
    monkeypatch.setattr(HfApi, "upload_folder", lambda *_, **told: sent.append(told["repo_id"]))
    if not is_private:
        with pytest.raises(space.SpaceError, match="public already; make it private in its settings first"):
            space.upload("user/name", tmp_path, [], private=True)
        assert sent == []
    assert space.upload("user/name", tmp_path, [], private=is_private).endswith("user/name") and sent == ["user/name"]
