"""Laws of export and runtime: the same pictures as torch, at every depth and batch; torch's noise; a process without torch."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, build_generator, randomise, subprocess_environment
from PIL import Image

from iris.config import TextConfig, preset
from iris.nn.autoencoder import WaveletVAE
from iris.pipeline import IRISPipeline, SamplingDefaults
from iris.rng import rng_for
from iris.runtime.noise import standard_normal, stream
from iris.runtime.png import png_bytes
from iris.text import bundled_minilm, load_text_encoder

exports = pytest.mark.skipif(any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")) or bundled_minilm() is None,
                             reason="needs onnx, onnxscript, onnxruntime and MiniLM")


@pytest.mark.parametrize("shape", [(16, 8, 8), (4, 4), (5, 7), (1, 17), (3, 31)])
@pytest.mark.parametrize("numbers", [(7, 0), (0, 0), (2**31 - 1, 1, 3)])
def test_noise_is_that_of_torch(shape: tuple[int, ...], numbers: tuple[int, ...]) -> None:
    expected = torch.randn(shape, generator=rng_for(*numbers)).numpy()
    np.testing.assert_allclose(standard_normal(stream(*numbers), shape), expected, atol=2e-6)


def test_fewer_than_16_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="16 or more"):
        standard_normal(stream(1), (3, 5))


def test_a_png_holds_the_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(pixels)))), pixels)
    with pytest.raises(ValueError, match="uint8"):
        png_bytes(pixels[..., 0])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> IRISPipeline:
    """A small pipeline with a text network of one layer behind MiniLM's tokenizer, a text adapter, a strided core, random weights."""
    import shutil

    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("text")
    for file in bundled_minilm().glob("*okeniz*.json"):
        shutil.copy(file, folder)
    torch.manual_seed(0)
    BertModel(BertConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=2, intermediate_size=96)).save_pretrained(folder)
    text = TextConfig(encoder="minilm", dim=48, max_tokens=16, path=str(folder))
    config = preset("nano", text=text, generator__text_dim=text.dim, generator__text_tokens=text.max_tokens, generator__text_adapter=True,
                    generator__core_stride=2)
    autoencoder = randomise(WaveletVAE(config.autoencoder), scale=0.02)
    autoencoder.calibrate(torch.zeros(8), torch.full((8,), 0.05))
    return IRISPipeline(config, autoencoder, build_generator(config), load_text_encoder(text), SamplingDefaults(num_steps=3, num_iterations=2))


@pytest.fixture(scope="module")
def exported(drawn: IRISPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from iris.export import export_onnx

    return export_onnx(drawn, tmp_path_factory.mktemp("onnx") / "model")


@exports
@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["euler", "consistency"])
@pytest.mark.parametrize(("prompts", "depth", "scale"), [(["red apple"], 1, 1.0), (["red apple"], 5, 3.0), (["red apple", "🍎 and a pear", ""], 3, 2.0)])
def test_the_runtime_draws_the_pictures_of_torch(drawn: IRISPipeline, exported: Path, prompts: list[str], depth: int, scale: float, sampler: str) -> None:
    from iris.runtime import OnnxPipeline

    seeds = list(range(7, 7 + len(prompts)))
    settings = {"num_steps": 3, "num_iterations": depth, "guidance_scale": scale}
    expected = drawn(prompts, seed=seeds, sampler=sampler, **settings)
    runtime = OnnxPipeline(exported)
    runtime.model["defaults"]["sampler"] = sampler
    latents = runtime.latents(prompts, seed=seeds, **settings)
    images = runtime.run("decoder", {"latents": latents})["images"]
    np.testing.assert_allclose(images, drawn.autoencoder.decode(expected.latents).clamp(-1, 1).numpy(), atol=1e-3)
    pixels = runtime(prompts, seed=seeds, **settings)
    assert max(np.abs(np.asarray(image, int) - pixels[row]).max() for row, image in enumerate(expected.images)) <= 1


