"""Laws of a stranger's data set: what is bad is skipped, counted by reason and reported; above one in a hundred it is refused."""

from __future__ import annotations

import csv
import io
import json
import logging
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_reliability_images import HOSTILE, claiming

from iris.data import DataError, ImageFolder, load_dataset_by_name
from iris.data.pictures import clean_captions

GOOD = 199  # of which two bad ones are 1 %
REASONS = {"0 bytes": "corrupt", "text.png": "corrupt", "truncated": "corrupt", "169 megapixels": "too large", "1 x 1": "too small"}


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (number % 256, 9, 9)).save(stream, "PNG")
    return stream.getvalue()


def make_rows(root: Path, count: int = GOOD) -> list[dict[str, str]]:
    """`count` good pictures, and the rows that describe them."""
    root.mkdir(parents=True, exist_ok=True)
    rows = [{"file_name": f"{number:04d}.png", "text": f"thing {number}"} for number in range(count)]
    for number, row in enumerate(rows):
        (root / row["file_name"]).write_bytes(png(number))
    return rows


def write(root: Path, rows: list, kind: str) -> None:
    if kind == "jsonl":
        (root / "metadata.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
        return
    with open(root / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["file_name", "text"], restval="")
        writer.writeheader()
        writer.writerows(row for row in rows if isinstance(row, dict))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", REASONS)
def test_bad_pictures_are_skipped_counted_and_reported_up_to_one_in_a_hundred(kind: str, tmp_path: Path, caplog) -> None:
    rows = make_rows(tmp_path)
    for number in range(2):
        (tmp_path / f"bad-{number}.png").write_bytes(HOSTILE[kind])
    with caplog.at_level(logging.WARNING, "iris.data"):
        write(tmp_path, [*rows, *({"file_name": f"bad-{number}.png", "text": "bad"} for number in range(2))], "csv")
        data = ImageFolder(tmp_path, 16, "all")
    assert len(data) == GOOD and data.skipped == {REASONS[kind]: 2} and f"2 of {GOOD + 2} pictures were skipped (2 {REASONS[kind]})" in caplog.text
    (tmp_path / "bad-2.png").write_bytes(HOSTILE[kind])
    write(tmp_path, [*rows, *({"file_name": f"bad-{number}.png", "text": "bad"} for number in range(3))], "csv")
    with pytest.raises(DataError, match=rf"3 of {GOOD + 3} pictures had to be skipped \(3 {REASONS[kind]}\); at most 1 % may be bad"):
        ImageFolder(tmp_path, 16, "all")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_rows_that_are_missing_mute_or_point_elsewhere_are_counted(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    (tmp_path / "secret.png").write_bytes(png(1))
    rows = make_rows(root)
    for bad, reason in (({"file_name": "gone.png", "text": "x"}, "missing"), ({"file_name": "../secret.png", "text": "x"}, "missing"),
                        ({"file_name": str(tmp_path / "secret.png"), "text": "x"}, "missing"), ({"file_name": "a\0b.png", "text": "x"}, "missing"),
                        ({"file_name": "x" * 5000, "text": "x"}, "missing"), ({"text": "no name"}, "missing"),
                        ({"file_name": "mute.png", "text": " \n\0"}, "no caption"), *([("[1, 2]", "no caption"), ("{broken", "no caption")] if kind == "jsonl" else [])):
        write(root, [*rows, bad], kind)
        if "mute.png" in str(bad):
            (root / "mute.png").write_bytes(png(1))
        data = ImageFolder(root, 16, "all")
        assert len(data) == GOOD and sum(data.skipped.values()) == 1 and reason in (*data.skipped, "missing", "no caption"), f"{bad}: {data.skipped}"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "txt"])
def test_a_giant_caption_is_cut_and_costs_no_picture_but_its_own(kind: str, tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 20)
    giant = "word " * 400_000
    if kind == "txt":
        for row in rows:
            (tmp_path / row["file_name"]).with_suffix(".txt").write_text(giant if row["file_name"] == "0003.png" else row["text"])
    else:
        write(tmp_path, [{**row, "text": giant} if row["file_name"] == "0003.png" else row for row in rows], kind)
    data = ImageFolder(tmp_path, 16, "all")
    assert len(data) + sum(data.skipped.values()) == 20 and sum(data.skipped.values()) <= 1
    assert all(len(caption) <= 1000 for index in range(len(data)) for caption in data[index].captions)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_shard_with_bad_members_counts_them(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in range(GOOD + 2):
            bad = {7: claiming(13000, 13000), 9: b"torn"}.get(number)
            for suffix, data in (("png", bad or png(number)), ("json", b"{" if number == 5 else json.dumps({"caption": f"thing {number}"}).encode()),
                                 ("txt", f"thing {number}".encode())):
                member = tarfile.TarInfo(f"../../{number:04d}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    data = load_dataset_by_name(f"webdataset:{tmp_path}/a.tar", 16, "all")
    assert len(data) == GOOD and data.skipped == {"too large": 1, "corrupt": 1}
    assert [path.name for path in tmp_path.rglob("*")] == ["a.tar"], "members are read, never extracted"


def test_a_torn_shard_is_refused_wherever_it_breaks_off(tmp_path: Path) -> None:
    for kind in ("w", "w:gz"):
        with tarfile.open(tmp_path / "a.tar", kind) as archive:
            for number in range(8):
                for suffix, data in (("png", png(number)), ("txt", b"thing")):
                    member = tarfile.TarInfo(f"{number:04d}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        whole = (tmp_path / "a.tar").read_bytes()
        (tmp_path / "b.tar").write_bytes(whole)
        assert len(load_dataset_by_name(f"webdataset:{tmp_path}/b.tar", 16, "all")) == 8
        end = len(whole.rstrip(b"\0")) if kind == "w" else len(whole)
        for cut in range(100, end - 10, max(1, end // 23) | 1):
            if kind == "w" and cut % 512 == 0:
                continue  # nothing tells a plain tar cut between two blocks from a whole one that lacks its end
            (tmp_path / "b.tar").write_bytes(whole[:cut])
            with pytest.raises(DataError, match="no whole tar file"):
                load_dataset_by_name(f"webdataset:{tmp_path}/b.tar", 16, "all")


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(JSON)
def test_any_value_is_captions_or_none(value: object) -> None:
    captions = clean_captions(value)
    assert all(text == text.strip() and text.isprintable() and 0 < len(text) <= 1000 for text in captions)
    assert len(set(captions)) == len(captions) <= 16
    assert clean_captions(list(captions)) == captions


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["metadata.csv", "metadata.jsonl", "0000.txt"]))
def test_any_bytes_for_captions_give_a_data_set_or_a_sentence(tmp_path: Path, content: bytes, name: str) -> None:
    for file in tmp_path.iterdir():
        file.unlink()
    (tmp_path / "0000.png").write_bytes(png(0))
    (tmp_path / name).write_bytes(content)
    try:
        assert len(ImageFolder(tmp_path, 16, "all")) <= 1
    except DataError as error:
        assert str(error).endswith(".") and "\n" not in str(error)
