"""Laws of the sources: whatever the file, the same safe pixels or one counted reason; splits part the data; mixes keep shares."""

import io
import json
import tarfile
import zlib
from collections import Counter

import numpy as np
import pytest
from picture_samples import RED, WHITE, encode, make_folder, number_of, picture
from PIL import Image

from iris.data import DataError, Example, ImageFolder, Mixture, Scenes, emoji_of, load_dataset_by_name, open_image
from iris.data.emoji import PACKS
from iris.data.images import ImageError
from iris.data.pictures import PixelStore, Record, clean_captions, collect, in_split
from iris.data.sources import HUB_ENTRIES, _split_mix

# ------------------------------------------------------------------------------------------------------------ one picture


@pytest.mark.parametrize(("mode", "colour", "kind", "expected"), [
    ("RGB", RED, "PNG", RED), ("L", 100, "PNG", (100,) * 3), ("1", 1, "PNG", WHITE), ("P", 0, "GIF", None), ("LA", (9, 0), "PNG", WHITE),
    ("RGBA", (0, 255, 0, 0), "PNG", WHITE), ("RGBA", (255, 0, 0, 255), "WEBP", RED), ("CMYK", (0, 0, 0, 255), "JPEG", (0, 0, 0)),
    ("I;16", 25700, "PNG", (100,) * 3), ("I;16", 65535, "TIFF", WHITE), ("F", 0.5, "TIFF", (128,) * 3),
    ("F", 100.0, "TIFF", (100,) * 3), ("I", 100, "TIFF", (100,) * 3), ("I", 25700, "TIFF", (100,) * 3),
])
def test_every_mode_becomes_the_same_rgb(mode, colour, kind, expected):
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = open_image(encode(Image.new(mode, (24, 24), colour), kind, **options), 16)
    assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8
    assert expected is None or np.abs(pixels.astype(int) - expected).max() <= 2


def test_a_palette_with_transparency_is_composited():
    image = Image.new("P", (16, 16), 0)
    image.putpalette([0, 200, 0, 255, 0, 0])
    image.paste(1, (0, 0, 8, 16))
    pixels = open_image(encode(image, "PNG", transparency=0), 16)
    assert tuple(pixels[8, 2]) == RED and tuple(pixels[8, 14]) == WHITE


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, (0, 0, 255))]
    pixels = open_image(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), 16)
    assert tuple(pixels[8, 8]) == RED


def test_exif_rotation_is_applied_and_the_middle_is_kept():
    image = Image.new("RGB", (32, 16), WHITE)
    image.paste(RED, (0, 0, 16, 16))  # left half red; orientation 6 turns it to the top
    exif = image.getexif()
    exif[0x0112] = 6
    pixels = open_image(encode(image, "JPEG", exif=exif, quality=100, subsampling=0), 16)
    assert pixels[2, 8, 1] < 60 and pixels[13, 8, 1] > 200
    wide = Image.new("RGB", (64, 16), WHITE)
    wide.paste(RED, (24, 0, 40, 16))
    assert (open_image(encode(wide), 16) == RED).all()


def test_invisible_colours_do_not_bleed_into_edges():
    image = Image.new("RGBA", (64, 64), (0, 255, 0, 0))
    image.paste((255, 0, 0, 255), (16, 16, 48, 48))
    assert open_image(encode(image), 16)[..., 0].min() >= 250


