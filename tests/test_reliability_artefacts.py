"""Laws of artefacts from anywhere: damage is found before use and named, the one before is used, and nothing foreign runs."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import random
import shutil
import tarfile
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reliability_worker as worker
import safetensors.torch
import torch

from iris.checkpoint import CheckpointError, build_module, read_checkpoint
from iris.config import ConfigError, TextConfig, preset
from iris.data import DataError, ImageFolder, load_dataset_by_name, unpack_zip
from iris.data.emoji import _read_cache
from iris.features import FeatureError, _read_weights
from iris.nn.autoencoder import WaveletVAE
from iris.nn.generator import Generator
from iris.pipeline import IRISPipeline
from iris.runs import Run, RunError
from iris.step_checkpoints import latest_checkpoint, step_folder
from iris.text import TextError, load_text_encoder


def relist(folder: Path, name: str, data: bytes) -> None:
    """Put `data` into a file and its hash into the manifest, as someone who wants to deceive would."""
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


# --- damage --------------------------------------------------------------------------------------------------------------


def truncate(file: Path, rng: random.Random, other: Path) -> None:
    file.write_bytes(file.read_bytes()[:rng.randrange(file.stat().st_size)])


def zero(file: Path, rng: random.Random, other: Path) -> None:
    data = bytearray(file.read_bytes())
    start = rng.randrange(len(data) // 2)
    data[start:] = bytes(len(data) - start)
    file.write_bytes(data)


def flip(file: Path, rng: random.Random, other: Path) -> None:
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


def swap(file: Path, rng: random.Random, other: Path) -> None:
    """The same file of another checkpoint of the same shapes."""
    file.write_bytes((other / file.name).read_bytes())


def remove(file: Path, rng: random.Random, other: Path) -> None:
    file.unlink()


def misshape(file: Path, rng: random.Random, other: Path) -> None:
    """One tensor of another shape, with a manifest that agrees."""
    tensors = safetensors.torch.load(file.read_bytes())
    name = rng.choice([name for name, tensor in tensors.items() if tensor.ndim > 0])
    tensors[name] = torch.cat([tensors[name], tensors[name]])
    relist(file.parent, file.name, safetensors.torch.save(tensors))


DAMAGE = (truncate, zero, flip, swap, remove)


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory, pipeline: IRISPipeline) -> tuple[Path, Path]:
    """Two models of one shape with other weights and another description."""
    home = tmp_path_factory.mktemp("twins")
    pipeline.save_pretrained(home / "a")
    torch.manual_seed(1)
    other = IRISPipeline(pipeline.config, WaveletVAE(pipeline.config.autoencoder), Generator(pipeline.config.generator), pipeline.text_encoder,
                         pipeline.defaults, {"note": "the other one"})
    return home / "a", other.save_pretrained(home / "b")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    worker.train(folder, 6)
    return folder


def test_100_damaged_models_are_all_refused_before_use_and_the_file_is_named(twins: tuple[Path, Path], tmp_path: Path, record_property) -> None:
    good, other = twins
    rng, found, kinds = random.Random(0), 0, (*DAMAGE, misshape)
    for number in range(100):
        folder = tmp_path / f"model-{number}"
        shutil.copytree(good, folder)
        kind = kinds[number % len(kinds)]
        files = [path for path in sorted(folder.iterdir()) if kind is not misshape or path.suffix == ".safetensors"]
        file = files[number // len(kinds) % len(files)]
        kind(file, rng, other)
        with pytest.raises((CheckpointError, ConfigError)) as refused:
            IRISPipeline.from_pretrained(folder)
        # A swapped manifest blames the files that it does not describe; a wrong shape is blamed on its tensor.
        named = file.name in str(refused.value) or (kind in (swap, flip) and file.name == "manifest.json") or (kind is misshape and "has shape" in str(refused.value))
        assert named and "\n" not in str(refused.value), f"{kind.__name__} {file.name}: {refused.value}"
        found += 1
        shutil.rmtree(folder)
    record_property("tries", 100)
    record_property("figure", f"{found} of 100 damaged models refused")


def test_100_damaged_checkpoints_are_passed_over_for_the_one_before(trained: Path, tmp_path: Path, record_property) -> None:
    rng, used = random.Random(1), Counter()
    for number in range(100):
        run = tmp_path / f"run-{number}"
        shutil.copytree(trained / "checkpoints", run)
        kind = DAMAGE[number % len(DAMAGE)]
        newest = step_folder(run, 6)
        files = sorted(newest.iterdir())
        file = files[number // len(DAMAGE) % len(files)]
        kind(file, rng, step_folder(run, 5))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            used[latest_checkpoint(run).metadata["step"]] += 1
        assert len(told) == 1 and (file.name in str(told[0].message) or file.name == "manifest.json"), f"{kind.__name__} {file.name}: {told}"
        shutil.rmtree(run)
    assert used == {5: 100}
    record_property("tries", 100)
    record_property("figure", f"{used[5]} of 100 times the checkpoint before was used")


def test_a_config_that_asks_for_terabytes_is_refused_by_what_lies_beside_it(twins: tuple[Path, Path]) -> None:
    stored = read_checkpoint(twins[0])
    config = preset("nano").generator
    assert torch.equal(build_module(lambda: Generator(config), stored.tensors["generator"]).output.weight, stored.tensors["generator"]["output.weight"].float())
    for size in (64, 2**20, 2**40):
        huge = replace(config, dim=size, head_dim=size // 4)
        with pytest.raises((CheckpointError, ConfigError)):
            build_module(lambda huge=huge: Generator(huge), stored.tensors["generator"])


# --- what could run -------------------------------------------------------------------------------------------------------

NAMES = (
    "pytorch_model.bin", "model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl", "weights.pt", "checkpoint.pt", "checkpoint.pth", "optimizer.pt",
    "optimizer.bin", "scheduler.bin", "scaler.pt", "rng_state.pth", "random_states_0.pkl", "training_args.bin", "diffusion_pytorch_model.bin",
    "pytorch_model.bin.index.json", "model.safetensors", "model.safetensors.index.json", "data.pkl", "model.joblib", "model.npy", "model.npz", "tokenizer.pkl",
    "vocab.pkl", "config.pkl", "adapter_model.bin", "tf_model.h5", "model.msgpack", "pipeline.py", "modeling.py", "configuration.py", "__init__.py",
    "conftest.py", "setup.py", "sitecustomize.py", "model_index.json", "config.json", "manifest.json", "run.json", "metrics.jsonl", "summary.json",
    "generator-00001-of-00001.safetensors", "autoencoder-00001-of-00001.safetensors", "module-00001-of-00001.safetensors",
)


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


@pytest.fixture
def bombs(tmp_path: Path):
    """(name -> content that marks `sprung` when it is unpickled or imported), and `sprung`; a sprung trap fails the test."""
    sprung = tmp_path / "sprung"
    pickled, code = pickle.dumps(Trap(sprung)), f"open({str(sprung)!r}, 'w')".encode()
    pickle.loads(pickled)
    assert sprung.exists()  # the trap works
    sprung.unlink()
    exec(code)
    assert sprung.exists()
    sprung.unlink()
    yield lambda name: code if name.endswith(".py") else pickled
    assert not sprung.exists(), "something foreign was run"


def refused(action, *kinds: type[Exception]) -> int:
    """1 when `action` ends in one of the sentences `kinds` or passes; anything else is an error of the test."""
    try:
        action()
    except kinds as error:
        assert "\n" not in str(error)
    return 1


def test_a_bomb_under_any_name_is_never_run_by_a_loader_of_models_or_runs(bombs, twins, trained: Path, tmp_path: Path, monkeypatch, soak: bool, record_property) -> None:
    """Beside a good model, alone, and in place of a listed file whose hash agrees; also as what the hub hands over; also in a run."""
    import huggingface_hub

    good, tries, names = twins[0], 0, NAMES if soak else NAMES[::3]
    for name in names:
        beside, alone, run = (tmp_path / kind / name for kind in ("beside", "alone", "run"))
        shutil.copytree(good, beside)
        alone.mkdir(parents=True)
        shutil.copytree(trained, run)
        newest = step_folder(run / "checkpoints", 6)
        for folder in (beside, alone, run, newest):
            (folder / name).write_bytes(bombs(name))
        monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, folder=beside, **__: str(folder))
        for folder in (beside, alone, "somebody/else"):
            tries += refused(lambda folder=folder: IRISPipeline.from_pretrained(folder), CheckpointError, ConfigError)
        relist(beside, name, bombs(name)) if name not in ("manifest.json",) else None
        tries += refused(lambda folder=beside: IRISPipeline.from_pretrained(folder), CheckpointError, ConfigError)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tries += refused(lambda run=run: Run.open(run, {"seed": 0}).close(), RunError)
            tries += refused(lambda run=run: worker.train(run, 6), RunError, CheckpointError)
        for folder in (beside, alone, run):
            shutil.rmtree(folder)
    record_property("tries", tries)
    record_property("figure", f"{len(names)} names, {tries} loads, 0 executions")


def test_a_bomb_in_data_in_a_cache_or_in_an_encoder_is_never_run(bombs, tmp_path: Path, monkeypatch, record_property) -> None:
    tries = 0
    stream = io.BytesIO()
    np.save(stream, np.array([Trap(tmp_path / "sprung")], object), allow_pickle=True)
    (tmp_path / "pack.npy").write_bytes(stream.getvalue())
    (tmp_path / "pack.json").write_text(json.dumps({"codes": ["1f600"]}))
    assert _read_cache(tmp_path / "pack.npy", tmp_path / "pack.json", 8) is None
    for name in ("a.png", "a.jpg", "a.webp", "metadata.csv", "metadata.jsonl", "a.txt", "dataset_dict.json", "state.json", "mine.py"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        (folder / name).write_bytes(bombs(name))
        with tarfile.open(folder / "x.tar", "w") as archive:
            for suffix in ("png", "pkl", "pyd", "json", "txt", "pickle"):
                member = tarfile.TarInfo(f"0.{suffix}")
                member.size = len(bombs(name))
                archive.addfile(member, io.BytesIO(bombs(name)))
        tries += refused(lambda folder=folder: ImageFolder(folder, 16, "all"), DataError, UnicodeError)
        tries += refused(lambda folder=folder: load_dataset_by_name(f"webdataset:{folder}/x.tar", 16, "all"), DataError)
        tries += refused(lambda folder=folder: load_dataset_by_name(f"hub:{folder}?image=image&text=text", 16, "all"), DataError)
        tries += refused(lambda folder=folder, name=name: unpack_zip(folder / name, folder / "out"), DataError)
    for model_type in ("bert", "evil"):
        encoder = tmp_path / f"encoder-{model_type}"
        encoder.mkdir()
        remote = {"AutoModel": "modeling.Evil", "AutoConfig": "modeling.EvilConfig", "AutoTokenizer": ["modeling.EvilTokenizer", None]}
        (encoder / "config.json").write_text(json.dumps({"model_type": model_type, "hidden_size": 32, "auto_map": remote}))
        (encoder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "EvilTokenizer", "auto_map": remote}))
        for name in ("modeling.py", "pytorch_model.bin", "tokenizer.pkl"):
            (encoder / name).write_bytes(bombs(name))
        for kind in ("minilm", "clip-l"):
            with pytest.raises(TextError):
                load_text_encoder(TextConfig(encoder=kind, dim=32, max_tokens=16, path=str(encoder)))
            tries += 1
    weights = tmp_path / "lite0.pth"
    weights.write_bytes(bombs("lite0.pth"))
    with pytest.raises(FeatureError):
        _read_weights(weights, "0" * 64)
    with pytest.raises(pickle.UnpicklingError):  # even with the right hash, weights_only refuses
        _read_weights(weights, hashlib.sha256(weights.read_bytes()).hexdigest())
    record_property("tries", tries + 3)
    record_property("figure", f"{tries + 3} loads, 0 executions")
