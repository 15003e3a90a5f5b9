"""Checkpoint folders: safetensors shards, a JSON config, and a manifest with the sha256 of every file.

    FOLDER/config.json                          {"format_version", "config", "metadata"}
    FOLDER/PART-00001-of-0000N.safetensors      tensors of one part ("autoencoder", "generator", "ema", ...),
                                                where asked for with matrices in eight bits (see `iris.eight_bits`)
    FOLDER/manifest.json                        {file: {"sha256", "bytes"}}

Nothing but safetensors and JSON is ever opened, so a checkpoint cannot run code. safetensors alone does not notice a
flipped bit, hence the manifest. A save is a new folder beside the old one, flushed to disk and then renamed, so that a
crash, a full disk or a kill leaves the old checkpoint or the new one, never a mixture.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from iris.eight_bits import SCALE, from_eight_bits, to_eight_bits
from iris.locks import process_lives
from iris.replacing import backup_of, flush_folder, put_in_place

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
MANIFEST_FILE = "manifest.json"
_MAX_JSON_BYTES = 64 * 2**20
_PART_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SHARD_NAME = re.compile(r"([a-z][a-z0-9_]*)-(\d{5})-of-(\d{5})\.safetensors")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Files that may lie beside a checkpoint without being part of it; they are never opened.
_COMPANIONS = (".md", ".txt", ".png", ".jpg", ".jpeg", ".webp")
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib")


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, or that is not exactly what was written; the message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint folder holds: `tensors[part][name]`, on the CPU, in the dtype that was stored."""

    config: dict[str, Any]
    metadata: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]
    folder: Path = field(default_factory=Path)


# --- writing -------------------------------------------------------------------------------------------------------


