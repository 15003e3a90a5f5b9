"""The endpoints beside /generate against the real server: what they answer is what the library gives, and bad input gets a sentence."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from demo_server import Server, server  # noqa: F401
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from demo.png import read_png
from iris.editing import finish, flow_edit, image_to_image, inpaint, interpolation

SETTINGS = {"seed": 3, "num_steps": 2, "num_iterations": 2, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def client(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Client:  # noqa: F811
    return Client(server.url, verbose=False, httpx_kwargs={"timeout": 60}, download_files=str(tmp_path_factory.mktemp("downloads")))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of the model's own size, so that nothing is scaled."""
    across, down = np.meshgrid(np.linspace(0, 255, 32), np.linspace(0, 255, 32))
    path = tmp_path_factory.mktemp("pictures") / "source.png"
    Image.fromarray(np.stack([across, down, 255 - across], -1).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def mask(source: Path) -> Path:
    painted = np.zeros((32, 32), np.uint8)
    painted[4:20, 10:30] = 255
    path = source.with_name("mask.png")
    Image.fromarray(painted).save(path)
    return path


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def is_sentence(message: str) -> bool:
    """One line for a person: no traceback, no path, no markup."""
    return 0 < len(message) < 250 and message.rstrip().endswith(".") and not re.search(r"\n|Traceback|Error:|/\w+/|\\\\|<|>", message)


def test_every_endpoint_tells_what_it_takes(client: Client) -> None:
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(named) == {"/generate", "/inspect", "/compare_depths", "/edit", "/inpaint", "/interpolate", "/encode"}
    for name, told in named.items():
        assert "prompt" in str(told["parameters"]) or name == "/encode"
        assert len(told.get("description") or "") > 20, name


def test_compare_depths_draws_what_generate_draws(client: Client, server: Server) -> None:  # noqa: F811
    files, told = client.predict(prompt="red apple", seed=3, depths=[1, 3, "auto"], num_steps=2, guidance_scale=1.0, api_name="/compare_depths")
    assert [row["num_iterations"] for row in told] == [1, 3, "auto"] and [row["core_passes"] for row in told][:2] == [2, 6]
    for file, row in zip(files, told, strict=True):
        plain = server.pipeline("red apple", seed=3, num_steps=2, num_iterations=row["num_iterations"], guidance_scale=1.0)
        np.testing.assert_array_equal(pixels(file), np.asarray(plain.images[0]))
        assert row["iterations"] == plain.iterations[0] and read_png(file)["num_iterations"] == row["num_iterations"]


@pytest.mark.parametrize("source_prompt", ["", "a blue bird"])
def test_edit_is_image_to_image_and_with_two_prompts_flow_edit(client: Client, server: Server, source: Path, source_prompt: str) -> None:  # noqa: F811
    file, told = client.predict(image=handle_file(source), prompt="red apple", source_prompt=source_prompt, strength=0.6, **SETTINGS, api_name="/edit")
    picture = Image.open(source)
    run = flow_edit(server.pipeline, picture, source_prompt, "red apple", 0.6, **SETTINGS) if source_prompt else image_to_image(server.pipeline, picture, "red apple", 0.6, **SETTINGS)
    np.testing.assert_array_equal(pixels(file), np.asarray(finish(run).images[0]))
    assert told["edit"] == ("prompt-to-prompt" if source_prompt else "image-to-image") and told["seed"] == 3
    assert read_png(file)["edit"] == told["edit"]


def test_inpaint_keeps_what_is_outside_the_mask(client: Client, server: Server, source: Path, mask: Path) -> None:  # noqa: F811
    file, told = client.predict(image=handle_file(source), mask=handle_file(mask), prompt="red apple", **SETTINGS, api_name="/inpaint")
    painted = np.asarray(Image.open(mask)) > 0
    np.testing.assert_array_equal(pixels(file)[~painted], pixels(source)[~painted])
    np.testing.assert_array_equal(pixels(file), np.asarray(finish(inpaint(server.pipeline, Image.open(source), painted, "red apple", **SETTINGS)).images[0]))
    assert told["edit"] == "inpaint"


def test_interpolate_goes_there_and_back(client: Client, server: Server) -> None:  # noqa: F811
    file, told = client.predict(prompt="red apple", other_prompt="blue bird", other_seed=5, frames=4, **SETTINGS, api_name="/interpolate")
    expected = finish(interpolation(server.pipeline, "red apple", "blue bird", 3, 5, 4, **{name: SETTINGS[name] for name in SETTINGS if name != "seed"})).images
    with Image.open(file) as film:
        assert film.n_frames == 6
        for index, frame in enumerate([0, 1, 2, 3, 2, 1]):
            film.seek(index)
            np.testing.assert_array_equal(np.asarray(film.convert("RGB")), np.asarray(expected[frame]))
    assert told["frames"] == 4 and told["other_seed"] == 5 and told["core_passes"] == 4 * 2 * 2 * 2


def test_encode_gives_the_latents_and_the_way_back(client: Client, server: Server, source: Path) -> None:  # noqa: F811
    file, told = client.predict(image=handle_file(source), api_name="/encode")
    latents = server.pipeline.encode(Image.open(source))
    np.testing.assert_allclose(np.array(told["latents"]), latents[0].numpy(), atol=1e-4)
    np.testing.assert_array_equal(pixels(file), np.asarray(server.pipeline.decode(latents)[0]))
    error = ((pixels(file).astype(float) - pixels(source)) ** 2).mean()
    assert told["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=0.01)


# --- bad input -----------------------------------------------------------------------------------------------------

BAD = [("/compare_depths", {"prompt": "a", "depths": value}) for value in ([], [0], [33], ["many"], [1] * 9, "4", None, {"a": 1})]
BAD += [("/compare_depths", {"prompt": ""}), ("/compare_depths", {"prompt": "a", "num_steps": 17}), ("/compare_depths", {"prompt": "a", "seed": 1.7})]
BAD += [("/interpolate", {"prompt": "a", **change}) for change in ({"frames": 2}, {"frames": 17}, {"frames": 4.5}, {"other_seed": -1}, {"other_prompt": 5}, {"num_steps": 0})]
BAD += [("/interpolate", {"prompt": "  "}), ("/edit", {"image": None, "prompt": "a"}), ("/edit", {"image": {"path": "/etc/passwd"}, "prompt": "a"})]
BAD += [("/encode", {"image": value}) for value in (None, 5, "x.png", {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, {"path": "../../x"})]


@pytest.mark.parametrize(("endpoint", "values"), BAD)
def test_impossible_requests_are_refused_with_a_sentence(server: Server, client: Client, endpoint: str, values: dict) -> None:  # noqa: F811
    described = client.view_api(return_format="dict", print_info=False)["named_endpoints"][endpoint]["parameters"]
    data = [values.get(p["parameter_name"], p.get("parameter_default")) for p in described]
    reply = httpx.post(f"{server.url}gradio_api/call{endpoint}", json={"data": data}, timeout=30)
    told = reply.text
    if reply.status_code == 200:
        told = httpx.get(f"{server.url}gradio_api/call{endpoint}/{reply.json()['event_id']}", timeout=30).text
    assert "event: complete" not in told and not re.search(r"Traceback|site-packages|/home/|/usr/|/tmp/|\.py\b", told), told


@pytest.mark.parametrize("change", [{"strength": 2}, {"strength": "0.5"}, {"prompt": ""}, {"source_prompt": "x" * 2000}, {"num_iterations": 99}])
def test_bad_edits_are_refused_with_a_sentence(client: Client, source: Path, change: dict) -> None:
    with pytest.raises(AppError) as refused:
        client.predict(**{"image": handle_file(source), "prompt": "a", "source_prompt": "", "strength": 0.5, **SETTINGS, **change}, api_name="/edit")
    assert is_sentence(str(refused.value)), str(refused.value)


@pytest.mark.parametrize(("painted", "said"), [(0, "mask is empty"), (255, "whole picture")])
def test_masks_of_nothing_and_of_all_are_refused(client: Client, source: Path, tmp_path: Path, painted: int, said: str) -> None:
    Image.new("L", (32, 32), painted).save(tmp_path / "m.png")
    with pytest.raises(AppError, match=said):
        client.predict(image=handle_file(source), mask=handle_file(tmp_path / "m.png"), prompt="a", **SETTINGS, api_name="/inpaint")


def encoded(mode: str, size: tuple[int, int], format_name: str) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format_name)
    return buffer.getvalue()


UPLOADS = {
    "empty.png": b"", "text.png": b"not a picture", "cut.png": encoded("RGB", (64, 64), "PNG")[:50], "vector.svg": b"<svg></svg>",
    "tiny.png": encoded("RGB", (1, 1), "PNG"), "thin.png": encoded("RGB", (1, 4000), "PNG"), "bomb.png": encoded("1", (13000, 13000), "PNG"),
}


@pytest.mark.parametrize("name", UPLOADS)
def test_files_that_are_no_picture_get_a_sentence_soon(client: Client, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(UPLOADS[name])
    with pytest.raises(AppError) as refused:
        client.predict(image=handle_file(tmp_path / name), api_name="/encode")
    assert is_sentence(str(refused.value)), str(refused.value)


@pytest.mark.parametrize("content", [("RGB", (50, 40), "GIF"), ("CMYK", (40, 50), "JPEG"), ("I;16", (64, 64), "PNG"), ("RGBA", (64, 64), "WEBP")], ids=lambda c: c[0])
def test_odd_pictures_are_read(client: Client, tmp_path: Path, content: tuple) -> None:
    (tmp_path / "odd").write_bytes(encoded(*content))
    file, _ = client.predict(image=handle_file(tmp_path / "odd"), api_name="/encode")
    assert pixels(file).shape == (32, 32, 3)


@pytest.mark.parametrize(("endpoint", "values"), [
    ("/edit", {"source_prompt": "b", "strength": 1.0}), ("/interpolate", {"frames": 16}), ("/compare_depths", {"depths": [32] * 8, "num_steps": 16})])
def test_every_long_answer_can_be_stopped(client: Client, source: Path, endpoint: str, values: dict) -> None:
    """An answer that comes in parts ends between two of them; the next visitor is served meanwhile.

    The work is the longest that the page allows: a quiet machine finishes a short one before it can be stopped.
    """
    image = {"image": handle_file(source)} if endpoint == "/edit" else {}
    depth = {} if endpoint == "/compare_depths" else {"num_iterations": 32}
    settings = {"num_steps": 32, "seed": 1, "guidance_scale": 2.0, **depth, **values}
    job = client.submit(prompt="a", **settings, **image, api_name=endpoint)
    deadline = time.monotonic() + 30
    while not job.outputs() and time.monotonic() < deadline:
        time.sleep(0.02)
    seen = len(job.outputs())
    job.cancel()
    assert client.predict(prompt="next", num_steps=1, num_iterations=1, api_name="/generate")[1]["prompt"] == "next"
    assert 0 < seen <= len(job.outputs()) < (8 if endpoint == "/compare_depths" else 32)
