"""What lies near a drawn picture: is its own concept the nearest real art, and is it a copy of a training picture?

Retrieval compares features, so that what counts is what a picture shows. Copies are looked for in pixels, where a copy is one.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from iris.data import Example, ImageDataset, emoji_of, load_dataset_by_name, streams
from iris.data.base import placeless
from iris.evaluation.drawing import Features, QualityError, draw_all, features_by_name, telling_caption, to_tensor
from iris.evaluation.metrics import bootstrap, retrieval_ranks, share
from iris.pipeline import IRISPipeline

COPY_RATIO = 1 / 3  # Yoon et al. 2023
COPY_SIDE = 32  # pixels: pictures are compared at this side, so that a slightly moved edge does not hide a copy


# ---------------------------------------------------------------------------------------------------- retrieval


@dataclass(frozen=True)
class Retrieved:
    """A drawn picture and the rank (from 1) of its own concept among the `gallery` real pictures of its style.

    `ceiling` is the rank that a real picture of the concept in another style reaches, None where there is none.
    """

    prompt: str
    image: Image.Image
    rank: int
    ceiling: int | None
    gallery: int


class Gallery:
    """Real art by style and concept (the first picture of a concept stands for it), with the features of each style, made when first needed.

    Items are named STYLE/CONCEPT by their key; without "/" all have one style.
    """

    def __init__(self, art: ImageDataset, features: Features | None = None, batch_size: int = 16) -> None:
        self.art, self.features, self.batch_size = art, features or features_by_name(), batch_size
        self.styles: dict[str, dict[str, int]] = defaultdict(dict)  # style -> concept -> index
        for index in range(len(art)):
            key = art[index].key
            self.styles[_style(key)].setdefault(_concept(key), index)
        self._known: dict[str, Tensor] = {}

    def holds(self, key: str) -> bool:
        """Whether there is a picture of this concept in this style."""
        return _concept(key) in self.styles.get(_style(key), {})

    def of(self, style: str) -> Tensor:
        """Features of the pictures of `style`, in the order of `styles`, [N, D]."""
        if style not in self._known:
            indices = list(self.styles[style].values())
            starts = tqdm(range(0, len(indices), self.batch_size), desc=f"gallery {style}", unit="batch", leave=False)
            self._known[style] = torch.cat([self.features(to_tensor([self.art[index].image for index in indices[start: start + self.batch_size]])) for start in starts])
        return self._known[style]

    def rank(self, picture: Tensor, key: str) -> int:
        """Rank (from 1) of the concept of `key` among all art of its style, by likeness to `picture` [D]."""
        real = self.of(_style(key))
        # All art has much in common (a thing on white); without the common part similarity speaks of what differs.
        centre = real.mean(0)
        return int(retrieval_ranks((picture - centre)[None], real - centre, [list(self.styles[_style(key)]).index(_concept(key))])[0])

    def in_another_style(self, key: str) -> Tensor | None:
        """Features [D] of the concept of `key` in the first other style that has it; None where there is none."""
        style = next((style for style, places in self.styles.items() if style != _style(key) and _concept(key) in places), None)
        return None if style is None else self.of(style)[list(self.styles[style]).index(_concept(key))]


def retrieval(pipe: IRISPipeline, queries: ImageDataset, gallery: Gallery, limit: int = 64, seed: int = 0, batch_size: int = 16,
              **arguments: Any) -> dict[str, Any]:
    """Is the drawn picture closest to the right concept? Shares of `retrieve`'s ranks.

    {"pictures", "gallery" (median size), "top_1", "top_5", "ceiling_top_1", "ceiling_top_5"}; chance is about 5 / gallery for the top 5.
    The ceiling is left out where no concept has another style.
    """
    found = retrieve(pipe, queries, gallery, limit, seed, batch_size, **arguments)
    result: dict[str, Any] = {"pictures": len(found), "gallery": int(np.median([item.gallery for item in found]))}
    ranks = {"": [item.rank for item in found], "ceiling_": [item.ceiling for item in found if item.ceiling is not None]}
    for name, places in ranks.items():
        for top in (1, 5) if places else ():
            result[f"{name}top_{top}"] = share(sum(place <= top for place in places), len(places))
    return result


def art_retrieval(pipe: IRISPipeline, data: str, limit: int = 64, features: Features | None = None, **arguments: Any) -> dict[str, dict[str, Any]]:
    """`retrieval` by split, of training captions ("train") and of concepts that training showed in other styles only ("held_out_pairs");

    with one style there are no others, and "held_out" are concepts that it never showed. {} where the source `data` has no emoji.
    """
    art = emoji_of(data)
    if not limit or art is None:
        return {}
    gallery = Gallery(load_dataset_by_name(art, pipe.image_size, "all"), features)
    splits = ("train", "held_out_pairs" if len(gallery.styles) > 1 else "held_out")
    return {split: retrieval(pipe, load_dataset_by_name(art, pipe.image_size, split), gallery, limit, **arguments) for split in splits}


def retrieve(pipe: IRISPipeline, queries: ImageDataset, gallery: Gallery, limit: int = 64, seed: int = 0, batch_size: int = 16,
             **arguments: Any) -> list[Retrieved]:
    """Rank of each drawn picture's own concept among all real art of the asked style.

    For each of the first `limit` queries a picture is drawn from a caption that names the style, and the gallery's pictures of that
    style are ordered by cosine similarity of centred features.
    """
    items = [item for item in (queries[index] for index in range(len(queries))) if gallery.holds(item.key)][:limit]
    if not items:
        raise QualityError(f"no picture of {queries.name!r} has its concept and style in the gallery {gallery.art.name!r}.")
    prompts = [telling_caption(item) for item in items]
    images = draw_all(pipe, prompts, range(seed, seed + len(items)), batch_size, "retrieval", **arguments)
    found = []
    for item, prompt, image, drawn in zip(items, prompts, images, gallery.features(to_tensor(images)), strict=True):
        other = gallery.in_another_style(item.key)
        found.append(Retrieved(prompt, image, gallery.rank(drawn, item.key), None if other is None else gallery.rank(other, item.key),
                               len(gallery.styles[_style(item.key)])))
    return found


def _concept(key: str) -> str:
    return key.rpartition("/")[2]


def _style(key: str) -> str:
    return key.rpartition("/")[0]


# ---------------------------------------------------------------------------------------------------- copies


@dataclass(frozen=True)
class Nearest:
    """A drawn picture, the training picture that lies nearest to it, and `ratio`: its distance over that of the second nearest.

    Near 0 the drawn picture belongs to that one training picture; at 1 it lies as near to another.
    """

    prompt: str
    image: Image.Image
    neighbour: Example
    ratio: float


def nearest_training(pipe: IRISPipeline, source: str, limit: int = 64, seed: int = 0, batch_size: int = 16,
                     **arguments: Any) -> tuple[list[Nearest], dict[str, Any]]:
    """Does it copy? `limit` pictures drawn from training captions, where copying is easiest, each beside its nearest training picture.

    Also the shares {"pictures", "training_pictures", "copied", "ratio", "unseen_copied", "unseen_ratio"}: a picture counts as copied
    where its nearest training picture lies at less than a third of the distance of the second nearest (Yoon et al., Diffusion
    probabilistic models generalize when they fail to memorize, 2023). The same of real pictures that training never saw stands beside
    it: what is no copy. Where training holds near twins, a copy of them is not found. The nearest ones come first. Training pictures
    are those of `source`, as many as the model's last training had, where it had them of it or they come over a network.
    """
    told = pipe.metadata.get("training", {})
    had, examples = placeless(told.get("data", "")), told.get("examples")
    known = streams(source) or placeless(source) == had
    training = load_dataset_by_name(source, pipe.image_size, "train", examples if known else None)
    if not known and examples and examples < len(training) and placeless(training.name) == had:  # the same, under its full name
        training = load_dataset_by_name(source, pipe.image_size, "train", examples)
    unseen = load_dataset_by_name(source, pipe.image_size, "held_out", limit)
    asked = [training[index] for index in range(min(limit, len(training)))]
    prompts = [telling_caption(item) for item in asked]
    images = draw_all(pipe, prompts, range(seed, seed + len(asked)), batch_size, "copies", **arguments)
    drawn, real = _small(to_tensor(images)), _small(to_tensor([unseen[index].image for index in range(min(limit, len(unseen)))]))
    nearest, ratios, count = _two_nearest(torch.cat([drawn, real]), training)
    found = [Nearest(prompt, image, training[index], ratio) for prompt, image, index, ratio in zip(prompts, images, nearest, ratios, strict=False)]
    shares: dict[str, Any] = {"pictures": len(asked), "training_pictures": count}
    for name, values in (("", ratios[: len(asked)]), ("unseen_", ratios[len(asked):])):
        shares |= {f"{name}copied": share(sum(ratio < COPY_RATIO for ratio in values), len(values)), f"{name}ratio": bootstrap(values, np.median)}
    return sorted(found, key=lambda item: item.ratio), shares


def _small(images: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, D], averaged down to COPY_SIDE."""
    return F.adaptive_avg_pool2d(images, min(COPY_SIDE, images.shape[-1])).flatten(1)


