"""A stranger's zip archive -> a folder of pictures and captions, and nothing else on the disk."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import unicodedata
import zipfile
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from iris.data.base import DataError
from iris.data.images import MAX_BYTES
from iris.data.pictures import METADATA, OTHER_PICTURES, OTHER_TABLES, PICTURES, WORDS, is_hidden

MAX_CAPTION_BYTES = 100_000
MAX_METADATA_BYTES = 16 * 2**20
MAX_MEMBERS = 20_000  # that a data set has a use for
_MAX_LISTED = 100_000  # with what macOS and others put beside them
MAX_SHARE = 0.01  # of members that are damaged or unsafe; more than that (and more than one) is no honest archive
_MAX_DEPTH = 8
_BLOCK = 2**16
_NO_USE = "no picture or caption"
_TOO_LARGE = "too large"
# Of the methods a zip may name, the two that need no memory but their window: an LZMA header alone may ask for 4 GiB.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class Unpacked:
    """What was written to `folder`: files and bytes; `skipped` counts members left out, by reason."""

    folder: Path
    files: int
    bytes: int
    skipped: dict[str, int]

    @property
    def passed_over(self) -> str:
        """What may have been meant as pictures or captions and is neither, in a sentence; "" where there is nothing."""
        told = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in self.skipped.items() if kind.endswith(" file"))
        return told and f"Left out: {told}. Pictures are {', '.join(PICTURES)}; captions are looked for in {' or '.join(METADATA)}, or in a NAME.txt beside each picture."


class _Bad(Exception):
    """A member that is damaged or unsafe; its argument is the reason under which it is counted."""


def unpack_zip(file: str | Path, folder: str | Path, max_bytes: int = 2**29, max_archive_bytes: int = 2**28) -> Unpacked:
    """Write the pictures and captions (NAME.txt, NAME.caption, metadata.csv, metadata.jsonl) of a zip archive to `folder`, for `ImageFolder`.

    file: the archive, at most `max_archive_bytes`. folder: must not exist, or be empty. max_bytes: of all files together,
    counted as they are written, whatever the archive says of itself. Members of other kinds are left out; so are, as bad
    ones, those that lead out of the folder, are links, encrypted, damaged, too large or repeated. Raises DataError, and
    leaves no folder, when there are more than 1 % bad ones (and more than one), when a limit is passed, when nothing is
    left, or when the file is no zip archive. Nothing of it is executed, and no file gets permission to be.
    """
    file, folder = Path(file), Path(os.path.expanduser(folder))
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise DataError(f"the folder {folder.name!r} is not empty; unpack into a new one.")
    if not file.is_file():
        raise DataError(f"the archive {file.name!r} does not exist.")
    if file.stat().st_size > max_archive_bytes:
        raise DataError(f"the archive {file.name!r} is larger than {max_archive_bytes // 2**20} MiB.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise DataError(f"the folder {folder.name!r} cannot be made: {error.strerror or error}.") from None
    try:
        written, size, bad, others = _unpack(file, draft, max_bytes)
        _check(file.name, written, bad)
        if folder.is_dir():
            folder.rmdir()
        os.rename(draft, folder)
    except OSError as error:
        raise DataError(f"the archive {file.name!r} cannot be unpacked: {error.strerror or error}.") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return Unpacked(folder, written, size, dict(bad + others))


def _unpack(file: Path, draft: Path, max_bytes: int) -> tuple[int, int, Counter, Counter]:
    """(files, bytes, bad members by reason, other members by reason)."""
    written, size, bad, others = 0, 0, Counter(), Counter()
    try:
        with zipfile.ZipFile(file) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            useful = sum(_limit(_name(member)) > 0 for member in members[:_MAX_LISTED])
            if useful > MAX_MEMBERS or len(members) > _MAX_LISTED:
                raise DataError(f"the archive {file.name!r} has {max(useful, len(members) - _MAX_LISTED)} files; at most {MAX_MEMBERS} are unpacked.")
            for member in members:
                name = _name(member)
                limit = _limit(name)
                if limit == 0:
                    others[_left_out(name)] += 1
                    continue
                room = max_bytes - size
                try:
                    size += _write(archive, member, draft / _inside(name), min(limit, room))
                    written += 1
                except _Bad as reason:
                    if str(reason) == _TOO_LARGE and room < limit:
                        raise DataError(f"the archive {file.name!r} unpacks to more than {max_bytes // 2**20} MiB.") from None
                    if PurePosixPath(name).name.lower() in METADATA:  # all captions would go with it
                        raise DataError(f"the archive {file.name!r}: {PurePosixPath(name).name} cannot be unpacked ({reason}).") from None
                    bad[str(reason)] += 1
    except DataError:
        raise
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, ValueError):
        raise DataError(f"{file.name!r} is no whole zip archive.") from None
    return written, size, bad, others


def _name(member: zipfile.ZipInfo) -> str:
    """A member's name, with slashes. macOS writes UTF-8 without the flag that says so, which is then read as the code page of DOS."""
    name = member.filename
    if not member.flag_bits & 0x800:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def _left_out(name: str) -> str:
    """Under what a member without a use is counted: what its owner may have meant as pictures or captions by its kind."""
    path = PurePosixPath(name)
    return f"{path.suffix.lower()} file" if path.suffix.lower() in OTHER_PICTURES + OTHER_TABLES and not is_hidden(path) else _NO_USE


