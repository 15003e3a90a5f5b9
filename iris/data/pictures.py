"""Records of captioned pictures -> a data set: decoded once, bad ones skipped and counted, kept in memory or on disk."""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from iris.data.base import DataError, Example, cache_dir, checked_index, class_caption, stable_hash
from iris.data.images import ImageError, open_image

log = logging.getLogger("iris.data")

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
METADATA = ("metadata.csv", "metadata.jsonl")
WORDS = (".caption", ".txt")  # beside a picture; of two the last one counts
OTHER_PICTURES = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".dng", ".cr2", ".nef", ".arw")
OTHER_TABLES = (".csv", ".tsv", ".jsonl", ".json", ".xlsx", ".parquet")
MEMORY_BYTES = 2 * 2**30  # decoded pixels beyond this go to a temporary file
MAX_SKIPPED_SHARE = 0.01
_DISK_RESERVE = 2**30
_HOPELESS = 500  # pictures skipped before the first that can be used
MAX_CAPTIONS, _MAX_CAPTION_LENGTH = 16, 1000
CAPTION_FIELDS = ("text", "caption", "captions", "prompt", "description", "sentence", "sentences", "txt")
SPLITS = ("train", "held_out", "all")


@dataclass(frozen=True)
class Record:
    """One picture before decoding: a stable key, the picture or where it is, its captions and its class (either may be empty)."""

    key: str
    picture: bytes | Path | Image.Image | None
    captions: tuple[str, ...] = ()
    label: str = ""


def text_of(data: bytes, cut: bool = False) -> str:
    """The text of a file: UTF-16 by its mark, else UTF-8, but for lines that are none the code page of Windows in which Excel writes a plain CSV.

    cut: `data` is a file's beginning, and may end within a character.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    try:
        return codecs.getincrementaldecoder("utf-8-sig")().decode(data, final=not cut)
    except UnicodeDecodeError:
        return "\n".join(map(_text_of_line, data.removeprefix(codecs.BOM_UTF8).split(b"\n")))


def _text_of_line(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("cp1252", errors="replace")


def is_hidden(inside: PurePath) -> bool:
    """Whether a path, seen from its data set's folder, is a system's own: .DS_Store, .ipynb_checkpoints, macOS's shadows of files."""
    return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in inside.parts)


def clean_captions(value: Any) -> tuple[str, ...]:
    """Text, bytes or a list of texts -> distinct captions without control characters or surplus space; () for anything else."""
    if isinstance(value, bytes):
        value = text_of(value)
    texts = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    cleaned = (" ".join("".join(c if c.isprintable() else " " for c in text).split()) for text in texts if isinstance(text, str))
    return tuple(dict.fromkeys(text[:_MAX_CAPTION_LENGTH] for text in cleaned if text))[:MAX_CAPTIONS]


def captions_of(row: dict[str, Any], fields: Iterable[str] = CAPTION_FIELDS) -> tuple[str, ...]:
    """All captions of one row of metadata: of every field of `fields` that it has, in that order."""
    return tuple(dict.fromkeys(caption for field in fields for caption in clean_captions(row.get(field))))


def label_of(row: dict[str, Any]) -> str:
    """The class of one row of metadata; a number is one too, zero as well."""
    label = row.get("label")
    return "" if label is None else str(label)


def in_split(key: str, split: str) -> bool:
    """Whether a picture belongs to `split`: one in twenty, by a stable hash of its key, is held out."""
    return split == "all" or (stable_hash(f"held out {key}", 20) == 0) == (split == "held_out")


class PixelStore:
    """Appends uint8 [size, size, 3] pictures; they stay in memory up to `memory_bytes` and then move to a nameless file."""

    def __init__(self, size: int, memory_bytes: int) -> None:
        self._size, self._limit, self._file = size, memory_bytes, None
        self._held: list[np.ndarray] = []
        self.count = 0

    def append(self, image: np.ndarray) -> None:
        self.count += 1
        if self._file is None and self.count * image.nbytes > self._limit:
            self._spill()
        if self._file is None:
            self._held.append(image)
        else:
            self._file.write(image.tobytes())
            if self.count % 1000 == 0 and shutil.disk_usage(cache_dir()).free < _DISK_RESERVE:
                raise DataError(f"the disk of the cache folder is nearly full after {self.count} pictures; pass a limit, or set IRIS_CACHE.")

    def _spill(self) -> None:
        cache_dir().mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=cache_dir())  # lives as long as the array that maps it
        for held in self._held:
            self._file.write(held.tobytes())
        self._held.clear()

    def finish(self) -> np.ndarray:
        """All pictures, uint8 [N, size, size, 3]."""
        shape = (self.count, self._size, self._size, 3)
        if self._file is not None:
            self._file.flush()
            return np.memmap(self._file, np.uint8, "r", shape=shape)
        return np.stack(self._held) if self._held else np.empty(shape, np.uint8)


