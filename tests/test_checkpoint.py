"""Laws of checkpoint folders: what is read is what was written, or an error names the file."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_samples import assert_same, snapshot, some_tensors
from torch import nn

from iris.checkpoint import (
    CheckpointError,
    load_module,
    read_checkpoint,
    resolve_folder,
    write_checkpoint,
)
from iris.step_checkpoints import latest_checkpoint, prune_checkpoints, step_folder

fork_only = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")

# --- round trips ---------------------------------------------------------------------------------------------------


def test_everything_comes_back_bitwise(saved: Path) -> None:
    checkpoint = read_checkpoint(saved)
    assert checkpoint.config == {"dim": 8} and checkpoint.metadata == {"step": 7} and checkpoint.folder == saved
    assert_same(checkpoint.tensors, some_tensors())


def test_tensors_read_share_no_memory(saved: Path) -> None:
    tensors = read_checkpoint(saved).tensors["generator"]
    tensors["weight"].zero_()
    assert torch.equal(tensors["shared"], some_tensors()["generator"]["shared"])


def test_writing_is_deterministic(saved: Path, tmp_path: Path) -> None:
    again = write_checkpoint(tmp_path / "again", {"dim": 8}, some_tensors(), {"step": 7}, shard_bytes=300)
    assert snapshot(again) == snapshot(saved)


def test_shards_keep_to_their_size_and_names(tmp_path: Path) -> None:
    tensors = {"part": {f"layer{i}": torch.randn(100) for i in range(10)} | {"large": torch.randn(1000)}}
    folder = write_checkpoint(tmp_path / "m", {}, tensors, shard_bytes=1000)
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert shards == [f"part-{i:05d}-of-00006.safetensors" for i in range(1, 7)]  # 2 layers a shard, the large one alone
    assert_same(read_checkpoint(folder).tensors, tensors)


def test_chosen_parts_only(saved: Path) -> None:
    assert set(read_checkpoint(saved, parts=["ema"]).tensors) == {"ema"}
    with pytest.raises(CheckpointError, match=r"no part 'vae'; it has generator, ema, empty"):
        read_checkpoint(saved, parts=["vae"])


def test_dtype_casts_floats_alone_and_refuses_overflow(tmp_path: Path) -> None:
    tensors = {"p": {"w": torch.randn(4, dtype=torch.float64), "i": torch.arange(3), "inf": torch.tensor([float("inf")])}}
    read = read_checkpoint(write_checkpoint(tmp_path / "m", {}, tensors, dtype=torch.float16)).tensors["p"]
    assert read["w"].dtype == torch.float16 and read["i"].dtype == torch.int64 and read["inf"].isinf().all()
    with pytest.raises(CheckpointError, match=r"p: big holds values outside the range of torch\.float16"):
        write_checkpoint(tmp_path / "m", {}, {"p": {"big": torch.tensor([1e6])}}, dtype=torch.float16)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (({"x": float("nan")}, {}), "not plain JSON"),
        (({"x": Path("a")}, {}), "not plain JSON"),
        (({}, {"../evil": {}}), "checkpoint part is '../evil'"),
        (({}, {"p": {"w": [1.0]}}), "'w' is a list"),
        (({}, {"p": {"w": torch.empty(2, device="meta")}}), "no dense data"),
    ],
)
def test_data_that_do_not_fit_are_refused(tmp_path: Path, arguments: tuple, sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        write_checkpoint(tmp_path / "m", *arguments)
    assert list(tmp_path.iterdir()) == []


# --- damage --------------------------------------------------------------------------------------------------------


def test_any_flipped_bit_is_found(saved: Path) -> None:
    rng = torch.Generator().manual_seed(1)
    for path in sorted(saved.iterdir()):
        good = path.read_bytes()
        step = 1 if path.name == "manifest.json" else 7
        for position in range(0, len(good), step):
            bad = bytearray(good)
            bad[position] ^= 1 << int(torch.randint(8, (), generator=rng))
            path.write_bytes(bad)
            with pytest.raises(CheckpointError):
                read_checkpoint(saved)
        path.write_bytes(good)
    read_checkpoint(saved)


@pytest.mark.parametrize("damage", ["truncated", "shorter by one", "emptied", "zeroed", "longer", "missing", "a folder"])
def test_damaged_files_are_named(saved: Path, damage: str) -> None:
    for path in sorted(saved.iterdir()):
        good = path.read_bytes()
        path.unlink()
        if damage == "a folder":
            path.mkdir()
        elif damage != "missing":
            bad = {
                "truncated": good[: len(good) // 2],
                "shorter by one": good[:-1],
                "emptied": b"",
                "zeroed": bytes(len(good)),
                "longer": good + b"\0",
            }[damage]
            path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=path.name):
            read_checkpoint(saved)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(good)


def test_a_file_swapped_with_another_checkpoints_is_found(saved: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", {"dim": 8}, some_tensors(seed=1), {"step": 8}, shard_bytes=300)
    good = snapshot(saved)
    for name, data in snapshot(other).items():
        if data != good[name]:
            (saved / name).write_bytes(data)
            with pytest.raises(CheckpointError):
                read_checkpoint(saved)
            (saved / name).write_bytes(good[name])


@pytest.mark.parametrize("name", ["extra.safetensors", "other.json", "weights.pt", "model.bin", "run.py"])
def test_unlisted_files_are_refused(saved: Path, name: str) -> None:
    (saved / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=f"{name} does not belong"):
        read_checkpoint(saved)


def test_a_card_and_a_licence_may_lie_beside(saved: Path) -> None:
    for name in ("README.md", "LICENSE", ".gitattributes", "sample.png"):
        (saved / name).write_bytes(b"x")
    (saved / ".cache").mkdir()
    assert_same(read_checkpoint(saved).tensors, some_tensors())


def rewrite_listed(folder: Path, name: str, data: bytes) -> None:
    """Change a file and its manifest entry, as someone who wants to deceive would."""
    import hashlib

    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_another_format_version_is_refused(saved: Path) -> None:
    rewrite_listed(saved, "config.json", b'{"format_version": 2, "config": {}, "metadata": {}}')
    with pytest.raises(CheckpointError, match="format version 2; this program reads 1"):
        read_checkpoint(saved)


@pytest.mark.parametrize("text", [b"[]", b"{", b"\xff", b'{"format_version": 1}', b"[" * 100_000])
def test_a_config_of_another_form_is_refused(saved: Path, text: bytes) -> None:
    rewrite_listed(saved, "config.json", text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_checkpoint(saved)


class Trap:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_a_pickle_is_never_executed(saved: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    payload = pickle.dumps(Trap(sprung))
    pickle.loads(payload)
    assert sprung.exists()  # the trap works
    sprung.unlink()
    shard = next(saved.glob("generator-*.safetensors"))
    for attempt in range(4):
        if attempt == 0:
            shard.write_bytes(payload)
        elif attempt == 1:
            rewrite_listed(saved, shard.name, payload)
        elif attempt == 2:
            rewrite_listed(saved, "config.json", payload)
        else:
            rewrite_listed(saved, "model.pt", payload)
        with pytest.raises(CheckpointError):
            read_checkpoint(saved)
    lone = tmp_path / "lone"
    lone.mkdir()
    (lone / "pytorch_model.bin").write_bytes(payload)
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin may be a pickle and is never opened"):
        read_checkpoint(lone)
    with pytest.raises(CheckpointError, match="is a file"):
        resolve_folder(lone / "pytorch_model.bin")
    assert not sprung.exists()


def test_a_manifest_cannot_point_outside(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    rewrite_listed(saved, "../secret.json", b"{}")
    with pytest.raises(CheckpointError, match="not a file of a checkpoint"):
        read_checkpoint(saved)


# --- modules -------------------------------------------------------------------------------------------------------


def small_module() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_a_module_comes_back_bitwise_and_casts(tmp_path: Path) -> None:
    source, target = small_module(), small_module()
    folder = write_checkpoint(tmp_path / "m", {}, {"net": source.state_dict()})
    load_module(target, read_checkpoint(folder).tensors["net"])
    assert all(torch.equal(target.state_dict()[name], value) for name, value in source.state_dict().items())
    half = write_checkpoint(tmp_path / "h", {}, {"net": source.state_dict()}, dtype=torch.float16)
    load_module(target, read_checkpoint(half).tensors["net"])
    assert target[0].weight.dtype == torch.float32
    assert torch.equal(target[0].weight, source[0].weight.half().float())
    assert target[0].weight.requires_grad


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"0.weight": None}, "lacks tensor 0.weight for Sequential"),
        ({"1.bias": None, "0.bias": None}, r"lacks tensor 0.bias for Sequential \(and 1 more\)"),
        ({"2.weight": torch.zeros(1)}, "has an unknown tensor 2.weight"),
        ({"0.weight": torch.zeros(4, 4)}, r"0.weight has shape \[4, 4\] in the checkpoint; expected \[4, 3\]"),
        ({"0.weight": torch.zeros(4, 3, dtype=torch.int64)}, "0.weight is torch.int64"),
        ({"1.num_batches_tracked": torch.tensor(1.0)}, "num_batches_tracked is torch.float32"),
    ],
)
def test_a_module_that_does_not_fit_is_untouched(change: dict, sentence: str) -> None:
    module = small_module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    tensors = {name: torch.ones_like(value) for name, value in before.items()}
    for name, value in change.items():
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
    with pytest.raises(CheckpointError, match=sentence):
        load_module(module, tensors)
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())


def test_a_module_without_memory_is_refused() -> None:
    with torch.device("meta"):
        module = nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match="meta device"):
        load_module(module, nn.Linear(2, 2).state_dict())


# --- finding checkpoints -------------------------------------------------------------------------------------------


def test_the_newest_good_checkpoint_is_used(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None and latest_checkpoint(tmp_path) is None
    for step in (2, 10, 100_000_000):  # the last has nine digits: order is numeric
        write_checkpoint(step_folder(tmp_path, step), {"step": step}, some_tensors())
    (tmp_path / "step-draft").mkdir()
    assert latest_checkpoint(tmp_path).config == {"step": 100_000_000}
    damaged = step_folder(tmp_path, 100_000_000)
    (damaged / "config.json").unlink()
    with pytest.warns(UserWarning, match=r"step-100000000 is not used: .*config.json is missing"):
        assert latest_checkpoint(tmp_path).config == {"step": 10}
    shutil.rmtree(step_folder(tmp_path, 2))
    shutil.rmtree(step_folder(tmp_path, 10))
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="move it away to start again"):
        latest_checkpoint(tmp_path)


def test_a_damaged_training_checkpoint_can_be_written_again(tmp_path: Path) -> None:
    folder = write_checkpoint(step_folder(tmp_path, 5), {}, some_tensors())
    (folder / "manifest.json").unlink()
    write_checkpoint(folder, {"again": True}, some_tensors())
    assert latest_checkpoint(tmp_path).config == {"again": True}


def test_pruning_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 5, 20, 300):
        write_checkpoint(step_folder(tmp_path, step), {}, {})
    assert prune_checkpoints(tmp_path, keep=2) == [step_folder(tmp_path, 5), step_folder(tmp_path, 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000020", "step-00000300"]
    (tmp_path / ".step-00000299.writing-999999999-0123abcd").mkdir()  # of a killed save
    (tmp_path / ".step-00000001.deleted").mkdir()
    assert prune_checkpoints(tmp_path) == [] and len(list(tmp_path.iterdir())) == 2
    assert prune_checkpoints(tmp_path / "none") == []
    with pytest.raises(CheckpointError, match="keep is 0"):
        prune_checkpoints(tmp_path, keep=0)


def test_names_resolve_to_folders(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = {}

    def snapshot_download(repo: str, **options: object) -> str:
        asked.update(options, repo=repo)
        if repo == "owner/gone":
            raise ConnectionError("no network\nand a long trace")
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve_folder(str(saved)) == saved and not asked
    assert resolve_folder("owner/model") == saved
    assert asked == {"repo": "owner/model", "allow_patterns": ["*.json", "*.safetensors", "*.md"]}
    with pytest.raises(CheckpointError, match=r"^owner/gone is neither .* \(no network\)\.$"):
        resolve_folder("owner/gone")
    for name in ("nowhere", "./owner/model", "a/b/c", "../a", tmp_path / "owner", ""):
        with pytest.raises(CheckpointError, match="there is no folder"):
            resolve_folder(name)
