"""Encode a data set once: latents and text states, kept in memory and, when a folder is given, on disk.

The generator then trains without the autoencoder and the text encoder, which would cost more than its own step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from iris.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from iris.data.base import Example, ImageDataset, class_caption, fingerprint
from iris.nn.autoencoder import WaveletVAE
from iris.rng import rng_for
from iris.text import TextEncoder
from iris.training.batches import LatentDataset, to_images

PHRASING = 12  # purpose of the random stream that chooses phrasings
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
    key = {"data": fingerprint(dataset), "captions": f"{captions.__name__}:{captions_per_image}", "text": repr(text_encoder.config),
           "autoencoder": weights_digest(autoencoder)}
    if folder is not None and (folder / "config.json").exists():
        try:
            stored = read_checkpoint(folder)
            if stored.config == key:
                return LatentDataset(**stored.tensors["dataset"])
        except CheckpointError:
            pass  # a damaged cache is made again
    result = _encode(autoencoder, text_encoder, dataset, lambda index, example: _choose(captions(example), captions_per_image, index), batch_size)
    if folder is not None:
        tensors = {name: getattr(result, name) for name in ("latents", "tokens", "mask", "captions")}
        write_checkpoint(folder, key, {"dataset": tensors}, shard_bytes=1 << 30)
    return result


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
    tokens, masks = [], []
    for start in tqdm(range(0, len(captions), batch_size), desc="encoding captions", unit="batch"):
        condition = text_encoder.encode(captions[start: start + batch_size])
        longest = int(condition.mask.any(0).nonzero().max()) + 1
        tokens.append(condition.tokens[:, :longest].half().cpu())
        masks.append(condition.mask[:, :longest].cpu())
    longest = max(mask.shape[1] for mask in masks)
    return (torch.cat([F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in tokens]),
            torch.cat([F.pad(part, (0, longest - part.shape[1])) for part in masks]))
