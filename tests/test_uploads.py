"""Laws of unpacking a stranger's zip: what is good comes out byte for byte, and nothing is ever written elsewhere."""

from __future__ import annotations

import io
import os
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from iris.data import DataError, ImageFolder, unpack_zip


def png(number: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (number % 256, 10, 20)).save(stream, "PNG")
    return stream.getvalue()


def archive(path: Path, members: list[tuple[str | zipfile.ZipInfo, bytes]], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def good(count: int = 4) -> list[tuple[str, bytes]]:
    return [member for i in range(count) for member in ((f"things/{i}.png", png(i)), (f"things/{i}.txt", f"thing {i}".encode()))]


def listing(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_good_archive_comes_out_byte_for_byte_and_trains(tmp_path: Path) -> None:
    others = [("README.md", b"hello"), ("__MACOSX/._0.png", b"x"), ("things/.DS_Store", b"x"), ("run.py", b"raise SystemExit")]
    told = unpack_zip(archive(tmp_path / "a.zip", good() + others), tmp_path / "out")
    assert listing(tmp_path / "out") == dict(good())
    assert (told.files, told.bytes, told.skipped) == (8, sum(len(data) for _, data in good()), {"no picture or caption": 4})
    data = ImageFolder(told.folder, 16, "all")
    assert sorted(data[i].captions[0] for i in range(len(data))) == [f"thing {i}" for i in range(4)]
    assert not any(path.stat().st_mode & 0o111 for path in (tmp_path / "out").rglob("*.*"))


def test_names_as_macos_writes_them_are_taken_as_they_are_meant(tmp_path: Path) -> None:
    """Archive Utility stores UTF-8 without the flag that says so; a screenshot's name has a narrow no-break space."""
    name = "Kätzchen/Screenshot 3.04.12\u202fPM.png"
    file = archive(tmp_path / "mac.zip", [*good(), (name, png(2))])
    data = bytearray(file.read_bytes())
    for header, flags in ((b"PK\x03\x04", 7), (b"PK\x01\x02", 9)):
        at = data.rfind(header, 0, data.rfind(name.encode()) if flags == 9 else data.find(name.encode()))
        assert data[at + flags] & 0x08
        data[at + flags] &= ~0x08
    file.write_bytes(data)
    told = unpack_zip(file, tmp_path / "out")
    assert listing(told.folder) == dict(good()) | {name: png(2)}


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


HOSTILE = {
    "slip": ("../../evil.png", png()), "absolute": ("/etc/evil.png", png()), "windows slip": ("..\\..\\evil.png", png()), "drive": ("C:\\evil.png", png()),
    "inner slip": ("a/../../evil.png", png()), "link": (link("evil.png"), b"/etc/passwd"), "control": ("ev\x1bil.png", png()), "deep": ("d/" * 40 + "x.png", png()),
    "long": ("x" * 250 + ".png", png()), "repeated": ("things/0.png", png(9)), "below a file": ("things/0.png/x.png", png()), "huge caption": ("x.txt", b"x" * 200_000),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_one_bad_member_is_counted_and_two_refuse_the_archive(tmp_path: Path, kind: str) -> None:
    home = tmp_path / "home" / "deep"
    home.mkdir(parents=True)
    told = unpack_zip(archive(tmp_path / "a.zip", [*good(), HOSTILE[kind]]), home / "out")
    assert listing(home / "out") == dict(good()) and sum(told.skipped.values()) == 1
    with pytest.raises(DataError, match=r"2 of 10 files are bad .*at most 1 %"):
        unpack_zip(archive(tmp_path / "b.zip", [*good(), HOSTILE[kind], ("../again.png", png())]), home / "out2")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file() and "out" not in path.parts) == ["a.zip", "b.zip"]
    assert [path.name for path in home.iterdir()] == ["out"], "a refused archive leaves no folder"
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_a_bomb_stops_at_the_limit_whatever_it_says_of_itself(tmp_path: Path) -> None:
    zeros = bytes(4 * 2**20)
    bomb = archive(tmp_path / "bomb.zip", [(f"{i}.png", zeros) for i in range(16)])
    assert bomb.stat().st_size < 2**17
    with pytest.raises(DataError, match="unpacks to more than 8 MiB"):
        unpack_zip(bomb, tmp_path / "out", max_bytes=8 * 2**20)
    lying = bytearray(archive(tmp_path / "one.zip", [("0.png", zeros), *good()]).read_bytes())
    for signature, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):  # the sizes of the first member, in both places
        start = lying.index(signature)
        lying[start + at:start + at + 4] = struct.pack("<I", 100)
    (tmp_path / "lying.zip").write_bytes(lying)
    told = unpack_zip(tmp_path / "lying.zip", tmp_path / "out")
    assert told.skipped == {"damaged": 1} and listing(told.folder) == dict(good())


def test_memory_is_bounded_by_the_method(tmp_path: Path) -> None:
    told = unpack_zip(archive(tmp_path / "a.zip", good()), tmp_path / "plain")
    assert told.files == 8
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with pytest.raises(DataError, match="unknown compression"):
            unpack_zip(archive(tmp_path / "b.zip", good(), method), tmp_path / "out")


def test_damage_anywhere_is_found_or_harmless(tmp_path: Path) -> None:
    """A flipped byte gives a sentence, or files of which each is one of the originals."""
    whole = archive(tmp_path / "a.zip", good(6)).read_bytes()
    rng = np.random.default_rng(0)
    for attempt, position in enumerate(rng.choice(len(whole), 150, replace=False)):
        torn = bytearray(whole)
        torn[position] ^= int(rng.integers(1, 256))
        (tmp_path / "b.zip").write_bytes(torn if attempt % 3 else whole[:position])
        try:
            told = unpack_zip(tmp_path / "b.zip", tmp_path / f"out{attempt}")
        except DataError as error:
            assert str(error).endswith(".") and "/" not in str(error).replace(".png, ", "")
        else:
            assert set(listing(told.folder).values()) <= {data for _, data in good(6)}


def test_places_and_files_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    whole = archive(tmp_path / "a.zip", good())
    (tmp_path / "no.zip").write_bytes(b"no zip")
    for file, folder, options, sentence in (
        (whole, "full", {}, "is not empty"), (tmp_path / "gone.zip", "out", {}, "does not exist"), (tmp_path / "no.zip", "out", {}, "no whole zip"),
        (whole, "out", {"max_archive_bytes": 10}, "larger than 0 MiB"), (archive(tmp_path / "e.zip", []), "out", {}, "holds no pictures"),
        (archive(tmp_path / "x.zip", [("a.exe", b"x")]), "out", {}, "holds no pictures"), (whole, "full/mine.txt/out", {}, "cannot be made"),
    ):
        with pytest.raises(DataError, match=sentence):
            unpack_zip(file, tmp_path / folder, **options)
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep" and not os.path.exists(tmp_path / "out")


def test_a_table_that_is_damaged_or_not_read_is_never_passed_over_in_silence(tmp_path: Path) -> None:
    """All captions would be gone, and the folder's name would stand for them."""
    table = ("metadata.csv", b"file_name,text\n" + b"".join(b"things/%d.png,thing %d\n" % (i, i) for i in range(50)))
    torn = bytearray(archive(tmp_path / "torn.zip", [*good(), table], zipfile.ZIP_STORED).read_bytes())
    torn[torn.index(b"thing 7")] ^= 1
    (tmp_path / "torn.zip").write_bytes(torn)
    with pytest.raises(DataError, match=r"metadata\.csv cannot be unpacked \(damaged\)"):
        unpack_zip(tmp_path / "torn.zip", tmp_path / "out")
    told = unpack_zip(archive(tmp_path / "other.zip", [*good(), ("captions.csv", table[1]), ("a.HEIC", b"1"), ("b.heic", b"2")]), tmp_path / "out")
    assert told.passed_over.startswith("Left out: 1 .csv file, 2 .heic files. Pictures are .png") and "metadata.csv" in told.passed_over
    assert not unpack_zip(archive(tmp_path / "good.zip", good()), tmp_path / "out2").passed_over


def test_shadows_of_files_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iris.data.uploads.MAX_MEMBERS", 8)
    shadows = [(f"__MACOSX/things/._{name}", b"x") for name, _ in good()]
    assert unpack_zip(archive(tmp_path / "mac.zip", good() + shadows), tmp_path / "out").files == 8
    with pytest.raises(DataError, match="has 10 files; at most 8"):
        unpack_zip(archive(tmp_path / "many.zip", good(5)), tmp_path / "out2")
