"""Data sets by name: "scenes", "emoji:fluent-3d", "hub:ID", "folder:PATH", "webdataset:GLOB", and mixes such as "scenes*2+emoji"."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from iris.data.base import DataError, Example, ImageDataset, checked_index
from iris.data.emoji import PACKS, Emoji
from iris.data.folder import ImageFolder
from iris.data.images import MAX_BYTES
from iris.data.pictures import (
    CAPTION_FIELDS,
    PICTURES,
    PictureSet,
    Record,
    captions_of,
    clean_captions,
    collect,
    is_hidden,
    label_of,
    text_of,
)
from iris.data.scenes import KINDS, Scenes

__all__ = ["HUB_ENTRIES", "HubEntry", "Mixture", "hub_dataset", "load_dataset_by_name", "streams", "webdataset"]

_SCENES_TRAIN, _SCENES_HELD_OUT = 20_000, 2_000


@dataclass(frozen=True)
class HubEntry:
    """A data set of the Hub: its id, split and configuration, and the columns to read ("" finds them by type and name)."""

    id: str
    split: str = "train"
    config: str = ""
    image: str = ""
    text: str = ""
    label: str = ""
    note: str = ""


HUB_ENTRIES: dict[str, HubEntry] = {
    "imagenet": HubEntry("ILSVRC/imagenet-1k", image="image", label="label", note="gated: accept its terms and log in first"),
    "imagenet-256": HubEntry("benjamin-paine/imagenet-1k-256x256", image="image", label="label", note="the same pictures at 256 px"),
    "cc3m": HubEntry("pixparse/cc3m-wds", image="jpg", text="txt", note="webdataset; streamed"),
    "cc12m": HubEntry("pixparse/cc12m-wds", image="jpg", text="txt", note="webdataset; streamed"),
    "journeydb": HubEntry("limingcv/JourneyDB_part1", note="a mirror in parquet; the original is gated and in archives"),
    "pokemon": HubEntry("reach-vb/pokemon-blip-captions", image="image", text="text", note="a mirror, 833 pictures; rights are not the uploader's"),
}


def load_dataset_by_name(source: str, size: int, split: str = "train", limit: int | None = None) -> ImageDataset:
    """The data set that `source` names, at `size` pixels.

    "scenes", "scenes:1" (at most so many objects) or "scenes:one,relation" (kinds); "emoji", "emoji:noto,twemoji", "emoji:all";
    "hub:ID" with "?image=COLUMN&text=COLUMN&label=COLUMN&split=NAME&config=NAME" where needed; an entry of HUB_ENTRIES;
    "folder:PATH"; "webdataset:GLOB". "A*2+B" mixes: shares go by weight (1 each), smaller parts are repeated.
    split: "train" or "held_out" ("all" too for what a user brings; the finer splits of `Emoji` for emoji).
    limit: at most so many pictures; for scenes their number. Raises DataError for anything else.
    """
    if not isinstance(source, str) or not source.strip():
        raise DataError(f"the data source is {source!r}; name one, for example 'scenes' or 'folder:PATH'.")
    if size < 8 or (limit is not None and limit < 1):
        raise DataError(f"size {size} and limit {limit} cannot be; use a size from 8 and a limit from 1.")
    parts = _split_mix(source.strip())
    if len(parts) == 1 and parts[0][1] == 1.0:
        return _load_part(parts[0][0], size, split, limit)
    whole = sum(weight for _, weight in parts)
    shares = [weight / whole for _, weight in parts]
    limits = [None if limit is None else max(1, math.ceil(limit * share)) for share in shares]
    loaded = [_load_part(name, size, split, most) for (name, _), most in zip(parts, limits, strict=True)]
    name = "+".join(part.name + (f"*{weight:g}" if weight != 1.0 else "") for part, (_, weight) in zip(loaded, parts, strict=True))
    return Mixture(loaded, shares, limit, name)


def streams(source: str) -> bool:
    """Whether a part of `source` comes over the network or from shards, so that all of it may be endless."""
    return any(name.startswith(("hub:", "webdataset:", *HUB_ENTRIES)) for name, _ in _split_mix(source))


def _split_mix(source: str) -> list[tuple[str, float]]:
    """"scenes*2+emoji" -> [("scenes", 2), ("emoji", 1)]; a "+" inside a path is no joint, since no source name follows it."""
    names = "|".join(["scenes", "emoji", "hub:", "folder:", "webdataset:", *HUB_ENTRIES])
    parts = []
    for part in re.split(rf"\+(?=(?:{names}))", source):
        match = re.fullmatch(r"(.+?)\*(\d+(?:\.\d+)?)", part.strip())
        name, weight = (match[1], float(match[2])) if match else (part.strip(), 1.0)
        if weight <= 0:
            raise DataError(f"the weight of {name!r} is 0; leave it out or use a weight above 0.")
        parts.append((name, weight))
    return parts


def _packs(source: str) -> tuple[str, ...]:
    """The emoji packs of one source: "emoji:all" -> every one, "emoji" -> OpenMoji."""
    rest = source.partition(":")[2]
    return tuple(PACKS) if rest == "all" else tuple(rest.split(",")) if rest else ("openmoji",)


def emoji_of(source: str) -> str | None:
    """The emoji of a mix as one source, each pack once: "scenes+emoji:noto*2+emoji:noto,twemoji" -> "emoji:noto,twemoji"; None without any."""
    packs = [pack for name, _ in _split_mix(source) if name.partition(":")[0] == "emoji" for pack in _packs(name)]
    return f"emoji:{','.join(dict.fromkeys(packs))}" if packs else None


def _load_part(source: str, size: int, split: str, limit: int | None) -> ImageDataset:
    kind, _, rest = source.partition(":")
    if kind == "scenes":
        return _load_scenes(rest, size, split, limit)
    if kind == "emoji":
        data = Emoji(size, _packs(source), split)
        return data if limit is None or limit >= len(data) else Mixture([data], [1.0], limit, name=data.name)
    if source in HUB_ENTRIES:
        return hub_dataset(HUB_ENTRIES[source], size, split, limit, name=source)
    if kind == "hub" and rest:
        return hub_dataset(_parse_hub(rest), size, split, limit, name=source)
    if kind == "folder" and rest:
        return ImageFolder(rest, size, split, limit)
    if kind == "webdataset" and rest:
        return webdataset(rest, size, split, limit)
    meant = f" For the pictures in that folder write folder:{source}." if Path(source).is_dir() else ""
    raise DataError(f"the data source {source!r} is unknown; use scenes, emoji, hub:ID, folder:PATH, webdataset:GLOB or one of {', '.join(HUB_ENTRIES)}.{meant}")


def _load_scenes(argument: str, size: int, split: str, limit: int | None) -> Scenes:
    count = limit or (_SCENES_TRAIN if split == "train" else _SCENES_HELD_OUT)
    if not argument or argument.isdigit():
        return Scenes(size, count, split=split, max_objects=int(argument or 3))
    kinds = argument.split(",")
    return Scenes(size, count, split=split, max_objects=max((KINDS[kind][0] for kind in kinds if kind in KINDS), default=3), kinds=kinds)


class Mixture:
    """Several data sets as one. Part i has the share `shares[i]`; parts that are too small for it are repeated.

    Without a `limit` every picture of every part comes at least once. Parts are interleaved evenly, so any prefix is mixed.
    """

    def __init__(self, parts: Sequence[ImageDataset], shares: Sequence[float], limit: int | None = None, name: str = "") -> None:
        if not all(len(part) for part in parts):
            raise DataError(f"{next(part.name for part in parts if not len(part))} is empty; leave it out of the mix.")
        self.name = name or "+".join(part.name for part in parts)
        self.parts = tuple(parts)
        length = max(len(part) / share for part, share in zip(parts, shares, strict=True))
        length = length if limit is None else min(length, limit)
        counts = [max(1, round(length * share)) for share in shares]
        which = np.concatenate([np.full(count, i) for i, count in enumerate(counts)])
        inner = np.concatenate([np.arange(count) % len(part) for count, part in zip(counts, parts, strict=True)])
        order = np.argsort(np.concatenate([(np.arange(count) + 0.5) / count for count in counts]), kind="stable")
        self._which, self._inner = which[order][:limit], inner[order][:limit]

    @property
    def skipped(self) -> dict[str, int]:
        """The parts' counts together."""
        total: dict[str, int] = {}
        for part in self.parts:
            for reason, count in part.skipped.items():
                total[reason] = total.get(reason, 0) + count
        return total

    def __len__(self) -> int:
        return len(self._which)

    def __getitem__(self, index: int) -> Example:
        index = checked_index(index, len(self._which))
        return self.parts[self._which[index]][int(self._inner[index])]