class PictureSet:
    """Decoded pictures; map-style. `told`: captions, label and key of each. Made by `collect`."""

    def __init__(self, name: str, images: np.ndarray, told: list[tuple[tuple[str, ...], str, str]], skipped: dict[str, int]) -> None:
        self.name, self.skipped, self.told, self._images = name, skipped, told, images

    def __len__(self) -> int:
        return len(self.told)

    def __getitem__(self, index: int) -> Example:
        index = checked_index(index, len(self.told))
        captions, label, key = self.told[index]
        return Example(np.array(self._images[index]), captions, label, key)


def collect(name: str, records: Iterable[Record], size: int, split: str = "train", limit: int | None = None, total: int | None = None,
            memory_bytes: int = MEMORY_BYTES) -> PictureSet:
    """Decode the records of `split`, up to `limit` pictures. The first that can be used is always held out, so that a small set has both.

    A picture that cannot be decoded, or has neither caption nor label, is skipped and counted by reason; with a label alone it
    is captioned "a photo of a LABEL". Raises DataError when more than 1 % (and more than one) had to be skipped, of the held-out twentieth
    more than 5 % (and more than two), and when nothing is left.
    """
    if split not in SPLITS:
        raise DataError(f"the split of {name} is {split!r}; use one of {', '.join(SPLITS)}.")
    store, told, skipped, first, names = PixelStore(size, memory_bytes), [], Counter(), None, []
    expected = total if limit is None else limit
    with tqdm(desc=f"decoding {name}", unit="picture", total=expected, disable=None if expected is None or expected > 300 else True) as bar:
        for record in records:
            if (limit is not None and len(told) >= limit) or (not told and len(names) >= _HOPELESS):
                break
            wanted = in_split(record.key, split) if record.key != first else split != "train"
            if first is not None and not wanted:
                continue
            try:
                captions, label = _words(record)
                image = open_image(record.picture, size) if record.picture is not None else _missing(record)
            except ImageError as error:
                if wanted:
                    skipped[error.reason] += 1
                    names.append(record.key)
                    log.info("%s: %s was skipped: %s", name, record.key, error)
                continue
            if first is None:
                first, wanted = record.key, split != "train"
            if wanted:
                store.append(image)
                told.append((captions, label, record.key))
                bar.update()
    _check_skipped(name, skipped, names, len(told), split)
    return PictureSet(name, store.finish(), told, dict(skipped))


def _missing(record: Record) -> np.ndarray:
    raise ImageError("missing", f"{record.key} has no picture.")


def _words(record: Record) -> tuple[tuple[str, ...], str]:
    label = next(iter(clean_captions(record.label)), "")
    captions = record.captions or ((class_caption(label),) if label else ())
    if not captions:
        raise ImageError("no caption", f"{record.key} has neither caption nor label.")
    return captions, label


def _check_skipped(name: str, skipped: Counter, names: Sequence[str], kept: int, split: str) -> None:
    lost = len(names)
    hint = "; every picture needs a caption: a row in metadata.csv, a NAME.txt beside it, or a folder of its own kind to lie in" if skipped["no caption"] else ""
    reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.most_common())
    which = f"{', '.join(PurePath(key).name[:60] for key in names[:3])}{' and others' if lost > 3 else ''}"
    if not kept:
        raise DataError(f"{name} has no picture in split {split!r}" + (f"; all {lost} were skipped ({reasons}): {which}{hint}." if lost else "; it needs more pictures."))
    least, most = (2, 5 * MAX_SKIPPED_SHARE) if split == "held_out" else (1, MAX_SKIPPED_SHARE)  # chance fills a twentieth less evenly
    if lost > max(least, most * (lost + kept)):
        raise DataError(f"{name}: {lost} of {lost + kept} pictures had to be skipped ({reasons}); at most {100 * most:.0f} % may be bad, repair or remove them: {which}{hint}.")
    if lost:
        log.warning("%s: %d of %d pictures were skipped (%s).", name, lost, lost + kept, reasons)


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a .jsonl file, one for every line that is not blank; {} for a line that is none."""
    for line in io.StringIO(text_of(path.read_bytes())):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        yield row if isinstance(row, dict) else {}


def read_csv(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a .csv file with a header, its columns parted by commas, semicolons or tabs; {} for one that cannot be read, such as one with a giant field.

    A row that says more than the header has columns is a DataError: a caption with a comma and without quotes would be cut there.
    """
    text = text_of(path.read_bytes())
    header = text.partition("\n")[0]
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), skipinitialspace=True)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error:
            row = {}
        if any(row.pop(None, ())):
            raise DataError(f"{path.name}, line {rows.line_num}: there are more columns than in the first line; put a caption that has a comma in quotes.")
        yield {name.strip().lower(): value for name, value in row.items()}
