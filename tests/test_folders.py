"""Laws of folders: tables and captions as people write them, whatever else lies there; every picture read or counted with its reason."""

import json
import os
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from picture_samples import make_folder, number_of, picture

from iris.config import preset
from iris.data import DataError, ImageFolder, load_dataset_by_name
from iris.data.base import fingerprint
from iris.runs import RunError
from iris.training.prepare import open_run, plan_training


@pytest.mark.parametrize("captions", ["csv", "jsonl", "txt"])
def test_a_captioned_folder(tmp_path, captions):
    root = make_folder(tmp_path / "art", 60, captions)
    train, held_out, whole = (load_dataset_by_name(f"folder:{root}", 16, split) for split in ("train", "held_out", "all"))
    assert len(train) + len(held_out) == len(whole) == 60 and len(held_out) >= 1
    assert not {e.key for e in train} & {e.key for e in held_out}
    for example in whole:
        assert example.captions[0] == f"picture number {number_of(example.image)}"
    first = next(example for example in whole if example.key == "0000.png")
    assert first.captions == (("picture number 0", "number 0") if captions == "txt" else ("picture number 0",))
    assert [e.key for e in ImageFolder(root, 16, "train", limit=7)] == [e.key for e in train][:7]


def test_a_folder_of_folders_is_labelled_by_their_names(tmp_path):
    for name in ("sea_horse", "apple"):
        make_folder(tmp_path / "zoo" / name, 3, captions="none")
    data = ImageFolder(tmp_path / "zoo", 16, "all")
    assert Counter(e.label for e in data) == {"sea horse": 3, "apple": 3}
    assert {e.key: e.captions for e in data}["apple/0000.png"] == ("a photo of an apple",)


def test_a_prefix_of_a_folder_is_a_fair_sample(tmp_path):
    for name in ("apple", "banana", "cherry", "date"):
        make_folder(tmp_path / "fruit" / name, 40, captions="none")
    counts = Counter(e.label for e in ImageFolder(tmp_path / "fruit", 16, limit=60))
    assert len(counts) == 4 and min(counts.values()) >= 8


def test_metadata_speaks_for_its_folder_and_those_below(tmp_path):
    root = tmp_path / "zoo"
    make_folder(root / "train", 30)
    make_folder(root / "more", 2, captions="none")
    (root / "train" / "deep").mkdir()
    picture(99).save(root / "train" / "deep" / "unlisted.png")
    told = {e.key: e.captions for e in ImageFolder(root, 16, "all")}
    assert len(told) == 32 and told["train/0007.png"] == ("picture number 7",) and told["more/0001.png"] == ("a photo of a more",)


def test_what_a_system_leaves_in_a_folder_is_no_picture(tmp_path):
    root = make_folder(tmp_path / "art", 30, captions="txt")
    for shadow in (".ipynb_checkpoints/0001-checkpoint.png", "__MACOSX/._0001.png", "._0002.png"):
        (root / shadow).parent.mkdir(exist_ok=True)
        (root / shadow).write_bytes(b"no picture")
    data = ImageFolder(root, 16, "all")
    assert len(data) == 30 and not data.skipped


def test_rows_of_one_picture_are_its_captions_and_never_in_both_splits(tmp_path):
    root = make_folder(tmp_path / "art", 20, captions="none")
    rows = [f"{i:04d}.png,{words} {i}" for i in range(20) for words in ("picture number", "number", "no.")]
    (root / "metadata.csv").write_text("\n".join(["file_name,text", *rows]))
    train, held_out = (ImageFolder(root, 16, split) for split in ("train", "held_out"))
    assert len(train) + len(held_out) == 20 and not {e.key for e in train} & {e.key for e in held_out}
    assert all(len(e.captions) == 3 for e in train)


