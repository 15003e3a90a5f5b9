"""The generator: Prelude -> (adapter -> shared Core) x num_iterations -> Coda, a velocity network (Huginn, 2502.05171).

Tokens are [B, h, w, dim]. The prelude's output `e` is injected at every iteration, s <- norm(W [s, e]); then four layers
of mixer, cross-attention and feed-forward refine s. Every residual sum is normalised without weights, which bounds the
state at any depth and makes the pre-norm of the next sub-layer the identity: Huginn's sandwich at half its cost.
The coda adds the last state to the prelude's tokens, so the normalised core need not carry z_t itself (measured:
reports/LOG.md, 2026-11-25); with `core_stride` 2 the core reads and refines one token for each 2 x 2 of the grid.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from iris.config import TEXT_ADAPTER_HEADS, GeneratorConfig
from iris.nn.attention import CrossAttention, LocalAttention, attend, key_bias
from iris.nn.layers import (
    ConvBlock,
    FeedForward,
    MergeTokens,
    Modulation,
    ScalarEmbedding,
    SplitTokens,
    grid_positions,
    modulate,
    normalize,
)
from iris.nn.mixer import MixerMaps, build_mixer

INITIAL_STATE_STD = math.sqrt(2 / 5)  # Huginn's initial state


@dataclass(frozen=True)
class TextContext:
    """A prompt as the core reads it, and nobody else: keys and values per core layer, and the key mask [B, 1, 1, L]."""

    keys_values: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor | None

    def each(self, times: int) -> TextContext:
        """Every prompt `times` over, before the next one."""
        keys_values = tuple((key.repeat_interleave(times, 0), value.repeat_interleave(times, 0)) for key, value in self.keys_values)
        return TextContext(keys_values, None if self.mask is None else self.mask.repeat_interleave(times, 0))


@dataclass(frozen=True)
class Embedded:
    """What the prelude makes of z_t: its `tokens` [B, h, w, dim], which the coda adds the core's state to; the same on the core's

    grid, `injected` [B, h', w', dim], which the core reads at each turn; and the `condition` [B, dim] of time.
    """

    tokens: Tensor
    injected: Tensor
    condition: Tensor

    def repeat(self, times: int) -> Embedded:
        """The same `times` over, for as many prompts."""
        return self if times == 1 else Embedded(*(part.repeat(times, *[1] * (part.ndim - 1)) for part in (self.tokens, self.injected, self.condition)))


@dataclass(frozen=True)
class CoreState:
    """The core after `iteration` turns (from 1): tokens [B, h, w, dim] and, when recorded, what each GRFM layer did."""

    iteration: int
    tokens: Tensor
    maps: tuple[MixerMaps, ...] | None = None


def relative_change(new: Tensor, old: Tensor) -> Tensor:
    """The largest of the tokens' ||new - old|| / ||new||, [B]: how far one iteration moved the token that it moved most.

    A mean would call a state still whose background stands and whose second object does not (reports/LOG.md, 2026-11-27).
    """
    return ((new - old).norm(dim=-1) / new.norm(dim=-1).clamp_min(1e-12)).flatten(1).amax(1)


class TextAdapter(nn.Module):
    """Trainable layer over frozen text states: positions of its own, one block of self-attention and feed-forward.

    Sentence encoders bind attributes weakly ("red circle, blue square"); this is where the order of words is read again. With
    `ordered` half of the heads read only what stands before a word and half only what follows it (DiSAN, Shen et al. 2018,
    1709.04696): in "A left of B" only A is followed by "left", so who stands where is a linear function of what the heads
    read. Attention in both directions needs a product of position and word, which training did not find (measured:
    reports/LOG.md, 2026-11-26).
    """

    def __init__(self, dim: int, tokens: int, ordered: bool = False, heads: int = TEXT_ADAPTER_HEADS) -> None:
        super().__init__()
        self.heads, self.ordered = heads, ordered
        self.input = nn.Linear(dim, dim)
        self.position = nn.Parameter(torch.randn(tokens, dim) * 0.5)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.ffn = FeedForward(dim, 2 * dim)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """Text states [B, L, dim], mask [B, L] (True = counts; None = all count) -> [B, L, dim]."""
        x = self.input(normalize(states)) + self.position[: states.shape[1]]
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(normalize(x)).chunk(3, -1))
        read = attend(normalize(query), normalize(key), value, key_bias(self._seen(states.shape[1], mask), query.dtype))
        x = x + self.out(read.transpose(1, 2).flatten(2))
        return x + self.ffn(normalize(x))

    def _seen(self, length: int, mask: Tensor | None) -> Tensor | None:
        """Which words each head may read at each word, [B or 1, heads or 1, L or 1, L]; a word always reads itself."""
        seen = None if mask is None else mask[:, None, None]
        if not self.ordered:
            return seen
        before = torch.ones(length, length, dtype=torch.bool, device=self.position.device).tril()
        order = torch.stack([before, before.T]).repeat_interleave(self.heads // 2, 0)
        itself = torch.eye(length, dtype=torch.bool, device=order.device)
        return order[None] if seen is None else (order & seen) | itself


class CoreLayer(nn.Module):
    """Mixer, cross-attention and feed-forward; adaLN on the first and last, a norm on every residual sum."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.modulation = Modulation(config.dim, 6)
        self.mixer = build_mixer(config)
        self.cross = CrossAttention(config.dim, config.text_dim, config.num_heads)
        self.ffn = FeedForward(config.dim, config.core_ffn)

    def forward(self, x: Tensor, condition: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None,
                record: bool) -> tuple[Tensor, MixerMaps | None]:
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self.modulation(condition)
        mixed, maps = self.mixer(modulate(x, shift, scale), record)
        x = normalize(torch.addcmul(x, 1 + gate, mixed))
        x = normalize(x + self.cross(x, keys_values, mask))
        return normalize(torch.addcmul(x, 1 + ffn_gate, self.ffn(modulate(x, ffn_shift, ffn_scale)))), maps


