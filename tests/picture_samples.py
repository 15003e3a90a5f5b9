"""Plain pictures that say their number, files and folders of them."""

import csv
import io
import json

import numpy as np
from PIL import Image

WHITE, RED = (255, 255, 255), (255, 0, 0)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def picture(number: int, side: int = 20) -> Image.Image:
    """A plain picture whose colour is its number."""
    return Image.new("RGB", (side, side), (number % 256, number // 256, 7))


def number_of(image: np.ndarray) -> int:
    return int(image[8, 8, 0]) + 256 * int(image[8, 8, 1])


def make_folder(root, count: int, captions: str = "csv"):
    root.mkdir(parents=True, exist_ok=True)
    rows = [{"file_name": f"{i:04d}.png", "text": f"picture number {i}"} for i in range(count)]
    for i, row in enumerate(rows):
        picture(i).save(root / row["file_name"])
        if captions == "txt":
            (root / f"{i:04d}.txt").write_text(f"picture number {i}\nnumber {i}\n")
    if captions == "csv":
        with open(root / "metadata.csv", "w", newline="") as file:
            csv.DictWriter(file, ["file_name", "text"]).writeheader()
            csv.DictWriter(file, ["file_name", "text"]).writerows(rows)
    if captions == "jsonl":
        (root / "metadata.jsonl").write_text("\n".join(json.dumps({"file_name": r["file_name"], "caption": r["text"]}) for r in rows))
    return root