def _two_nearest(queries: Tensor, training: ImageDataset) -> tuple[list[int], list[float], int]:
    """Index of the nearest training picture of each query [N, D], its distance over the second nearest, and how many different pictures there are."""
    distance, index = torch.full((len(queries), 2), torch.inf), torch.zeros(len(queries), 2, dtype=torch.long)
    count = 0
    for places, pictures in _different_pictures(training):
        count += len(places)
        near = torch.cdist(queries, _small(to_tensor(pictures)), compute_mode="donot_use_mm_for_euclid_dist")
        distance, order = torch.cat([distance, near], dim=1).topk(2, largest=False)
        index = torch.cat([index, torch.tensor(places).expand(len(queries), -1)], dim=1).gather(1, order)
    if count < 2:
        raise QualityError(f"{count} training pictures are too few to tell a copy from a likeness; use 2 or more.")
    ratio = torch.where(distance[:, 1] > 0, distance[:, 0] / distance[:, 1], 1.0)
    return index[:, 0].tolist(), ratio.tolist(), count


def _different_pictures(dataset: ImageDataset, size: int = 512) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Places and pictures of a data set, in pieces; one that comes again, as in a mix, comes once: it is not its own second nearest."""
    seen: set[bytes] = set()
    for start in tqdm(range(0, len(dataset), size), desc="training pictures", leave=False):
        places, pictures = [], []
        for place in range(start, min(start + size, len(dataset))):
            image = dataset[place].image
            digest = hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).digest()
            if digest not in seen:
                seen.add(digest)
                places.append(place)
                pictures.append(image)
        if places:
            yield places, pictures