class Core(nn.Module):
    """The shared weights of the depth axis: adapter, layers and the embedding of the iteration number."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.adapter = nn.Linear(2 * config.dim, config.dim, bias=False)
        with torch.no_grad():  # starts by keeping the state and adding half of the input; both are unit-variance
            self.adapter.weight.copy_(torch.cat([torch.eye(config.dim), 0.5 * torch.eye(config.dim)], dim=1))
        self.layers = nn.ModuleList(CoreLayer(config) for _ in range(config.core_layers))
        self.iteration = ScalarEmbedding(config.dim) if config.iteration_embedding == "sinusoid" else None

    def forward(self, state: Tensor, injected: Tensor, condition: Tensor, context: TextContext, iteration: int,
                record: bool = False) -> CoreState:
        """One iteration: state and injected input [B, h, w, dim], condition [B, dim] -> the next CoreState."""
        if self.iteration is not None:
            condition = condition + self.iteration(torch.full((1,), float(iteration), device=state.device))
        x = normalize(self.adapter(torch.cat([state, injected], dim=-1)))
        maps = []
        for layer, keys_values in zip(self.layers, context.keys_values, strict=True):
            x, layer_maps = layer(x, condition, keys_values, context.mask, record)
            maps.append(layer_maps)
        return CoreState(iteration, x, tuple(maps) if record and maps[0] is not None else None)


class CodaBlock(nn.Module):
    """Local attention and feed-forward with adaLN (DiT, 2212.09748)."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.modulation = Modulation(config.dim, 6)
        self.attention = LocalAttention(config.dim, config.num_heads, config.window, config.halo)
        self.ffn = FeedForward(config.dim, config.outer_ffn)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self.modulation(condition)
        x = torch.addcmul(x, 1 + gate, self.attention(modulate(normalize(x), shift, scale)))
        return torch.addcmul(x, 1 + ffn_gate, self.ffn(modulate(normalize(x), ffn_shift, ffn_scale)))


