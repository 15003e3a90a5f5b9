"""Laws of iris.evaluation.neighbours: the right concept is found, a copy is found, and what is none is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import Art, Oracle, pixel_features
from picture_samples import make_folder

from iris.data import Scenes, load_dataset_by_name
from iris.evaluation import neighbours
from iris.evaluation.drawing import QualityError
from iris.evaluation.neighbours import Gallery, nearest_training, retrieval
from iris.evaluation.quality import to_plain

# ---------------------------------------------------------------------------------------------------- retrieval


def test_retrieval_finds_the_concept_in_the_asked_style():
    art = Art()
    truth = {item.captions[1]: item.image for item in art.items}   # the caption that names the style
    found = retrieval(Oracle(truth), art, Gallery(art, pixel_features), 16)
    assert (found["pictures"], found["gallery"]) == (16, 8)
    assert found["top_1"].value == found["top_5"].value == 1.0
    assert found["ceiling_top_1"].value > 0.8   # the other style of each concept is near
    shuffled = dict(zip(truth, [*list(truth.values())[1:], art.items[0].image], strict=True))
    wrong = retrieval(Oracle(shuffled), art, Gallery(art, pixel_features), 16)
    assert wrong["top_1"].value < 0.2


def test_retrieval_without_another_style_has_no_ceiling_and_needs_its_concepts():
    art = Art(("round",))
    truth = {item.captions[1]: item.image for item in art.items}
    found = to_plain(retrieval(Oracle(truth), art, Gallery(art, pixel_features), 4))
    assert found["pictures"] == 4 and "ceiling_top_5" not in found
    with pytest.raises(QualityError, match="gallery"):
        retrieval(Oracle(truth), Art(("square",)), Gallery(art, pixel_features), 4)


# ---------------------------------------------------------------------------------------------------- copies


class Copyist(Oracle):
    """Draws, for the caption of training scene i, the training scene i + `away` with noise on it, or an unseen scene."""

    metadata = {"training": {"data": "scenes", "examples": 40}}  # noqa: RUF012

    def __init__(self, away: int | None, noise: float = 0.0) -> None:
        training, unseen, rng = Scenes(64, 40), Scenes(64, 12, split="held_out"), np.random.default_rng(0)
        shown = [unseen[i].image if away is None else training[i + away].image for i in range(12)]
        super().__init__({training[i].captions[0]: (image + noise * rng.standard_normal(image.shape)).clip(0, 255).astype(np.uint8)
                          for i, image in enumerate(shown)})


def test_a_copyist_is_found_out_and_named_with_what_it_copied():
    for away in (0, 3):
        found, shares = nearest_training(Copyist(away), "scenes", 12, seed=3)
        assert shares["pictures"] == 12 and shares["training_pictures"] == 40
        assert shares["copied"].value == 1 and shares["ratio"].value == 0
        training = Scenes(64, 40)
        assert {item.neighbour.key for item in found} == {training[i + away].key for i in range(12)}
    found, shares = nearest_training(Copyist(0, noise=12.0), "scenes", 12)
    assert shares["copied"].value == 1 and 0 < shares["ratio"].value < 1 / 3
    assert [item.ratio for item in found] == sorted(item.ratio for item in found)
    assert all(item.neighbour.captions[0] == item.prompt for item in found)


def test_a_copy_in_one_style_is_asked_for_in_that_style(monkeypatch: pytest.MonkeyPatch):
    art = Art()
    monkeypatch.setattr(neighbours, "load_dataset_by_name", lambda source, size, split, limit: art)
    found, shares = nearest_training(Oracle({item.captions[1]: item.image for item in art.items}), "emoji", 16)
    assert shares["copied"].value == 1 and all(item.prompt == item.neighbour.captions[1] for item in found)


def test_who_draws_what_training_never_saw_copies_as_little_as_real_pictures_do():
    _, shares = nearest_training(Copyist(None), "scenes", 12)
    assert shares["copied"] == shares["unseen_copied"] and shares["ratio"] == shares["unseen_ratio"]
    assert shares["copied"].value < 0.2 and shares["ratio"].value > 0.5


def test_a_training_picture_that_comes_twice_is_not_its_own_second_nearest(monkeypatch: pytest.MonkeyPatch):
    scenes = Scenes(64, 10)

    class Twice:
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int):
            return scenes[index % 10]

    monkeypatch.setattr(neighbours, "load_dataset_by_name", lambda source, size, split, limit: Twice())
    _, shares = nearest_training(Copyist(0), "any", 8)
    assert shares["training_pictures"] == 10 and shares["copied"].value == 1
    with pytest.raises(QualityError, match="too few"):
        monkeypatch.setattr(neighbours, "load_dataset_by_name", lambda source, size, split, limit: Scenes(64, 1))
        nearest_training(Copyist(0), "any", 8)


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch):
    whole = neighbours._different_pictures
    monkeypatch.setattr(neighbours, "_different_pictures", lambda dataset: whole(dataset, 7))
    queries = torch.rand(5, 3 * 32 * 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    scenes = Scenes(32, 30)
    index, ratio, count = neighbours._two_nearest(queries, scenes)
    all_of_it = neighbours._small(neighbours.to_tensor([scenes[i].image for i in range(30)]))
    near = (queries[:, None] - all_of_it[None]).square().sum(-1).sqrt().sort(dim=1)
    assert count == 30 and index == near.indices[:, 0].tolist()
    assert ratio == pytest.approx((near.values[:, 0] / near.values[:, 1]).tolist(), rel=1e-5)


def test_copies_are_looked_for_among_what_training_had_however_the_source_is_spelt(tmp_path: Path) -> None:
    """A folder's model knows its name alone, and its own twenty pictures; the folder may hold more."""
    root = make_folder(tmp_path / "art", 60)
    whole = load_dataset_by_name(f"folder:{root}", 64, "train")
    pipe = Oracle({item.captions[0]: item.image for item in whole})
    for told, expected in (({"data": "folder:art", "examples": 20}, 20), ({"data": "folder:art", "examples": 500}, len(whole)), ({"data": "scenes", "examples": 20}, len(whole))):
        pipe.metadata = {"training": told}
        assert nearest_training(pipe, f"folder:{root}", 8)[1]["training_pictures"] == expected, told