# --------------------------------------------------------------------------------------------------------------- webdataset


def webdataset(pattern: str, size: int, split: str = "train", limit: int | None = None) -> PictureSet:
    """Tar shards in webdataset's layout: NAME.jpg (png, webp) with NAME.txt, NAME.json (caption fields, label) or NAME.cls.

    `pattern` is a glob, or has one range of numbers as in "cc-{000..012}.tar". Members are read in memory, never extracted.
    """
    shards = _shards(pattern)
    if not shards:
        raise DataError(f"no file matches {pattern!r}; give the path of tar shards, for example 'webdataset:data/*.tar'.")
    records = (record for shard in shards for record in _shard_records(shard))
    return collect(f"webdataset:{shards[0].stem}" + (f" and {len(shards) - 1} more" if shards[1:] else ""), records, size, split, limit)


def _shards(pattern: str) -> list[Path]:
    pattern = str(Path(os.path.expanduser(pattern)))
    span = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not span:
        return sorted(Path(path) for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
    numbers = range(int(span[1]), int(span[2]) + 1)
    paths = [Path(f"{pattern[:span.start()]}{number:0{len(span[1])}d}{pattern[span.end():]}") for number in numbers]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise DataError(f"{len(missing)} of {len(paths)} shards are missing, first {missing[0]!r}.")
    return paths


def _shard_records(shard: Path) -> Iterator[Record]:
    """Consecutive members with one base name form a record."""
    base, fields = "", {}
    try:
        with tarfile.open(shard, "r:*") as archive:
            for member in archive:
                if not member.isreg() or is_hidden(PurePosixPath(member.name)):
                    continue
                folder, _, file_name = member.name.rpartition("/")
                stem, _, suffix = file_name.partition(".")
                name = f"{folder}/{stem}" if folder else stem
                if name != base and fields:
                    yield _shard_record(shard, base, fields)
                    fields = {}
                base = name
                file = archive.extractfile(member) if member.size <= MAX_BYTES else None
                fields[suffix.lower()] = file.read() if file else b""
            if _is_torn(shard, archive.offset):
                raise EOFError
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"the shard {shard.name} is no whole tar file ({type(error).__name__}); fetch it again.") from None
    if fields:
        yield _shard_record(shard, base, fields)


