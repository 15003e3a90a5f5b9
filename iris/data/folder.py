"""A folder of pictures with their captions, as a user brings it, a Hub data set lies on the disk, or an archive is unpacked."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from iris.data.base import DataError, stable_hash
from iris.data.pictures import (
    MAX_CAPTIONS,
    MEMORY_BYTES,
    METADATA,
    OTHER_PICTURES,
    OTHER_TABLES,
    PICTURES,
    WORDS,
    PictureSet,
    Record,
    captions_of,
    clean_captions,
    collect,
    is_hidden,
    label_of,
    read_csv,
    read_json_lines,
    text_of,
)

log = logging.getLogger("iris.data")


class ImageFolder(PictureSet):
    """A user's own folder of pictures, with captions from metadata.csv or metadata.jsonl (file_name and text or caption), which speaks
    for the folder it lies in and all below; else from NAME.txt, NAME.caption or NAME.png.txt beside a picture NAME.png (one caption a
    line), else from the name of the folder it lies in ("a photo of a NAME"). Folders that are links are followed, each real one once.

    Rows of one picture are its captions. One picture in twenty, by a stable hash of its path in the folder, is held out, and the first.
    Pictures come in the order of another hash, so that a prefix is a fair sample.
    """

    def __init__(self, path: str | Path, size: int, split: str = "train", limit: int | None = None, memory_bytes: int = MEMORY_BYTES) -> None:
        root = Path(os.path.normpath(os.path.expanduser(path)))
        if root.is_file():
            raise DataError(f"{str(path)!r} is a file; unpack it, and give the path of the folder with the pictures.")
        if not root.is_dir():
            raise DataError(f"the folder {str(path)!r} does not exist; give the path of a folder with pictures.")
        files = sorted(_files_below(root))
        passed_over = _passed_over(root, files)
        if passed_over and split != "held_out":  # once, not for each split
            log.warning("folder:%s: %s", root.name, passed_over)
        records = sorted(_merged(_folder_records(root, files)), key=lambda record: stable_hash(f"order {record.key}", 2**32))
        if not records:
            raise DataError(f"the folder {root.name!r} holds no pictures; put {', '.join(PICTURES)} files or a metadata.csv there. {passed_over}".rstrip())
        try:
            made = collect(f"folder:{root.name}", records, size, split, limit, len(records), memory_bytes)
        except DataError as error:
            raise DataError(f"{error} {passed_over}".rstrip()) from None  # it may be why
        super().__init__(made.name, made._images, made.told, made.skipped)


def _merged(records: Iterable[Record]) -> Iterable[Record]:
    """One record a key, with the captions of all that share it: a picture of five captions may have five rows."""
    merged: dict[str, Record] = {}
    for record in records:
        known = merged.get(record.key, record)
        captions = tuple(dict.fromkeys(known.captions + record.captions))[:MAX_CAPTIONS]
        merged[record.key] = replace(known, captions=captions, label=known.label or record.label)
    return merged.values()


def _files_below(root: Path) -> Iterator[Path]:
    """Every file but a system's own, also below folders that are links."""
    seen = set()
    for folder, below, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()  # a link that leads to where we were already
            continue
        seen.add(real)
        below.sort(key=lambda name: (os.path.islink(os.path.join(folder, name)), name))  # the same paths on every disk, the real one before its links
        paths = (Path(folder, name) for name in names)
        yield from (path for path in paths if path.is_file() and not is_hidden(path.relative_to(root)))


