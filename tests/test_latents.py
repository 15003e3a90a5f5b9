"""What a training step reads: each picture once an epoch, its own captions evenly, and latents that were encoded once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import some_latents
from torch import Tensor

from iris.config import preset
from iris.data.base import Example
from iris.data.scenes import Scenes
from iris.nn.autoencoder import WaveletVAE
from iris.rng import rng_for
from iris.text import load_text_encoder
from iris.training import latents as latents_module
from iris.training.batches import indices_of_step
from iris.training.latents import captions_of_class, encode_dataset, written_captions

NANO = preset("nano")


def test_an_epoch_is_a_permutation_and_two_small_batches_are_one_large() -> None:
    epoch = np.concatenate([indices_of_step(step, 4, 10, seed=3) for step in range(5)])
    assert sorted(epoch[:10]) == sorted(epoch[10:]) == list(range(10)) and list(epoch[:10]) != list(epoch[10:])
    halves = np.concatenate([indices_of_step(step, 4, 10, seed=3) for step in (2, 3)])
    assert np.array_equal(halves, indices_of_step(1, 8, 10, seed=3))
    assert not np.array_equal(indices_of_step(0, 8, 10, seed=3), indices_of_step(0, 8, 10, seed=4))
    assert len(indices_of_step(0, 25, 10, seed=0)) == 25  # a batch may be longer than the data


def test_each_item_draws_its_own_captions_evenly() -> None:
    data = dataclasses.replace(some_latents(2), captions=torch.tensor([[0, 1, 4], [2, -1, -1]]))
    items = np.array([0, 1] * 3000)
    text = data.batch(items, rng_for(0)).tokens[:, 0]
    rows = [int((data.tokens[:, 0].float() == row).all(1).nonzero()) for row in text[:600]]
    assert set(rows[1::2]) == {2}
    counts = np.bincount(rows[0::2], minlength=5)
    assert counts[[2, 3]].sum() == 0 and counts[[0, 1, 4]].min() > 70


# --- latents, encoded once ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("captions", "captions_per_image"), [(written_captions, 2), (written_captions, 100), (captions_of_class, 3)])
def test_encoding_once_is_encoding_each_time(tmp_path: Path, captions, captions_per_image: int) -> None:
    torch.manual_seed(0)
    autoencoder, text, scenes = WaveletVAE(NANO.autoencoder).eval(), load_text_encoder(NANO.text), Scenes(32, count=7)
    first, cached = (encode_dataset(autoencoder, text, scenes, captions, tmp_path / "cache", captions_per_image, batch_size=3) for _ in range(2))
    for field in dataclasses.fields(first):
        assert torch.equal(getattr(first, field.name), getattr(cached, field.name))
    with torch.no_grad():
        each = torch.cat([autoencoder.encode(_image(scenes, index)) for index in range(7)])
    torch.testing.assert_close(first.latents, each, atol=1e-5, rtol=0)
    for index in range(7):
        told = captions(scenes[index])
        states = text.encode(list(told))
        rows = [int(row) for row in first.captions[index] if row >= 0]
        assert len(set(rows)) == len(rows) == min(len(told), captions_per_image)
        found = [next(i for i in range(len(told)) if torch.equal(states.tokens[i, : first.mask.shape[1]].half(), first.tokens[row])) for row in rows]
        assert found[0] == 0 and len(set(found)) == len(found)  # the first phrasing is the plainest: it is always kept
        length = first.mask.shape[1]
        assert torch.equal(first.mask[rows], states.mask[found][:, :length]) and not states.mask[:, length:].any()
    assert first.mask[:, -1].any()  # no longer than the longest caption


def test_a_cache_in_many_pieces_is_the_same_and_one_that_cannot_be_kept_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    autoencoder, text, scenes = WaveletVAE(NANO.autoencoder).eval(), load_text_encoder(NANO.text), Scenes(32, count=5)
    monkeypatch.setattr(latents_module, "PIECE_BYTES", 2 * NANO.text.dim * NANO.text.max_tokens)
    first, cached = (encode_dataset(autoencoder, text, scenes, folder=tmp_path / "cache") for _ in range(2))
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) > 3
    assert all(torch.equal(getattr(first, field.name), getattr(cached, field.name)) for field in dataclasses.fields(first))
    (tmp_path / "full").touch()
    with pytest.warns(UserWarning, match="is not kept for the next time: "):
        again = encode_dataset(autoencoder, text, scenes, folder=tmp_path / "full")
    assert torch.equal(again.tokens, first.tokens)


def _image(scenes: Scenes, index: int) -> Tensor:
    return torch.from_numpy(scenes[index].image).permute(2, 0, 1)[None].float() / 127.5 - 1


class Repainted:
    """The same data set by name and length, in which one picture was replaced."""

    def __init__(self, inner: Scenes) -> None:
        self.inner, self.name, self.skipped = inner, inner.name, inner.skipped

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Example:
        example = self.inner[index]
        return example if index != 2 else dataclasses.replace(example, image=255 - example.image)


def test_a_cache_of_other_pictures_other_weights_or_damaged_is_made_again(tmp_path: Path) -> None:
    text, scenes = load_text_encoder(NANO.text), Scenes(32, count=4)
    torch.manual_seed(0)
    one, other = WaveletVAE(NANO.autoencoder).eval(), WaveletVAE(NANO.autoencoder).eval()
    with torch.no_grad():
        other.encoder_shortcut.weight.mul_(2.0)
    first = encode_dataset(one, text, scenes, folder=tmp_path / "cache")
    assert not torch.equal(encode_dataset(other, text, scenes, folder=tmp_path / "cache").latents, first.latents)
    repainted = Repainted(scenes)
    assert (repainted.name, len(repainted)) == (scenes.name, len(scenes))
    assert not torch.equal(encode_dataset(one, text, repainted, folder=tmp_path / "cache").latents, first.latents)
    encode_dataset(one, text, scenes, folder=tmp_path / "cache")
    file = next((tmp_path / "cache").glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert torch.equal(encode_dataset(one, text, scenes, folder=tmp_path / "cache").latents, first.latents)


def test_captions_that_are_longer_than_the_model_reads_are_told_once() -> None:
    words = [f"a picture number {n}" for n in range(3)] + ["one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen and a red dragon"]
    with pytest.warns(UserWarning, match=r"1 of 4 captions are longer than the 16 tokens .*'(and )?a red dragon'") as told:
        latents_module._encode_captions(load_text_encoder(NANO.text), words)
    assert len(told) == 1