def _is_torn(shard: Path, end: int) -> bool:
    """Whether a plain tar breaks off before or inside the header at `end`, where tarfile stops as if it were whole. (A torn gzip it notices.)"""
    with open(shard, "rb") as file:
        plain = not file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"))
        file.seek(end)
        return plain and (shard.stat().st_size < end or file.read(512) not in (b"", bytes(512)))


def _shard_record(shard: Path, base: str, fields: dict[str, bytes]) -> Record:
    picture = next((fields[suffix[1:]] for suffix in PICTURES if suffix[1:] in fields), None)
    try:
        row = json.loads(fields.get("json", b"{}"))
    except (ValueError, RecursionError):
        row = {}
    row = row if isinstance(row, dict) else {}
    captions = dict.fromkeys([*clean_captions(fields.get("txt")), *captions_of(row)])
    label = label_of(row) or text_of(fields.get("cls", b""))
    return Record(f"{shard.stem}/{base}", picture, tuple(captions), label)


# ---------------------------------------------------------------------------------------------------------------------- hub


def _parse_hub(text: str) -> HubEntry:
    """"ID?image=picture&text=title" -> HubEntry."""
    identity, _, query = text.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(options) - {"split", "config", "image", "text", "label"})
    if unknown:
        raise DataError(f"hub:{identity} has unknown options {', '.join(unknown)}; use split, config, image, text, label.")
    return HubEntry(identity, **options)


def hub_dataset(entry: HubEntry, size: int, split: str = "train", limit: int | None = None, name: str = "") -> PictureSet:
    """Stream a data set of the Hub (or a local folder of one) and keep the pictures of `split`, up to `limit`.

    Only as much is fetched as is needed; without a limit that is all of it. Raises DataError when the library `datasets` is
    missing, the data set cannot be reached, or no picture column is found.
    """
    name = name or f"hub:{entry.id}"
    rows = _open_hub(entry, name)
    columns = _hub_columns(rows, entry, name)
    rows = _undecoded(rows, columns[0])
    return collect(name, _hub_records(rows, columns, Path(os.path.expanduser(entry.id)).is_dir(), name), size, split, limit)