def write_checkpoint(
    folder: Path | str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    metadata: Mapping[str, Any] | None = None,
    shard_bytes: int = 9_500_000,
    dtype: torch.dtype | None = None,
    eight_bits: Sequence[str] = (),
) -> Path:
    """Write a checkpoint folder in one atomic step and return its path.

    config, metadata: plain JSON data. tensors: part -> name -> tensor of any dtype, device and shape; views and shared
    tensors are stored as copies. shard_bytes: size at which a part is split into another file (a single larger tensor
    gets a file of its own). dtype: floating tensors are cast to it. eight_bits: parts whose matrices are stored as int8.
    Raises CheckpointError, and leaves what was in `folder` untouched, when the data do not fit the format or the disk
    refuses them.
    """
    folder = Path(os.path.expanduser(folder)).resolve()
    header = {"format_version": FORMAT_VERSION, "config": dict(config), "metadata": dict(metadata or {})}
    try:
        header_bytes = json.dumps(header, indent=2, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint's config or metadata is not plain JSON data: {error}.") from error
    _check_parts(tensors)
    if unknown := sorted(set(eight_bits) - set(tensors)):
        raise CheckpointError(f"there is no part {unknown[0]!r} to store in eight bits; the parts are {', '.join(tensors)}.")
    try:
        tensors = {part: to_eight_bits(named) if part in eight_bits else named for part, named in tensors.items()}
    except ValueError as error:
        raise CheckpointError(f"the checkpoint {folder} could not be written: {error}.") from error
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        companions = _companions(folder)
        draft = folder.parent / f".{folder.name}.writing-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        draft.mkdir()
        try:
            for companion in companions:
                _write_file(draft / companion.name, companion.read_bytes())
            _fill(draft, header_bytes, tensors, shard_bytes, dtype)
            put_in_place(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(f"the checkpoint {folder} could not be written: {error.strerror or error}.") from error
    return folder


def _companions(folder: Path) -> list[Path]:
    """Files such as README.md that a save carries over. Refuses a folder that holds more than a checkpoint does."""
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; give a folder for the checkpoint.")
    kept = []
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        if entry.is_file() and _is_companion(entry.name):
            kept.append(entry)
        elif not (entry.name in (CONFIG_FILE, MANIFEST_FILE) or _SHARD_NAME.fullmatch(entry.name) or entry.name == ".cache"):
            raise CheckpointError(f"{entry} is not part of a checkpoint and a save would delete it; choose another folder.")
    return kept


def _is_companion(name: str) -> bool:
    return name.startswith((".", "LICENSE")) or name.lower().endswith(_COMPANIONS)


def _check_parts(tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    for part, named in tensors.items():
        if not isinstance(part, str) or not _PART_NAME.fullmatch(part):
            raise CheckpointError(f"checkpoint part is {part!r}; use lower-case letters, digits and underscores.")
        for name, tensor in named.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise CheckpointError(f"{part}: {name!r} is a {type(tensor).__name__}; only named tensors can be stored.")


def _fill(
    draft: Path, header: bytes, tensors: Mapping[str, Mapping[str, Tensor]], shard_bytes: int, dtype: torch.dtype | None
) -> None:
    """Write every file of a checkpoint into the empty folder `draft` and flush it to disk."""
    manifest = {CONFIG_FILE: _write_file(draft / CONFIG_FILE, header)}
    for part, named in tensors.items():
        shards = _split(named, shard_bytes, dtype)
        for number, names in enumerate(shards, start=1):
            stored = {name: _storable(f"{part}: {name}", named[name], _kind(name, named[name], dtype)) for name in names}
            file = f"{part}-{number:05d}-of-{len(shards):05d}.safetensors"
            manifest[file] = _write_file(draft / file, safetensors.torch.save(stored))
    _write_file(draft / MANIFEST_FILE, json.dumps(manifest, indent=1).encode())
    flush_folder(draft)


def _split(named: Mapping[str, Tensor], shard_bytes: int, dtype: torch.dtype | None) -> list[list[str]]:
    """Names in order, cut wherever the next tensor would not fit; at least one shard, so that an empty part is kept."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in named.items():
        size = tensor.numel() * _kind(name, tensor, dtype).itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _kind(name: str, tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype that a tensor is stored in. A row's scale can be too small for half precision."""
    return dtype if dtype is not None and tensor.is_floating_point() and not name.endswith(SCALE) else tensor.dtype


def _storable(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous CPU copy with storage of its own (safetensors refuses shared storage)."""
    if tensor.is_meta or tensor.layout != torch.strided:
        raise CheckpointError(f"{name} has no dense data and cannot be stored.")
    tensor = tensor.detach()
    if tensor.dtype != dtype:
        cast = tensor.to(dtype)
        if bool((torch.isfinite(tensor) & ~torch.isfinite(cast)).any()):
            raise CheckpointError(f"{name} holds values outside the range of {dtype}; store it in a wider dtype.")
        tensor = cast
    return tensor.cpu().clone(memory_format=torch.contiguous_format)


def _write_file(path: Path, data: bytes) -> dict[str, Any]:
    """Write and flush one file; returns its manifest entry."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def _remove_leftovers(folder: Path) -> None:
    """Clean up behind killed writers of `folder`, and settle a save that was killed between its two renames."""
    remove_drafts(folder.parent, glob.escape(folder.name))
    if backup_of(folder).exists() and not folder.exists():
        os.rename(backup_of(folder), folder)


def remove_drafts(parent: Path, name: str) -> None:
    """Delete drafts of the checkpoints `name` (a glob pattern) whose writers no longer live."""
    for draft in parent.glob(f".{name}.writing-*"):
        writer = draft.name.rsplit("-", 2)[1]
        # Our own number is a dead namesake's: a draft of this process is gone when its save ends, however it ends.
        if not writer.isdigit() or int(writer) == os.getpid() or not process_lives(int(writer), None):
            shutil.rmtree(draft, ignore_errors=True)


# --- reading -------------------------------------------------------------------------------------------------------


def read_checkpoint(folder: Path | str, parts: Sequence[str] | None = None) -> Checkpoint:
    """Read a checkpoint folder and verify the sha256 of every file used.

    parts: names of the parts to read (None: all). Raises CheckpointError, naming the file, on anything that is missing,
    added, truncated, changed or of another format version. Each file is read once: the bytes hashed are those parsed.
    """
    folder = Path(os.path.expanduser(folder))
    if not folder.exists() and backup_of(folder).exists():
        folder = backup_of(folder)  # a save was killed between its two renames: this is the checkpoint before it
    try:
        manifest = _read_manifest(folder)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror or error}.") from error
    header = _parse_json(folder / CONFIG_FILE, _read_file(folder, CONFIG_FILE, manifest))
    if header.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} has format version {header.get('format_version')!r}; this program reads {FORMAT_VERSION}."
        )
    if not isinstance(header.get("config"), dict) or not isinstance(header.get("metadata"), dict):
        raise CheckpointError(f"{folder / CONFIG_FILE} must hold the objects config and metadata.")
    shards = _shards_by_part(folder, manifest)
    wanted = list(shards) if parts is None else list(parts)
    missing = [part for part in wanted if part not in shards]
    if missing:
        raise CheckpointError(f"{folder} has no part {missing[0]!r}; it has {', '.join(shards) or 'none'}.")
    tensors = {part: _read_part(folder, shards[part], manifest) for part in wanted}
    return Checkpoint(config=header["config"], metadata=header["metadata"], tensors=tensors, folder=folder)


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifest, after checking that the folder holds exactly the files it lists, each of the right size."""
    path = folder / MANIFEST_FILE
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; a checkpoint is a folder of safetensors and JSON files.")
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint folder {folder}.")
    sizes = {entry.name: entry.stat().st_size for entry in folder.iterdir() if entry.is_file()}
    if MANIFEST_FILE not in sizes:
        pickles = sorted(name for name in sizes if name.lower().endswith(_PICKLES))
        hint = f"; {pickles[0]} may be a pickle and is never opened" if pickles else ""
        raise CheckpointError(f"{folder} has no {MANIFEST_FILE}{hint}.")
    if sizes[MANIFEST_FILE] > _MAX_JSON_BYTES:
        raise CheckpointError(f"{path} is too large for a manifest.")
    manifest = _parse_json(path, path.read_bytes())
    if CONFIG_FILE not in manifest:
        raise CheckpointError(f"{path} does not list {CONFIG_FILE}.")
    for name, entry in manifest.items():
        _check_entry(folder, name, entry, sizes)
    for name in sorted(set(sizes) - set(manifest) - {MANIFEST_FILE}):
        if not _is_companion(name):
            raise CheckpointError(f"{folder / name} does not belong to the checkpoint and is not opened; remove it.")
    return manifest


def _check_entry(folder: Path, name: str, entry: Any, sizes: Mapping[str, int]) -> None:
    if name != CONFIG_FILE and not _SHARD_NAME.fullmatch(name):
        raise CheckpointError(f"{folder / MANIFEST_FILE} lists {name!r}, which is not a file of a checkpoint.")
    if not isinstance(entry, dict) or set(entry) != {"sha256", "bytes"}:
        raise CheckpointError(f"{folder / MANIFEST_FILE} has no sha256 and size for {name}.")
    if name not in sizes:
        raise CheckpointError(f"{folder / name} is missing.")
    if sizes[name] != entry["bytes"]:
        raise CheckpointError(f"{folder / name} has {sizes[name]} bytes instead of {entry['bytes']}.")


def _parse_json(path: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object.")
    return value


def _read_file(folder: Path, name: str, manifest: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The bytes of one listed file; their sha256 is the manifest's."""
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder / name} cannot be read: {error.strerror or error}.") from error
    if hashlib.sha256(data).hexdigest() != manifest[name]["sha256"]:
        raise CheckpointError(f"{folder / name} is damaged: its sha256 is not the one in {MANIFEST_FILE}.")
    return data