def test_a_plain_csv_of_excel_a_class_of_zero_and_a_linked_picture_are_read(tmp_path):
    root, elsewhere = tmp_path / "art", make_folder(tmp_path / "blobs", 20, captions="none")
    root.mkdir()
    for number in range(20):
        (root / f"é{number}.png").symlink_to(elsewhere / f"{number:04d}.png")
    (root / "metadata.csv").write_bytes("\r\n".join(["file_name,text,label", *(f"é{i}.png,a child’s café,{i % 2}" for i in range(20))]).encode("cp1252"))
    data = ImageFolder(root, 16, "all")
    assert len(data) == 20 and {e.captions for e in data} == {("a child’s café",)} and Counter(e.label for e in data) == {"0": 10, "1": 10}
    (root / "metadata.csv").unlink()
    (root / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": f"é{i}.png", "label": i % 2}) for i in range(20)))
    assert {e.captions for e in ImageFolder(root, 16, "all")} == {("a photo of a 0",), ("a photo of a 1",)}


def test_a_run_goes_on_where_its_pictures_lie_at_another_place(tmp_path):
    """Another machine mounts them elsewhere, under another name; other pictures are told by the fingerprint."""
    here, there = make_folder(tmp_path / "content" / "pictures", 30), make_folder(tmp_path / "kaggle" / "input" / "mine", 30)
    assert fingerprint(ImageFolder(here, 16)) == fingerprint(ImageFolder(there, 16)) != fingerprint(ImageFolder(make_folder(tmp_path / "other", 31), 16))
    config, train = preset("nano"), plan_training(10, 0.0, 4, 1e-3)
    with open_run(tmp_path / "run", config, train, f"folder:{here}*2+scenes") as run:
        run.log(1, loss=0.5)
    open_run(tmp_path / "run", config, train, f"folder:{there}*2+scenes").close()
    with pytest.raises(RunError, match="it differs in data"):
        open_run(tmp_path / "run", config, train, f"folder:{there}+scenes")


def test_a_fingerprint_sees_every_word_of_a_large_folder(tmp_path):
    root = make_folder(tmp_path / "art", 40)
    before = fingerprint(ImageFolder(root, 16, "all"), most=5)
    table = root / "metadata.csv"
    words = table.read_text()
    for number in range(40):
        table.write_text(words.replace(f"{number:04d}.png,picture", f"{number:04d}.png,photograph"))
        assert fingerprint(ImageFolder(root, 16, "all"), most=5) != before
    table.write_text(words)
    assert fingerprint(ImageFolder(root, 16, "all"), most=5) == before


def test_a_tiny_folder_still_has_both_splits(tmp_path):
    root = make_folder(tmp_path / "few", 4)
    assert len(ImageFolder(root, 16)) == 3 and len(ImageFolder(root, 16, "held_out")) == 1


def test_metadata_cannot_reach_out_of_the_folder(tmp_path):
    root = make_folder(tmp_path / "art", 150)
    picture(1).save(tmp_path / "secret.png")
    with open(root / "metadata.csv", "a") as file:
        file.write("../secret.png,stolen\n")
    data = ImageFolder(root, 16, "all")
    assert data.skipped == {"missing": 1} and not any("stolen" in e.captions for e in data)


@pytest.mark.parametrize(("files", "sentence"), [
    ({}, "holds no pictures"), ({"metadata.csv": "picture,words\n1.png,x\n"}, "no column file_name"),
    ({"metadata.jsonl": '{"file_name": "1.png"}\nbroken\n'}, "all 2 were skipped"), ({"metadata.jsonl": "broken\n[]\n"}, "no column file_name"),
])
def test_folders_that_cannot_be_read_say_why(tmp_path, files, sentence):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=sentence):
        ImageFolder(tmp_path, 16)


def named_pictures(root: Path, count: int) -> list[str]:
    root.mkdir(parents=True)
    for number in range(count):
        picture(number).save(root / f"{number}.png")
    return [f"{number}.png" for number in range(count)]


def test_a_table_as_people_write_it(tmp_path: Path) -> None:
    """Semicolons or tabs, space after the comma and in the header, capitals in its name."""
    for number, (file, separator) in enumerate((("metadata.csv", ";"), ("Metadata.CSV", ", "), ("metadata.csv", "\t"))):
        names = named_pictures(tmp_path / str(number), 12)
        lines = [separator.join(("file_name ", "text")), *(separator.join((name, f"thing {name[:-4]}")) for name in names)]
        (tmp_path / str(number) / file).write_text("\n".join(lines))
        data = ImageFolder(tmp_path / str(number), 16, "all")
        assert len(data) == 12 and {example.captions for example in data} == {(f"thing {name[:-4]}",) for name in names}, file