def _open_hub(entry: HubEntry, name: str) -> Any:
    """The rows as a streaming data set with known features."""
    try:
        import datasets  # heavy, and needed here only
    except ImportError:
        raise DataError(f"{name} needs the library datasets; install it with pip install datasets.") from None
    try:
        folder = Path(os.path.expanduser(entry.id))
        if any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(str(folder))
            rows = (saved[entry.split] if isinstance(saved, dict) else saved).to_iterable_dataset()
        else:
            identity = str(folder) if folder.is_dir() else entry.id
            rows = datasets.load_dataset(identity, entry.config or None, split=entry.split, streaming=True)
        return rows if rows.features else rows._resolve_features()
    except Exception as error:  # network, gating, missing split: a dozen types from four libraries
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        note = f" ({entry.note})" if entry.note else ""
        raise DataError(f"{name} cannot be opened{note}: {reason}") from None


def _hub_columns(rows: Any, entry: HubEntry, name: str) -> tuple[str, tuple[str, ...], str, tuple[str, ...]]:
    """(picture column, caption columns, label column, names of the classes)."""
    features = rows.features
    for column in (entry.image, entry.text, entry.label):
        if column and column not in features:
            raise DataError(f"{name} has no column {column!r}; it has {', '.join(features)}.")
    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    image = entry.image or next((c for c in features if kinds[c] == "Image"), next((c for c in ("image", "jpg", "png", "webp") if c in features), ""))
    label = entry.label or next((c for c in features if kinds[c] == "ClassLabel"), "label" if "label" in features else "")
    text = (entry.text,) if entry.text else tuple(c for c in CAPTION_FIELDS if c in features)
    if not image or not (text or label):
        raise DataError(f"{name} has the columns {', '.join(features)}; say which hold the pictures and captions: hub:ID?image=COLUMN&text=COLUMN.")
    return image, text, label, tuple(getattr(features.get(label), "names", None) or ())


def _undecoded(rows: Any, image: str) -> Any:
    """Pictures as bytes: they are to be decoded by our own `open_image` and by nothing else."""
    import datasets

    if isinstance(rows.features[image], datasets.Image):
        return rows.cast_column(image, datasets.Image(decode=False))
    return rows


def _until_it_breaks(rows: Any, name: str) -> Iterator[dict[str, Any]]:
    """The rows; whatever the libraries below raise in the middle of them becomes one sentence."""
    try:
        yield from rows
    except Exception as error:  # a lost connection, a torn file, a row of another shape: of many unrelated types
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DataError(f"{name} broke off while it was read: {reason}") from None


def _hub_records(rows: Any, columns: tuple[str, tuple[str, ...], str, tuple[str, ...]], local: bool, name: str) -> Iterator[Record]:
    image, text, label, classes = columns
    for number, row in enumerate(_until_it_breaks(rows, name)):
        value = row.get(label)
        word = "" if value is None else str(value)
        if classes and isinstance(value, int):  # -1 is the Hub's word for an unknown one
            word = classes[value] if 0 <= value < len(classes) else ""
        # ImageNet's names are lists of synonyms: "tench, Tinca tinca"; the first is the plain word.
        picture = _picture_of(row.get(image), local)
        # One picture of five captions may be five rows, which belong into one split.
        own = hashlib.sha256(picture).hexdigest()[:16] if isinstance(picture, bytes) else number
        yield Record(str(row.get("__key__") or own), picture, captions_of(row, text), word.split(",")[0])


def _picture_of(value: Any, local: bool) -> Any:
    """Bytes, a PIL image, or the Hub's {"bytes", "path"}; None for anything that a data set has no business to point at.

    A path on this machine is followed for local data sets only, and a remote one only into the Hub itself.
    """
    if not isinstance(value, dict):
        return value if isinstance(value, bytes) or hasattr(value, "getbands") else None
    if value.get("bytes"):
        return value["bytes"]
    path = str(value.get("path") or "")
    if local:
        return Path(path) if path else None
    return _read_from_hub(path) if path.rpartition("::")[2].startswith("hf://") else None


def _read_from_hub(path: str) -> bytes:
    import fsspec  # comes with datasets, which gave this path

    try:
        with fsspec.open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except Exception as error:  # as above
        raise DataError(f"{path[:200]} cannot be read: {next(iter(str(error).strip().splitlines()), type(error).__name__)}") from None