def _passed_over(root: Path, files: Sequence[Path]) -> str:
    """What a user may have meant as pictures or captions and is neither, in sentences; "" where there is nothing.

    Raises DataError where captions lie there, as many as pictures, and belong to none: to train without them is not what was meant.
    """
    pictures = {path for path in files if path.suffix.lower() in PICTURES}
    stems, told = {path.with_suffix("") for path in pictures}, []
    formats = Counter(path.suffix.lower() for path in files if path.suffix.lower() in OTHER_PICTURES)
    if formats:
        told.append(f"{', '.join(f'{count} {suffix}' for suffix, count in formats.most_common())} files are not read; save them as JPEG or PNG.")
    has_table = any(path.name.lower() in METADATA for path in files)
    tables = [path.name for path in files if path.suffix.lower() in OTHER_TABLES and path.with_suffix("") not in stems]
    if tables and not has_table:
        told.append(f"{tables[0]} is not read; captions in a table are looked for in {' or '.join(METADATA)}, with file_name and text in each row.")
    words = [path for path in files if path.suffix.lower() in WORDS]
    lost = [path for path in words if path.with_suffix("") not in pictures | stems]
    if len(lost) > 1 and not has_table:
        told.append(f"{len(lost)} files such as {lost[0].relative_to(root).as_posix()} are read by nobody: a caption lies beside its picture and has its name.")
        if pictures and len(lost) == len(words) >= len(pictures):
            raise DataError(f"folder:{root.name}: {told[-1]}")
    return " ".join(told)


def _folder_records(root: Path, files: Sequence[Path]) -> Iterator[Record]:
    tables = {path.parent: path for name in reversed(METADATA) for path in files if path.name.lower() == name}  # the first name of METADATA counts
    words = {path.with_suffix(""): path for suffix in WORDS for path in files if path.suffix.lower() == suffix}
    by_name = {_folded(path): path for path in reversed(files)} | {str(path): path for path in files}
    rows = [record for folder, table in tables.items() if not tables.keys() & set(folder.parents) for record in _metadata_records(root, table, by_name)]
    listed, unlisted = {record.key for record in rows}, 0
    for path in files:
        inside = path.relative_to(root)
        if path.suffix.lower() not in PICTURES or inside.as_posix() in listed:
            continue
        if tables.keys() & set(path.parents):  # a table speaks for it, and has no row for it
            unlisted += 1
            yield Record(inside.as_posix(), path)
        else:
            label = inside.parent.name.replace("_", " ").replace("-", " ")
            yield Record(inside.as_posix(), path, clean_captions(_lines_beside(words.get(path.with_suffix(""), words.get(path)))), label)
    for record in rows:
        if record.picture is None and not record.captions and unlisted:
            unlisted -= 1  # a row that cannot be read is the row of a picture without one: one loss, not two
        else:
            yield record


def _lines_beside(file: Path | None) -> list[str]:
    """The lines of a caption file; of a giant one its beginning."""
    if file is None:
        return []
    with open(file, "rb") as stream:
        return text_of(stream.read(20_000), cut=True).splitlines()


def _metadata_records(root: Path, metadata: Path, by_name: Mapping[str, Path]) -> Iterator[Record]:
    rows = list(read_csv(metadata) if metadata.suffix.lower() == ".csv" else read_json_lines(metadata))
    if rows and not any("file_name" in row for row in rows):
        raise DataError(f"{metadata.name} has no column file_name; name each picture there, and its caption in text or caption.")
    below = "" if metadata.parent == root else f"{metadata.parent.relative_to(root).as_posix()}/"
    for number, row in enumerate(rows, 1):
        name = str(row.get("file_name") or "").strip()
        picture = _picture_inside(metadata.parent, name, by_name)
        inside = picture.relative_to(root).as_posix() if picture else below + (name or f"row {number} of {metadata.name}")
        yield Record(inside, picture, captions_of(row), label_of(row))


def _folded(path: str | Path) -> str:
    """A path as one for all ways to write it: capitals, backslashes, and letters whose accents are apart."""
    return unicodedata.normalize("NFC", str(path).replace("\\", "/")).casefold()


def _picture_inside(folder: Path, name: str, by_name: Mapping[str, Path]) -> Path | None:
    """The file `name` below `folder`, which may be a link; None when there is none, also for a name that leads out of the folder or is no name at all.

    `by_name`: the files as they are called, and folded. A table from another system may write a name otherwise than the disk does.
    """
    try:
        for way in (name, name.replace("\\", "/")):
            path = Path(os.path.normpath(folder / way))
            known = by_name.get(str(path)) or by_name.get(_folded(path))
            if name and path.is_relative_to(os.path.normpath(folder)) and (known or path.is_file()):
                return known or path
    except (OSError, ValueError):
        pass
    return None