@exports
@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_carried_state_and_a_shift_of_the_times_are_the_runtimes_too(drawn: IRISPipeline, exported: Path, scale: float) -> None:
    from iris.runtime import OnnxPipeline

    settings = {"num_steps": 4, "num_iterations": 2, "guidance_scale": scale}
    runtime = OnnxPipeline(exported)
    runtime.model["defaults"]["carry_state"] = True
    carried, fresh = (drawn("red apple", seed=7, carry_state=carry, **settings).latents for carry in (True, False))
    latents = runtime.latents("red apple", seed=7, **settings)
    np.testing.assert_allclose(latents, carried.numpy(), atol=1e-3)
    assert np.abs(latents - fresh.numpy()).max() > 1e-2
    runtime.model["defaults"]["timestep_shift"] = 0.5
    shifted = drawn("red apple", seed=7, carry_state=True, timestep_shift=0.5, **settings).latents
    np.testing.assert_allclose(runtime.latents("red apple", seed=7, **settings), shifted.numpy(), atol=1e-3)
    assert np.abs(shifted - carried).max() > 1e-2
    runtime.model["defaults"] |= {"timestep_shift": 1.0, "sampler": "consistency"}
    jumped = drawn("red apple", seed=7, carry_state=True, sampler="consistency", **settings).latents
    np.testing.assert_allclose(runtime.latents("red apple", seed=7, **settings), jumped.numpy(), atol=1e-3)


@exports
@pytest.mark.slow
def test_the_command_draws_in_a_process_without_torch(exported: Path, tmp_path: Path) -> None:
    output = tmp_path / "apple.png"
    code = ("import sys; from iris.runtime.__main__ import main; status = main(sys.argv[1:]); "
            "assert 'torch' not in sys.modules and 'transformers' not in sys.modules; sys.exit(status)")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", code, *arguments], env=subprocess_environment(), cwd=ROOT, capture_output=True, text=True, timeout=120)

    done = run(str(exported), "red apple", "-o", str(output), "--threads", "1", "--json")
    assert done.returncode == 0, done.stderr
    assert Image.open(output).size == (32, 32) and 20e6 < json.loads(done.stdout)["peak_bytes"] < 500e6
    for arguments, said in (((str(tmp_path), "x"), "is not an exported model"), ((str(exported), "x", "--num-steps", "0"), "num_steps is 0"),
                            ((str(exported), "x" * 1001), "at most 1000")):
        refused = run(*arguments)
        assert refused.returncode == 2 and said in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.parametrize(("module", "missing", "said"), [("iris.runtime", "onnxruntime", "onnxruntime is not installed; run: pip install"),
                                                         ("iris.runtime", "numpy", "numpy is not installed; run: pip install"),
                                                         ("iris.export", "onnxruntime", "an export needs")])