def bomb() -> bytes:
    """A small PNG that says it is 20,000 x 20,000."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    head = (20000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("data", "reason"), [
    (b"", "corrupt"), (b"not a picture", "corrupt"), (encode(picture(3, 99))[:150], "corrupt"), (encode(picture(3, 99), "JPEG")[:400], "corrupt"),
    (bomb(), "too large"), (encode(picture(1, 1)), "too small"), (b"%PDF-1.4", "corrupt"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "corrupt"),
])
def test_what_cannot_be_used_is_one_sentence(data, reason, tmp_path):
    with pytest.raises(ImageError) as error:
        open_image(data, 16)
    assert error.value.reason == reason and str(error.value).endswith(".")
    with pytest.raises(DataError, match=r"'gone\.png' does not exist"):
        open_image(tmp_path / "gone.png", 16)


def test_captions_are_cleaned():
    assert clean_captions("  a\tred\x00 circle \n") == ("a red circle",)
    assert clean_captions(["b", "", None, "b", b"c", 3]) == ("b",)
    assert clean_captions("café".encode()) == clean_captions("café".encode("cp1252")) == clean_captions("café".encode("utf-16")) == ("café",)
    assert clean_captions(None) == () and clean_captions(" \n") == ()
    assert len(clean_captions("x" * 5000)[0]) == 1000


# ---------------------------------------------------------------------------------------------------------------- collecting


def test_bad_pictures_are_counted_and_too_many_refused():
    good = [Record(f"good {i}", encode(picture(i)), ("fine",)) for i in range(198)]
    bad = [Record("torn", b"torn", ("x",)), Record("mute", encode(picture(1))), Record("gone", None, ("x",))]
    data = collect("mine", [bad[0], *good, bad[1]], 16, "all")
    assert len(data) == 198 and data.skipped == {"corrupt": 1, "no caption": 1}
    with pytest.raises(DataError, match=r"3 of 201 pictures had to be skipped.*1 %"):
        collect("mine", good + bad, 16, "all")
    assert len(collect("mine", good[:5] + bad[:1], 16, "all")) == 5, "a single bad picture never stops a small folder"
    with pytest.raises(DataError, match="no picture"):
        collect("mine", [], 16)


def test_a_class_is_captioned_the_same_in_every_stage():
    from iris.data.base import class_caption
    from iris.training.latents import captions_of_class

    assert [class_caption(label) for label in ("apple", "Owl", "cat", "")] == ["a photo of an apple", "a photo of an Owl", "a photo of a cat", "a photo"]
    assert captions_of_class(Example(np.zeros((8, 8, 3), np.uint8), ("x",), "apple", "k")) == ("a photo of an apple",)


def test_a_label_alone_makes_a_caption():
    data = collect("mine", [Record("a", encode(picture(1)), (), "apple"), Record("b", encode(picture(1)), ("said",), "pear")], 16, "all")
    assert data[0].captions == ("a photo of an apple",) and data[0].label == "apple" and data[1].captions == ("said",)


def test_pictures_beyond_the_memory_bound_go_to_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("IRIS_CACHE", str(tmp_path / "cache"))
    records = [Record(str(i), encode(picture(i)), ("x",)) for i in range(40)]
    small, large = collect("m", records, 16, "all", memory_bytes=10 * 16 * 16 * 3), collect("m", records, 16, "all")
    assert isinstance(small._images, np.memmap) and not isinstance(large._images, np.memmap)
    assert all(np.array_equal(small[i].image, large[i].image) and number_of(small[i].image) == i for i in range(40))
    assert PixelStore(16, 0).finish().shape == (0, 16, 16, 3)


def test_the_emoji_of_a_mix_are_one_source():
    assert emoji_of("emoji:fluent-3d*2+emoji:fluent-3d,noto") == "emoji:fluent-3d,noto"
    assert emoji_of("scenes*2+emoji") == "emoji:openmoji" and emoji_of("scenes:one") is None and emoji_of("folder:/tmp/emoji+x") is None
    assert emoji_of("emoji:all") == "emoji:" + ",".join(PACKS)


PINNED = ["00014.png", "00021.png", "00027.png"]


def test_held_out_is_one_in_twenty_for_good():
    keys = [f"{i:05d}.png" for i in range(5000)]
    held_out = [key for key in keys if in_split(key, "held_out")]
    assert 0.04 < len(held_out) / 5000 < 0.06 and held_out[:3] == PINNED
    assert all(in_split(key, "train") != in_split(key, "held_out") and in_split(key, "all") for key in keys)


def test_the_first_picture_that_can_be_used_is_held_out() -> None:
    records = [Record("bad", b"torn", ("x",)), *(Record(f"p{number}", encode(picture(number)), ("x",)) for number in range(12) if not in_split(f"p{number}", "held_out"))]
    train, held_out = (collect("mine", records, 16, split) for split in ("train", "held_out"))
    assert [example.key for example in held_out] == ["p0"] and len(train) == len(records) - 2 and train.skipped == {"corrupt": 1}


def test_a_source_without_any_picture_is_given_up_soon() -> None:
    read = []
    with pytest.raises(DataError, match="all 500 were skipped"):
        collect("urls", (read.append(n) or Record(str(n), None, ("x",)) for n in range(20_000)), 16, "all", limit=10)
    assert len(read) < 600


# ------------------------------------------------------------------------------------------------------- webdataset and hub


def write_shard(path, members):
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_webdataset_shards(tmp_path):
    for shard in range(3):
        members = []
        for i in range(shard * 10, shard * 10 + 10):
            told = {"json": json.dumps({"caption": f"picture number {i}", "label": "thing"}).encode()} if i % 2 else {"txt": f"picture number {i}".encode()}
            members += [(f"part/{i:03d}.{suffix}", data) for suffix, data in {"png": encode(picture(i)), **told}.items()]
        write_shard(tmp_path / f"art-{shard:02d}.tar", [*members, ("../../evil.txt", b"x")] if shard == 2 else members)
    data = load_dataset_by_name(f"webdataset:{tmp_path}/art-*.tar", 16, "all")
    assert len(data) == 30 and data.skipped == {"missing": 1} and not (tmp_path.parent / "evil.txt").exists()
    assert all(e.captions == (f"picture number {number_of(e.image)}",) for e in data) and data[1].label == "thing"
    assert len(load_dataset_by_name(f"webdataset:{tmp_path}/art-{{00..01}}.tar", 16, "all")) == 20
    for pattern, sentence in ((f"{tmp_path}/none-*.tar", "no file matches"), (f"{tmp_path}/art-{{00..04}}.tar", "2 of 5 shards are missing")):
        with pytest.raises(DataError, match=sentence):
            load_dataset_by_name(f"webdataset:{pattern}", 16)
    whole = (tmp_path / "art-00.tar").read_bytes()
    (tmp_path / "torn.tar").write_bytes(whole[:5000])
    with pytest.raises(DataError, match=r"torn\.tar is no whole tar"):
        load_dataset_by_name(f"webdataset:{tmp_path}/torn.tar", 16, "all")


def test_hub_data_sets_saved_on_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"picture": datasets.Image(), "title": datasets.Value("string"), "label": datasets.ClassLabel(names=["tench, Tinca", "ant"])})
    rows = {"picture": [picture(i) for i in range(30)], "title": [f"picture number {i}" for i in range(30)], "label": [i % 2 for i in range(30)]}
    rows["picture"][4] = {"bytes": b"torn", "path": None}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    data = load_dataset_by_name(f"hub:{tmp_path}/saved?text=title", 16, "all")
    assert len(data) == 29 and data.skipped == {"corrupt": 1}
    assert all(e.captions == (f"picture number {number_of(e.image)}",) for e in data)
    assert data[0].label == "tench" and data[1].label == "ant"
    by_class = load_dataset_by_name(f"hub:{tmp_path}/saved", 16, "all", limit=3)
    assert len(by_class) == 3 and by_class[1].captions == ("a photo of an ant",)
    splits = [load_dataset_by_name(f"hub:{tmp_path}/saved?text=title", 16, split) for split in ("train", "held_out")]
    assert sorted(e.key for part in splits for e in part) == sorted(e.key for e in data)
    with pytest.raises(DataError, match="no column 'words'; it has picture, title, label"):
        load_dataset_by_name(f"hub:{tmp_path}/saved?text=words", 16)
    with pytest.raises(DataError, match="unknown options colour"):
        load_dataset_by_name("hub:some/set?colour=x", 16)


def test_the_rows_of_one_picture_are_in_one_split_and_an_unknown_class_is_none(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string"), "label": datasets.ClassLabel(names=["ant", "bee"])})
    rows = [(picture(i), f"{word} {i}", -1) for i in range(100) for word in ("a", "the", "one")]
    datasets.Dataset.from_dict(dict(zip(features, map(list, zip(*rows, strict=True)), strict=True)), features=features).save_to_disk(tmp_path / "saved")
    train, held_out = (load_dataset_by_name(f"hub:{tmp_path}/saved", 16, split) for split in ("train", "held_out"))
    seen = [{number_of(e.image) for e in part} for part in (train, held_out)]
    assert seen[1] and not seen[0] & seen[1] and len(train) + len(held_out) == 300 and {e.label for e in train} == {""}


def test_a_hub_folder_of_pictures_streams(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    root = make_folder(tmp_path / "art", 12)
    data = load_dataset_by_name(f"hub:{root}", 16, "all", limit=8)
    assert len(data) == 8 and all(e.captions == (f"picture number {number_of(e.image)}",) for e in data)


def test_a_stream_that_breaks_off_is_one_sentence(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    from iris.data import sources

    class Rows(list):
        features = {"image": None, "text": None}  # noqa: RUF012

        def __iter__(self):
            yield {"image": None, "text": "a"}
            raise ConnectionError("the connection was lost\nsomewhere deep")

    monkeypatch.setattr(sources, "_open_hub", lambda entry, name: Rows())
    with pytest.raises(DataError, match=r"broke off while it was read: the connection was lost$"):
        load_dataset_by_name("hub:user/art", 16, "all", limit=8)


def test_a_hub_row_cannot_point_at_local_files(tmp_path):
    from iris.data.sources import _picture_of

    picture(1).save(tmp_path / "mine.png")
    for path in (str(tmp_path / "mine.png"), "http://127.0.0.1/x.png", "file:///etc/passwd", ""):
        assert _picture_of({"bytes": None, "path": path}, local=False) is None
    assert _picture_of("http://127.0.0.1/x.png", local=True) is None


# --------------------------------------------------------------------------------------------------------------- names and mixes


def test_scenes_by_name():
    assert len(load_dataset_by_name("scenes", 32, limit=5)) == 5
    one = load_dataset_by_name("scenes:1", 32, "held_out", limit=20)
    assert isinstance(one, Scenes) and all(len(one.spec(i).facts.objects) == 1 for i in range(20))
    related = load_dataset_by_name("scenes:relation", 32, limit=20)
    assert all(related.spec(i).facts.relation for i in range(20))


@pytest.mark.parametrize("source", ["scenes", "scenes:2", "scenes:one", "scenes:relation", "scenes:one,trio", "scenes:relation*2+scenes"])
def test_scenes_named_as_they_name_themselves_are_the_same_scenes(source: str) -> None:
    data = load_dataset_by_name(source, 16, "train", 12)
    again = load_dataset_by_name(data.name, 16, "train", 12)
    assert again.name == data.name and [again[i].captions for i in range(12)] == [data[i].captions for i in range(12)]


def test_mixes_keep_their_shares_and_repeat_the_small(tmp_path):
    root = make_folder(tmp_path / "a+b", 10)
    assert _split_mix(f"scenes*2+folder:{root}") == [("scenes", 2.0), (f"folder:{root}", 1.0)]
    assert load_dataset_by_name(f"scenes*2+folder:{root}", 32, "train", 9).name == f"scenes*2+folder:{root.name}"  # weights are part of the record
    small, large = ImageFolder(root, 16, "all"), Scenes(16, 40)
    mix = Mixture([small, large], [0.5, 0.5])
    keys = Counter(e.key for e in mix)
    assert len(mix) == 80 and set(keys.values()) == {1, 4} and len(keys) == 50
    assert sum(mix[i].key.endswith(".png") for i in range(10)) == 5, "a prefix is mixed too"
    limited = load_dataset_by_name(f"scenes*3+folder:{root}", 16, limit=40)
    assert len(limited) == 40 and sum(e.key.endswith(".png") for e in limited) == 10
    assert mix[-1].key == mix[79].key and mix.skipped == {}
    with pytest.raises(IndexError):
        mix[80]


def test_a_folder_without_its_word_is_told_what_to_write(tmp_path):
    with pytest.raises(DataError, match=rf"write folder:{tmp_path}\.$"):
        load_dataset_by_name(str(tmp_path), 16)


@pytest.mark.parametrize("source", ["", "nothing", "hub:", "folder:/no/such/folder", "scenes:9", "scenes:blob", "emoji:apple", "scenes*0", None])
def test_unknown_sources_are_one_sentence(source):
    with pytest.raises(DataError) as error:
        load_dataset_by_name(source, 32)
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_the_specifications_data_sets_have_entries():
    assert {"imagenet", "cc3m", "cc12m", "journeydb", "pokemon"} <= set(HUB_ENTRIES)