def _shards_by_part(folder: Path, manifest: Mapping[str, Any]) -> dict[str, list[str]]:
    """part -> its files in order; all of a part's shards must be listed."""
    shards: dict[str, list[str]] = {}
    for name in manifest:
        match = _SHARD_NAME.fullmatch(name)
        if match:
            shards.setdefault(match[1], []).append(name)
    for part, names in shards.items():
        count = max(int(_SHARD_NAME.fullmatch(name)[3]) for name in names)
        expected = [f"{part}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        if sorted(names) != expected:
            strange = sorted(set(expected) ^ set(names))[0]
            raise CheckpointError(f"{folder / MANIFEST_FILE} does not list the {count} files of {part}: see {strange}.")
        names.sort()
    return shards


def _read_part(folder: Path, names: Sequence[str], manifest: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name in names:
        data = _read_file(folder, name, manifest)
        try:
            shard = safetensors.torch.load(data)
        except (SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(f"{folder / name} is not a safetensors file.") from error
        repeated = sorted(set(shard) & set(tensors))
        if repeated:
            raise CheckpointError(f"{folder / name} repeats the tensor {repeated[0]}.")
        tensors.update(shard)
    try:
        return from_eight_bits(tensors)
    except ValueError as error:
        raise CheckpointError(f"{folder / names[0]} and what follows it are not what was written: {error}.") from error


def load_module(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into the parameters and buffers of `module`, casting floating dtypes to the module's.

    Strict: the names must be those of `module.state_dict()` and every shape must agree. Everything is checked before
    anything is copied, so after a CheckpointError the module is as it was.
    """
    check_fit(module, tensors)
    target = module.state_dict()
    for name in target:
        if target[name].is_meta:
            raise CheckpointError(f"{type(module).__name__}: {name} has no memory (meta device); create the module on a real device first.")
    with torch.no_grad():
        for name, tensor in tensors.items():
            target[name].copy_(tensor)


def build_module(build: Callable[[], nn.Module], tensors: Mapping[str, Tensor]) -> nn.Module:
    """`build()` with the weights `tensors`, for a configuration of unknown origin.

    It is built without memory first and compared: a few numbers in a config.json could ask for terabytes, and the tensors
    that lie beside it cannot. Raises CheckpointError as `load_module` does.
    """
    with torch.device("meta"):
        try:
            draft = build()
        except (RuntimeError, OverflowError) as error:  # more elements than a tensor can count
            raise CheckpointError("the checkpoint's configuration describes a network that cannot exist.") from error
    check_fit(draft, tensors)
    module = build()
    load_module(module, tensors)
    return module


def check_fit(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """CheckpointError unless names, shapes and kinds of `tensors` are those of `module`, which needs no memory for that."""
    target = module.state_dict()
    where = type(module).__name__
    for word, names in (("lacks", set(target) - set(tensors)), ("has an unknown", set(tensors) - set(target))):
        if names:
            others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise CheckpointError(f"the checkpoint {word} tensor {min(names)} for {where}{others}.")
    for name, tensor in tensors.items():
        own = target[name]
        if own.shape != tensor.shape:
            raise CheckpointError(f"{where}: {name} has shape {list(tensor.shape)} in the checkpoint; expected {list(own.shape)}.")
        if own.dtype != tensor.dtype and not (own.is_floating_point() and tensor.is_floating_point()):
            raise CheckpointError(f"{where}: {name} is {tensor.dtype} in the checkpoint; expected {own.dtype}.")


# --- where checkpoints are -----------------------------------------------------------------------------------------


def resolve_folder(name_or_path: str | Path) -> Path:
    """A local checkpoint folder, or the local copy of a Hugging Face hub repository "owner/name".

    From the hub only *.json, *.safetensors and *.md are fetched. Raises CheckpointError with what was looked for.
    """
    text = str(name_or_path)
    path = Path(os.path.expanduser(text))
    if text and (path.is_dir() or backup_of(path).is_dir()):
        return path
    if text and path.exists():
        raise CheckpointError(f"{path} is a file; a checkpoint is a folder of safetensors and JSON files.")
    if isinstance(name_or_path, Path) or not _HUB_ID.fullmatch(text):
        raise CheckpointError(f"there is no folder {text}; give a checkpoint folder or a hub id such as owner/name.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(text, allow_patterns=["*.json", "*.safetensors", "*.md"]))
    except Exception as error:  # the client raises many unrelated types; all mean: not available
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{text} is neither a folder here nor available from the hub ({reason[0] if reason else type(error).__name__})."
        ) from error