class Generator(nn.Module):
    """Velocity network v(z_t, t, text): latents [B, C, h, w] -> velocity of the same shape (see `iris.flow`)."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.input = nn.Conv2d(config.latent_channels, dim, 3, padding=1)
        self.time = ScalarEmbedding(dim)
        self.text_adapter = TextAdapter(config.text_dim, config.text_tokens, config.text_order) if config.text_adapter else None
        self.null_text = nn.Parameter(torch.randn(config.text_dim) * 0.02)
        self.prelude = nn.ModuleList(ConvBlock(dim, config.outer_ffn) for _ in range(config.prelude_blocks))
        self.core = Core(config)
        self.merge = MergeTokens(dim, config.core_stride)
        self.split = SplitTokens(dim, config.core_stride)
        self.coda = nn.ModuleList(CodaBlock(config) for _ in range(config.coda_blocks))
        self.final_modulation = Modulation(dim, 2)
        self.output = nn.Linear(dim, config.latent_channels)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def condition(self, text_tokens: Tensor, text_mask: Tensor | None = None, drop_text: Tensor | None = None) -> TextContext:
        """Text states [B, L, text_dim] (mask: True = counts; None = all count) -> what every iteration and step reuses.

        Where `drop_text` [B] is True the learned null caption stands instead: all positions hold the same vector, so
        the mask has no effect there and training and guidance see the same null.
        """
        width = self.config.text_dim
        if text_tokens.ndim != 3 or text_tokens.shape[-1] != width or text_tokens.shape[1] > self.config.text_tokens:
            raise ValueError(f"text_tokens have shape {tuple(text_tokens.shape)}; "
                             f"this generator reads [B, up to {self.config.text_tokens}, {width}].")
        text = text_tokens if self.text_adapter is None else self.text_adapter(text_tokens, text_mask)
        if drop_text is not None:
            text = torch.where(drop_text[:, None, None], self.null_text.to(text.dtype), text)
        return self._context(text, text_mask)

    def null_context(self, batch: int, length: int = 1) -> TextContext:
        """The context of the learned null caption for `batch` samples."""
        return self._context(self.null_text.expand(batch, length, -1), None)

    def _context(self, text: Tensor, mask: Tensor | None) -> TextContext:
        keys_values = tuple(layer.cross.keys_values(text) for layer in self.core.layers)
        return TextContext(keys_values, None if mask is None else mask[:, None, None])

    def embed(self, z_t: Tensor, t: Tensor) -> Embedded:
        """The prelude, once for each z_t [B, C, h, w] and t [B]; it does not know the prompt, so the passes of guidance share it."""
        condition = self.time(t * 1000.0)
        x = self.input(z_t).permute(0, 2, 3, 1)
        x = x + grid_positions(*x.shape[1:], self.config.latent_size, x.device).to(x)
        for block in self.prelude:
            x = block(x, condition)
        x = normalize(x)
        return Embedded(x, normalize(self.merge(x)), condition)

    def iterate(self, embedded: Embedded, context: TextContext, num_iterations: int, state: Tensor | None = None,
                record: bool = False, differentiated: Collection[int] | None = None) -> Iterator[CoreState]:
        """Yield the core's state after each of `num_iterations` iterations: the depth axis, open for inspection.

        `state` is the state to start from (zeros by default). Only the iterations (from 1) in `differentiated` keep a graph
        (truncated backpropagation; None: all).
        """
        if num_iterations < 1:
            raise ValueError(f"num_iterations is {num_iterations}; use 1 or more.")
        tokens, had_graph = torch.zeros_like(embedded.injected) if state is None else state.to(embedded.injected), True
        for iteration in range(1, num_iterations + 1):
            keep_graph = torch.is_grad_enabled() and (differentiated is None or iteration in differentiated)
            if keep_graph and not had_graph:
                torch.clear_autocast_cache()  # older torch takes the cast made without a graph again, and the weight learns nothing
            had_graph = keep_graph
            with torch.set_grad_enabled(keep_graph):
                current = self.core(tokens, embedded.injected, embedded.condition, context, iteration, record)
            yield current
            tokens = current.tokens

    def readout(self, tokens: Tensor, embedded: Embedded) -> Tensor:
        """The coda: core state [B, h', w', dim] -> velocity [B, C, h, w]."""
        x = embedded.tokens + self.split(tokens)
        for block in self.coda:
            x = block(x, embedded.condition)
        shift, scale = self.final_modulation(embedded.condition)
        return self.output(modulate(normalize(x), shift, scale)).permute(0, 3, 1, 2)

    def forward(self, z_t: Tensor, t: Tensor, text_tokens: Tensor, num_iterations: int | None = None, text_mask: Tensor | None = None,
                drop_text: Tensor | None = None, grad_iterations: int | None = None, state: Tensor | None = None) -> Tensor:
        """Velocity at z_t [B, C, h, w], t [B] in [0, 1], given text states [B, L, text_dim]; depth as configured by default.

        With `grad_iterations` = k only the last k iterations are differentiated.
        """
        depth = self.config.mean_iterations if num_iterations is None else num_iterations
        context = self.condition(text_tokens, text_mask, drop_text)
        embedded = self.embed(z_t, t)
        differentiated = None if grad_iterations is None else range(depth - grad_iterations + 1, depth + 1)
        for current in self.iterate(embedded, context, depth, state, differentiated=differentiated):
            last = current
        return self.readout(last.tokens, embedded)


def parameter_count(module: nn.Module) -> int:
    """Number of weights in a module."""
    return sum(parameter.numel() for parameter in module.parameters())
