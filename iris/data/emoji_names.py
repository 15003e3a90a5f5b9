"""What is known about an emoji, whatever its art: name, group, subgroup, keywords; and the captions made of them.

The table emoji_names.tsv is Unicode's own data (CLDR short names and keywords, emoji-test groups; Unicode License v3) as the
npm package emojibase-data (MIT) ships it. It is kept here so that all packs share one set of names and splits stay frozen.
`python -m iris.data.emoji_names` writes it anew.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from iris.data.base import cache_dir
from iris.data.npm import NpmPackage, fetch_npm, read_tarball

SOURCE = NpmPackage("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a")
_TABLE = Path(__file__).with_name("emoji_names.tsv")
_SKIN_TONES = {f"{code:X}" for code in range(0x1F3FB, 0x1F400)}
FLAG_SUBGROUPS = ("country-flag", "subdivision-flag")


@dataclass(frozen=True)
class EmojiName:
    """One concept. code: code points in hexadecimal joined by "-", without the variation selector FE0F."""

    code: str
    name: str
    group: str
    subgroup: str
    keywords: tuple[str, ...]

    @property
    def label(self) -> str:
        """The subgroup in plain words: "food-fruit" -> "fruit", "face-smiling" -> "smiling face"."""
        head, _, tail = self.subgroup.partition("-")
        if self.subgroup in _LABELS:
            return _LABELS[self.subgroup]
        if head in ("face", "transport"):
            return f"{tail.replace('-', ' ')} {head}"
        words = tail if head in ("animal", "food", "place", "plant") and tail else self.subgroup
        return words.replace("-", " ")

    @property
    def family(self) -> str:
        """The code that all genders and directions of one motif share; a split that cut through them would leak."""
        parts = [part for part in self.code.split("-") if part not in ("200D", "2640", "2642", "27A1")]
        return "-".join("1F9D1" if part in ("1F468", "1F469") else part for part in parts)


_LABELS = {
    "animal-marine": "marine animal", "cat-face": "cat face", "monkey-face": "monkey face", "face-hand": "face with hand",
    "face-hat": "face with hat", "face-glasses": "face with glasses", "face-costume": "costume face", "food-prepared": "prepared food",
    "food-asian": "asian food", "food-sweet": "sweet food", "place-other": "place", "plant-other": "plant", "place-map": "map",
    "place-religious": "religious building", "place-geographic": "landscape", "transport-sign": "transport sign", "other-object": "object",
    "other-symbol": "symbol", "hand-fingers-open": "open hand", "hand-fingers-partial": "hand with some fingers",
    "hand-fingers-closed": "closed hand", "hand-single-finger": "pointing hand", "hand-prop": "hand with a thing", "av-symbol": "media button",
    "alphanum": "letter sign", "face-neutral-skeptical": "neutral face", "sky-weather": "sky and weather", "light-video": "light and video",
    "book-paper": "book and paper", "arts-crafts": "arts and crafts",
}


@cache
def emoji_names() -> dict[str, EmojiName]:
    """Code -> what is known, in Unicode's order, without skin tones and components; some 1,900 concepts."""
    rows = (line.split("\t") for line in _TABLE.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    return {code: EmojiName(code, name, group, subgroup, tuple(filter(None, words.split("|")))) for code, name, group, subgroup, words in rows}


def code_of(text: str) -> str:
    """A file's code point name in our form: upper case, joined by "-", no FE0F, no leading zeros; "" when it has a skin tone."""
    parts = [part.upper().lstrip("0") for part in re.split(r"[-_ ]", text)]
    return "" if _SKIN_TONES.intersection(parts) and len(parts) > 1 else "-".join(part for part in parts if part and part != "FE0F")


def slug(name: str) -> str:
    """"Women’s room" -> "womens-room": the file name of a concept in packs that name files in words."""
    name = name.replace("#", "hashtag").replace("*", "asterisk")
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower().replace("'", "")
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def spoken_name(entry: EmojiName) -> str:
    """The name as one would say it: lower case, no quotes, and "man: red hair" as "man with red hair"."""
    name = re.sub(r"[“”\"]", "", entry.name).lower().replace("’", "'").replace("⊛ ", "")
    head, colon, tail = name.partition(": ")
    if not colon:
        return name
    joint = " with " if head in ("man", "woman", "person") else " of " if head in ("flag", "family", "kiss", "couple with heart") else " "
    return head + joint + tail


_THINGS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")


def _with_article(entry: EmojiName, name: str) -> str:
    """"a red apple"; without article for plurals ("grapes") and for groups whose names are no plain nouns (faces, symbols)."""
    last = name.split(" ")[-1]
    if entry.group not in _THINGS or (last.endswith("s") and not last.endswith(("ss", "us", "is"))):
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def emoji_captions(entry: EmojiName, style: str) -> tuple[str, ...]:
    """Phrasings of one concept in one style, the plain name first: "red apple", "red apple in twemoji style", ...; most name the style."""
    name = spoken_name(entry)
    noun = _with_article(entry, name)
    words = [word.lower() for word in entry.keywords if word.lower() not in name and not word.isupper()][:4]
    captions = [name, noun, f"{noun}, {style} emoji", f"{name} in {style} style", f"{style} {name}", f"emoji of {noun}"]
    captions += [f"{name}, {', '.join(words)}, {style} emoji"] if words else []
    return tuple(dict.fromkeys(captions))


def write_table(path: Path = _TABLE) -> int:
    """Fetch the source package and write the table; returns the number of concepts."""
    tarball = fetch_npm(SOURCE, cache_dir())
    data = json.loads(dict(read_tarball(tarball, "package/en", "data.json"))[""])
    groups = json.loads(dict(read_tarball(tarball, "package/meta", "groups.json"))[""])
    rows = []
    for entry in sorted((item for item in data if "group" in item), key=lambda item: item["order"]):
        group, subgroup = groups["groups"][str(entry["group"])], groups["subgroups"][str(entry["subgroup"])]
        if group != "component":
            rows.append("\t".join([code_of(entry["hexcode"]), entry["label"], group, subgroup, "|".join(entry.get("tags", ()))]))
    head = f"# {SOURCE.name}@{SOURCE.version} (MIT); names, keywords and groups (c) Unicode, Inc., Unicode License v3. Written by iris.data.emoji_names."
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return len(rows)


if __name__ == "__main__":
    print(f"{write_table()} concepts written to {_TABLE.name}")