def _limit(name: str) -> int:
    """The most bytes a member of this name may have; 0 for what no data set has a use for."""
    path = PurePosixPath(name)
    plain = path.name.lower()
    if is_hidden(path):
        return 0
    if plain in METADATA:
        return MAX_METADATA_BYTES
    return MAX_BYTES if plain.endswith(PICTURES) else MAX_CAPTION_BYTES if plain.endswith(WORDS) else 0


def _inside(name: str) -> PurePosixPath:
    """A member's path below the folder; _Bad when it leads elsewhere or no file system would take it."""
    path = PurePosixPath(name)
    odd = any(part in ("..", ".") or ":" in part or any(unicodedata.category(c) in ("Cc", "Cs") for c in part) or len(part.encode("utf-8", "replace")) > 200 for part in path.parts)
    if path.is_absolute() or odd or not 1 <= len(path.parts) <= _MAX_DEPTH:
        raise _Bad("unsafe name")
    return path


def _write(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, limit: int) -> int:
    """Write one member in blocks and return its size; a file that breaks off or outgrows `limit` is removed again."""
    mode = member.external_attr >> 16
    if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
        raise _Bad("link or device")
    if member.flag_bits & 1:
        raise _Bad("encrypted")
    if member.compress_type not in _METHODS:
        raise _Bad("unknown compression")
    if member.file_size > limit:
        raise _Bad(_TOO_LARGE)
    size = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(member) as source, open(path, "xb") as target:
            while block := source.read(_BLOCK):
                size += len(block)
                if size > limit:
                    raise _Bad(_TOO_LARGE)
                target.write(block)
    except (FileExistsError, NotADirectoryError):
        raise _Bad("repeated") from None
    except (_Bad, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        path.unlink(missing_ok=True)
        raise error if isinstance(error, _Bad) else _Bad("damaged") from None
    return size


def _check(name: str, written: int, bad: Counter) -> None:
    lost = sum(bad.values())
    reasons = ", ".join(f"{count} {reason}" for reason, count in bad.most_common())
    if lost > max(1, MAX_SHARE * (lost + written)):
        raise DataError(f"the archive {name!r}: {lost} of {lost + written} files are bad ({reasons}); at most 1 % may be.")
    if not written:
        raise DataError(f"the archive {name!r} holds no pictures; put {', '.join(PICTURES)} files there, and captions beside them.")
