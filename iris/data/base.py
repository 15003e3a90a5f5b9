"""What every data set gives: captioned uint8 pictures. And where downloaded or rendered data is kept."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np


class DataError(ValueError):
    """Data that cannot be read or found; the message is one sentence that names what was wrong and what is allowed."""


@dataclass(frozen=True)
class Example:
    """One picture and what is said about it.

    image: uint8 [H, W, 3], RGB. captions: one or more phrasings, the plainest first. label: the class in plain words.
    key: a name of the picture that stays the same between runs and machines.
    """

    image: np.ndarray
    captions: tuple[str, ...]
    label: str
    key: str


def class_caption(label: str) -> str:
    """A class as a caption: "a photo of an apple"; of no class "a photo"."""
    return f"a photo of {'an' if label[0].lower() in 'aeiou' else 'a'} {label}" if label else "a photo"


@runtime_checkable
class ImageDataset(Protocol):
    """Captioned pictures of one size with random access; `skipped` counts what was left out, by reason."""

    name: str
    skipped: dict[str, int]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def placeless(source: str) -> str:
    """`folder:/content/pictures*2+scenes` -> `folder*2+scenes`: the same pictures lie elsewhere, under another name, on another machine."""
    return re.sub(r"\b(folder|webdataset):[^+*]+", r"\1", source)


def fingerprint(dataset: ImageDataset, most: int = 2000) -> str:
    """Sixteen hex digits of what a data set holds: name, length, and the key, captions and pixels of at most `most` pictures, evenly spread;

    where the words are at hand (`told`, see PictureSet), all of them. Up to that size no change of a picture or a word goes unseen.
    """
    digest = hashlib.sha256(f"{placeless(dataset.name)} {len(dataset)}".encode("utf-8", "surrogatepass"))
    for part in getattr(dataset, "parts", (dataset,)):
        if hasattr(part, "told"):
            digest.update(repr(part.told).encode())
    for index in np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).astype(int)):
        example = dataset[int(index)]
        digest.update(repr((example.key, example.captions, example.label, example.image.shape)).encode())
        digest.update(np.ascontiguousarray(example.image))
    return digest.hexdigest()[:16]


def cache_dir() -> Path:
    """The folder for fetched and rendered data: the environment variable IRIS_CACHE, or ~/.cache/iris. Not created here."""
    chosen = os.environ.get("IRIS_CACHE", "")
    return Path(os.path.expanduser(chosen)) if chosen else Path.home() / ".cache" / "iris"


def stable_hash(text: str, buckets: int) -> int:
    """A bucket 0..buckets-1 for `text` that is the same on every machine and Python version (from SHA-256)."""
    # A file's name may be no UTF-8; Python then holds its bytes as surrogates.
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") % buckets


def checked_index(index: int, length: int) -> int:
    """`index` as 0..length-1 (negative ones count from the end); IndexError otherwise, so that `for x in dataset` ends."""
    if not -length <= index < length:
        raise IndexError(f"index is {index}; the data set has {length} items.")
    return index % length