def test_a_caption_with_a_comma_and_without_quotes_is_not_cut(tmp_path: Path) -> None:
    names = named_pictures(tmp_path / "art", 3)
    (tmp_path / "art" / "metadata.csv").write_text("file_name,text\n" + "\n".join(f"{name},red apple, fluent 3d emoji" for name in names))
    with pytest.raises(DataError, match=r"line 2: there are more columns.*in quotes"):
        ImageFolder(tmp_path / "art", 16, "all")
    (tmp_path / "art" / "metadata.csv").write_text("file_name,text\n" + "\n".join(f"{name},red apple,," for name in names))  # a spreadsheet's empty columns
    assert {example.captions for example in ImageFolder(tmp_path / "art", 16, "all")} == {("red apple",)}


def test_pictures_that_a_table_leaves_out_are_counted_and_named(tmp_path: Path) -> None:
    names = named_pictures(tmp_path / "art", 60)
    table = tmp_path / "art" / "metadata.csv"
    table.write_text("file_name,text\n" + "".join(f"{name},thing\n" for name in names[:59]))
    assert ImageFolder(tmp_path / "art", 16, "all").skipped == {"no caption": 1}
    table.write_text("file_name,text\n" + "".join(f"{name},thing\n" for name in names[:10]))
    with pytest.raises(DataError, match=r"50 of 60 pictures had to be skipped \(50 no caption\).*\.png, .*and others"):
        ImageFolder(tmp_path / "art", 16, "all")