def test_a_missing_package_is_named(module: str, missing: str, said: str, tmp_path: Path) -> None:
    code = f"""
import importlib.util, runpy, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ("onnx", "onnxscript") else find(name, *rest)
sys.modules["{missing}"] = None
sys.argv = ["x", *sys.argv[1:]]
runpy.run_module("{module}", run_name="__main__", alter_sys=True)
"""
    wanted = ["demo/models/iris-scenes", str(tmp_path / "new")] if module == "iris.export" else [str(tmp_path), "x"]
    done = subprocess.run([sys.executable, "-c", code, *wanted], env=subprocess_environment(), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("header", ["[]", '{"format": 1}', '{"format": 1, "defaults": {"num_steps": 4}}', '{"format": 1, "defaults": [], "config": []}', "7"])
def test_a_header_that_lacks_what_a_drawing_reads_is_no_model(header: str, tmp_path: Path) -> None:
    generate = pytest.importorskip("iris.runtime.generate", reason="needs onnxruntime and tokenizers")
    (tmp_path / generate.MODEL_FILE).write_text(header.replace("1", str(generate.FORMAT), 1))
    with pytest.raises(generate.RuntimeFailure, match="is not an exported model"):
        generate.OnnxPipeline(tmp_path)
    with pytest.raises(generate.RuntimeFailure, match="is not an exported model"):
        generate.OnnxPipeline("~nobody-of-this-name/graphs")


@exports
@pytest.mark.slow
def test_many_prompts_are_read_in_one_go_and_numbers_may_be_numpys(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than are remembered, one of them read before, and one that is too long for a prompt once its emoji are spelled."""
    from iris.prompts import PromptError
    from iris.runtime import OnnxPipeline, RuntimeFailure
    from iris.runtime.generate import MAX_REMEMBERED

    runtime, opened = OnnxPipeline(exported), []
    session = runtime._session
    monkeypatch.setattr(runtime, "_session", lambda name: opened.append(name) or session(name))
    prompts = ["\U0001f383" * 70, *(f"{number} red apples" for number in range(MAX_REMEMBERED))]
    first = runtime.states(prompts[:1])
    states = runtime.states(prompts)
    assert opened == ["text_encoder"] * 2 and len(states[0]) == len(prompts) and len(runtime._read) <= MAX_REMEMBERED
    np.testing.assert_array_equal(states[0][0], first[0][0])
    settings = {"num_steps": 1, "num_iterations": 1}
    expected = runtime("red apple", seed=7, **settings)
    for seed in (np.int64(7), 7.0, [7], np.array([7])):
        np.testing.assert_array_equal(runtime("red apple", seed=seed, **settings), expected)
    for seed in (None, 7.5, "7", True):
        with pytest.raises(RuntimeFailure, match="seed is"):
            runtime("red apple", seed=seed, **settings)
    with pytest.raises(PromptError, match="must be text"):
        runtime(None, **settings)


@exports
@pytest.mark.slow
def test_prompts_are_read_once_and_a_damaged_graph_is_named(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    from iris.runtime import OnnxPipeline, RuntimeFailure

    runtime = OnnxPipeline(exported)
    first = runtime.states(["red apple", "blue square"])
    monkeypatch.setattr(runtime, "_session", lambda name: pytest.fail(f"{name} was loaded again"))
    again = runtime.states(["blue square", "red apple"])
    np.testing.assert_array_equal(again[0], first[0][::-1])
    copied = shutil.copytree(exported, tmp_path / "copy")
    (copied / "core.onnx").write_bytes(b"nothing")
    with pytest.raises(RuntimeFailure, match="is missing or damaged"):
        OnnxPipeline(copied)("red apple", num_steps=1)
    shutil.copyfile(exported / "coda.onnx", copied / "core.onnx")
    with pytest.raises(RuntimeFailure, match=r"core\.onnx does not fit the other graphs there"):
        OnnxPipeline(copied)("red apple", num_steps=1)
    with pytest.raises(RuntimeFailure, match="threads is 99999999999; use a whole number from 0 to 1024"):
        OnnxPipeline(exported, threads=99999999999)
    (copied / "tokenizer.json").write_text("{}")
    with pytest.raises(RuntimeFailure, match="tokenizer"):
        OnnxPipeline(copied)("red apple", num_steps=1)


@exports
def test_a_model_without_a_text_network_and_a_full_folder_are_refused(pipeline: IRISPipeline, drawn: IRISPipeline, tmp_path: Path) -> None:
    from iris.export import export_onnx

    with pytest.raises(ValueError, match="has no network to export"):
        export_onnx(pipeline, tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is not empty"):
        export_onnx(drawn, tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        export_onnx(drawn, tmp_path / "file")
    other = copy.copy(drawn)
    other.defaults = dataclasses.replace(drawn.defaults, sampler="heun")
    with pytest.raises(ValueError, match="sampler is heun; the runtime knows euler and consistency"):
        export_onnx(other, tmp_path / "heun")
    with pytest.raises(ValueError, match=r'on meta; move it first: pipe.to\("cpu"\)'):
        export_onnx(IRISPipeline(drawn.config, copy.deepcopy(drawn.autoencoder).to("meta"), copy.deepcopy(drawn.generator).to("meta"), drawn.text_encoder),
                    tmp_path / "meta")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@exports
@pytest.mark.slow
def test_int8_is_smaller_and_near(drawn: IRISPipeline, exported: Path, tmp_path: Path) -> None:
    from iris.export import export_onnx
    from iris.runtime import OnnxPipeline

    automatic = copy.copy(drawn)
    automatic.defaults = dataclasses.replace(drawn.defaults, num_iterations="auto")
    small = export_onnx(automatic, tmp_path / "int8", int8=True)
    assert OnnxPipeline(small).model["defaults"]["num_iterations"] == drawn.config.generator.mean_iterations
    assert (small / "coda.onnx").stat().st_size < (exported / "coda.onnx").stat().st_size
    exact, found = (OnnxPipeline(folder).latents("red apple", num_steps=2, num_iterations=2, seed=3) for folder in (exported, small))
    assert 0 < np.linalg.norm(found - exact) / np.linalg.norm(exact) < 0.1
