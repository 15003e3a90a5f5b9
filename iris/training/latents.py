"""Encode a data set once: latents and text states, kept in memory and, when a folder is given, on disk.

The generator then trains without the autoencoder and the text encoder, which would cost more than its own step.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from iris.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from iris.data.base import Example, ImageDataset, class_caption, fingerprint
from iris.nn.autoencoder import WaveletVAE
from iris.rng import rng_for
from iris.text import TextEncoder
from iris.training.batches import LatentDataset, to_images
from iris.training.loop import join_processes

PHRASING = 12  # purpose of the random stream that chooses phrasings
PARTS = ("latents", "tokens", "mask", "captions")
PIECE_BYTES = 1 << 28
Captions = Callable[[Example], tuple[str, ...]]


def written_captions(example: Example) -> tuple[str, ...]:
    """The captions that came with the picture."""
    return example.captions


def captions_of_class(example: Example) -> tuple[str, ...]:
    """The class label written as a caption, so that stage 2 conditions the way stage 3 does."""
    return (class_caption(example.label),)


def encode_dataset(autoencoder: WaveletVAE, text_encoder: TextEncoder, dataset: ImageDataset, captions: Captions = written_captions,
                   folder: Path | None = None, captions_per_image: int = 3, batch_size: int = 64) -> LatentDataset:
    """Latents and text states of every example; read back from `folder` when it holds those of the same data and weights.

    At most `captions_per_image` phrasings are kept of each: the first, and others drawn by the example's index.
    """
    key = {"layout": "pieces", "data": fingerprint(dataset), "captions": f"{captions.__name__}:{captions_per_image}", "text": repr(text_encoder.config),
           "autoencoder": weights_digest(autoencoder)}
    if folder is not None and (folder / "config.json").exists():
        try:
            stored = read_checkpoint(folder)
            if stored.config == key:
                return _from_pieces(stored.tensors["dataset"])
        except CheckpointError:
            pass  # a damaged cache is made again
    result = _encode(autoencoder, text_encoder, dataset, lambda index, example: _choose(captions(example), captions_per_image, index), batch_size)
    if folder is not None:
        try:
            write_checkpoint(folder, key, {"dataset": _in_pieces(result)}, shard_bytes=PIECE_BYTES)
        except CheckpointError as error:
            if join_processes().num_processes > 1:  # the others read it
                raise
            warnings.warn(f"What was encoded is not kept for the next time: {error}", stacklevel=2)
    return result


def _in_pieces(dataset: LatentDataset) -> dict[str, torch.Tensor]:
    """Its tensors in pieces of rows: a save copies what it writes some times over, and text states can fill a machine's memory."""
    tensors = {name: getattr(dataset, name) for name in PARTS}
    return {f"{name}.{number:05d}": piece for name, tensor in tensors.items()
            for number, piece in enumerate(tensor.split(max(1, PIECE_BYTES // max(1, tensor[0].nbytes))))}


def _from_pieces(stored: dict[str, torch.Tensor]) -> LatentDataset:
    """The inverse of `_in_pieces`."""
    pieces = {name: [stored[key] for key in sorted(stored) if key.startswith(f"{name}.")] for name in PARTS}
    return LatentDataset(**{name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in pieces.items()})


def _choose(phrasings: tuple[str, ...], count: int, index: int) -> tuple[str, ...]:
    """The first phrasing and `count` - 1 others."""
    others = torch.randperm(len(phrasings) - 1, generator=rng_for(PHRASING, index))[: count - 1] + 1 if len(phrasings) > count else range(1, len(phrasings))
    return (phrasings[0], *(phrasings[int(other)] for other in others))


def weights_digest(module: nn.Module) -> str:
    """Sixteen hex digits of every weight and buffer of a module."""
    digest = hashlib.sha256()
    for tensor in module.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def _encode(autoencoder: WaveletVAE, text_encoder: TextEncoder, dataset: ImageDataset, phrasings: Callable[[int, Example], tuple[str, ...]],
            batch_size: int) -> LatentDataset:
    device = next(autoencoder.parameters()).device
    autoencoder.eval()
    rows: dict[str, int] = {}
    latents, caption_rows = [], []
    for start in tqdm(range(0, len(dataset), batch_size), desc="encoding images", unit="batch"):
        examples = {index: dataset[index] for index in range(start, min(start + batch_size, len(dataset)))}
        latents.append(autoencoder.encode(to_images(np.stack([example.image for example in examples.values()])).to(device)).cpu())
        caption_rows += [[rows.setdefault(caption, len(rows)) for caption in phrasings(*item)] for item in examples.items()]
    width = max(map(len, caption_rows))
    padded = torch.tensor([row + [-1] * (width - len(row)) for row in caption_rows])
    tokens, masks = _encode_captions(text_encoder, list(rows))
    # In the layout that a cache read back has: another one would round differently, and a resumed run must not.
    return LatentDataset(torch.cat(latents).contiguous(), tokens, masks, padded)


def _encode_captions(text_encoder: TextEncoder, captions: list[str], batch_size: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """States [N, L, D] in fp16 and mask [N, L], L the longest caption's: of CLIP's 77 places a short caption fills a tenth."""
    beyond = [caption for caption in captions if text_encoder.unread(caption)]
    if beyond:
        warnings.warn(f"{len(beyond):,} of {len(captions):,} captions are longer than the {text_encoder.config.max_tokens} tokens that this model reads; their ends are not learned, "
                      f"such as {text_encoder.unread(beyond[0])[:60]!r} of {beyond[0][:60]!r}. Shorter ones, or a larger text.max_tokens, would mend that.", stacklevel=4)
    tokens, masks = [], []
    for start in tqdm(range(0, len(captions), batch_size), desc="encoding captions", unit="batch"):
        condition = text_encoder.encode(captions[start: start + batch_size])
        longest = int(condition.mask.any(0).nonzero().max()) + 1
        tokens.append(condition.tokens[:, :longest].half().cpu())
        masks.append(condition.mask[:, :longest].cpu())
    longest = max(mask.shape[1] for mask in masks)
    return _stacked(tokens, longest), _stacked(masks, longest)


def _stacked(parts: list[torch.Tensor], longest: int) -> torch.Tensor:
    """[N, longest, ...] of parts [n, up to longest, ...], with zeros behind; `parts` is spent, so that nothing lies in memory three times."""
    end = sum(map(len, parts))
    whole = parts[0].new_zeros(end, longest, *parts[0].shape[2:])
    while parts:
        part = parts.pop()
        whole[end - len(part): end, : part.shape[1]] = part
        end -= len(part)
    return whole