def test_what_a_folder_holds_and_nobody_reads_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Captions in a table of another name, and pictures in formats that a camera writes."""
    for n in range(4):
        picture(n).save(tmp_path / f"{n}.png")
    (tmp_path / "a.HEIC").write_bytes(b"1")
    (tmp_path / "captions.csv").write_text("file_name,text\n0.png,a red one\n")
    with pytest.raises(DataError, match=r"no caption.*captions\.csv is not read"):
        ImageFolder(tmp_path, 16)
    caplog.clear()
    for n in range(4):
        (tmp_path / f"{n}.txt").write_text(f"number {n}")
    for split in ("train", "held_out"):
        ImageFolder(tmp_path, 16, split)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "1 .heic files are not read; save them as JPEG or PNG." in message and "captions.csv is not read" in message and "metadata.csv" in message
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "b.avif").write_bytes(b"1")
    with pytest.raises(DataError, match=r"holds no pictures.*1 \.avif files are not read"):
        ImageFolder(tmp_path / "only", 16)
    caplog.clear()
    (tmp_path / "captions.csv").rename(tmp_path / "metadata.csv")
    (tmp_path / "a.HEIC").unlink()
    (tmp_path / "only" / "b.avif").unlink()
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + "".join(f"{n}.png,number {n}\n" for n in range(4)))
    ImageFolder(tmp_path, 16, "train")
    assert not caplog.records


def test_one_picture_under_two_names_is_one_picture(tmp_path: Path) -> None:
    names = named_pictures(tmp_path / "art", 40)
    (tmp_path / "art" / "metadata.csv").write_text("file_name,text\n" + "".join(f"{name},thing\n./{name},the same\n" for name in names))
    train, held_out = (ImageFolder(tmp_path / "art", 16, split) for split in ("train", "held_out"))
    assert len(train) + len(held_out) == 40 and not {e.key for e in train} & {e.key for e in held_out} and train[0].captions == ("thing", "the same")


def test_an_archive_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "art.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="is a file; unpack it"):
        ImageFolder(tmp_path / "art.zip", 16)
    with pytest.raises(DataError, match="does not exist"):
        ImageFolder("~nobody-of-this-name/art", 16)


@pytest.mark.parametrize("beside", ["{}.txt", "{}.png.txt", "{}.caption"])
def test_words_beside_a_picture_as_other_tools_name_them(tmp_path: Path, beside: str) -> None:
    root = tmp_path / "10_sks dog"
    names = named_pictures(root, 12)
    for name in names:
        (root / beside.format(name[:-4])).write_text(f"thing {name[:-4]}")
    assert {example.captions for example in ImageFolder(tmp_path, 16, "all")} == {(f"thing {name[:-4]}",) for name in names}


def test_captions_that_belong_to_no_picture_are_never_replaced_by_the_name_of_the_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = named_pictures(tmp_path / "art" / "images", 12)
    (tmp_path / "art" / "captions").mkdir()
    for name in names:
        (tmp_path / "art" / "captions" / f"{name[:-4]}.txt").write_text("a red apple")
    with pytest.raises(DataError, match=r"12 files such as captions/0\.txt are read by nobody: a caption lies beside its picture"):
        ImageFolder(tmp_path / "art", 16)
    for name in names[2:]:
        (tmp_path / "art" / "captions" / f"{name[:-4]}.txt").rename(tmp_path / "art" / "images" / f"{name[:-4]}.txt")
    assert len(ImageFolder(tmp_path / "art", 16, "all")) == 12 and "2 files such as captions/0.txt are read by nobody" in caplog.text
    (tmp_path / "art" / "images" / "3.json").write_text("{}")  # what img2dataset leaves beside each picture is no table
    caplog.clear()
    ImageFolder(tmp_path / "art", 16)
    assert ".json" not in caplog.text
    (tmp_path / "art" / "metadata.json").write_text("[]")
    ImageFolder(tmp_path / "art", 16)
    assert "metadata.json is not read" in caplog.text


def test_a_name_that_is_no_utf8_is_a_name(tmp_path: Path) -> None:
    """As an archive from another system leaves it; and a table may name what no disk can hold."""
    named_pictures(tmp_path / "art", 20)
    os.rename(tmp_path / "art" / "0.png", os.fsencode(tmp_path / "art") + b"/caf\xe9.png")
    data = ImageFolder(tmp_path, 16, "all")
    assert len(data) == 20 and len(fingerprint(data)) == 16
    (tmp_path / "art" / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": f"{n}.png", "text": "x"}) for n in ["\ud83d", "caf\udce9", *range(1, 20)]))
    assert ImageFolder(tmp_path, 16, "all").skipped == {"missing": 1}


@pytest.mark.parametrize("written", ["deep\\{}.png", "Deep/{}.PNG", "./deep/{}.png"])
def test_a_table_of_another_system_names_the_same_files(tmp_path: Path, written: str) -> None:
    named_pictures(tmp_path / "deep", 12)
    (tmp_path / "deep" / "0.png").rename(tmp_path / "deep" / "Kätzchen.png")
    names = [unicodedata.normalize("NFD", "Kätzchen"), *map(str, range(1, 12))]
    (tmp_path / "metadata.csv").write_text("File_Name,Text\n" + "\n".join(f"{written.format(name)},a thing" for name in names))
    data = ImageFolder(tmp_path, 16, "all")
    assert len(data) == 12 and not data.skipped and {example.captions for example in data} == {("a thing",)}
    assert {example.key for example in data} >= {"deep/Kätzchen.png", "deep/1.png"}


def test_files_that_differ_by_a_capital_alone_keep_their_own_captions(tmp_path: Path) -> None:
    for number, name in enumerate(("a.png", "A.png")):
        picture(number).save(tmp_path / name)
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this disk takes a capital for a small letter")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,small\nA.png,large\n")
    assert {example.key: example.captions for example in ImageFolder(tmp_path, 16, "all")} == {"a.png": ("small",), "A.png": ("large",)}


def test_one_wrong_byte_spoils_its_own_line_alone(tmp_path: Path) -> None:
    names = named_pictures(tmp_path / "art", 12)
    lines = [f"{name},ein schönes Café".encode() for name in names]
    lines[3] = f"{names[3]},ein schönes Café".encode("latin-1")
    (tmp_path / "art" / "metadata.csv").write_bytes(b"\xef\xbb\xbffile_name,text\n" + b"\n".join(lines))
    assert {example.captions for example in ImageFolder(tmp_path / "art", 16, "all")} == {("ein schönes Café",)}


def test_pictures_without_words_are_told_what_they_want(tmp_path: Path) -> None:
    named_pictures(tmp_path / "art", 12)
    with pytest.raises(DataError, match=r"every picture needs a caption: a row in metadata\.csv, a NAME\.txt beside it"):
        ImageFolder(tmp_path / "art", 16)


def test_folders_that_are_links_are_followed_once(tmp_path: Path) -> None:
    named_pictures(tmp_path / "drive" / "cats", 6)
    named_pictures(tmp_path / "art" / "dogs", 6)
    (tmp_path / "art" / "cats").symlink_to(tmp_path / "drive" / "cats")
    (tmp_path / "art" / "dogs" / "round").symlink_to(tmp_path / "art")
    data = ImageFolder(tmp_path / "art", 16, "all")
    assert Counter(example.label for example in data) == {"cats": 6, "dogs": 6}
    (tmp_path / "art" / "a link to the dogs").symlink_to(tmp_path / "art" / "dogs")
    assert {example.key for example in ImageFolder(tmp_path / "art", 16, "all")} == {example.key for example in data}
