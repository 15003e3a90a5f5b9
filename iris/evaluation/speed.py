"""How fast: every call beside the same matrix product, again and again in a random order, so that a noisy machine disturbs all alike.

1 eq is the time of one product of two 1024 x 1024 fp32 matrices in the same round (2.147 GFLOP: the machine's ceiling). A
figure is the median over rounds with its quartiles; a ratio is taken round by round. Weights are random: speed does not
depend on them. Text is read beforehand (states stand for it), guidance is off, the batch is 1 except in training.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from iris.config import PRESETS, IRISConfig, preset
from iris.evaluation.footprint import measure_footprint
from iris.evaluation.peers import Peer, build_peer, build_taesd, check_peers
from iris.flow import timestep_schedule
from iris.model import IRISModel
from iris.nn.attention import GlobalAttention
from iris.nn.generator import Generator, parameter_count
from iris.nn.mixer import GRFM
from iris.quantize import quantized
from iris.sampling import GuidedVelocity, last_step, sample_euler

EQ = "sgemm"
EQ_FLOPS = 2 * 1024**3
PARTS = ("forward", "picture", "growth", "mixer", "training", "codec", "ceiling")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SIDES = (16, 32, 64)
FEWEST = 5  # rounds behind a median
Calls = dict[str, Callable[[], Any]]


class SpeedError(ValueError):
    """A measurement that cannot be made; the message says what is allowed."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over the rounds."""

    value: float
    interval: tuple[float, float]


def spread(values: list[float]) -> Spread:
    """Median and quartiles of `values`."""
    low, middle, high = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return Spread(middle, (low, high))


@dataclass(frozen=True)
class Rounds:
    """Seconds of every call in every round, the matrix product among them."""

    seconds: dict[str, list[float]]

    def eq(self, name: str) -> Spread:
        """A call's time in matrix products of the same round."""
        return self.ratio(name, EQ)

    def ratio(self, name: str, other: str) -> Spread:
        """A call's time over another's, round by round."""
        return spread([a / b for a, b in zip(self.seconds[name], self.seconds[other], strict=True)])

    def to_dict(self, *references: str) -> dict[str, Any]:
        """eq and milliseconds of every call, and its time over each reference's."""
        names = [name for name in self.seconds if name != EQ]
        found: dict[str, Any] = {"eq": {name: asdict(self.eq(name)) for name in names},
                                 "milliseconds": {name: 1e3 * spread(self.seconds[name]).value for name in (*names, EQ)}}
        for reference in references:
            found["over_" + reference.replace(" ", "_")] = {name: asdict(self.ratio(name, reference)) for name in names if name != reference}
        return found


def interleave(calls: Calls, repeats: int, clock: Callable[[], float] = time.perf_counter) -> Rounds:
    """Every call and one matrix product once a round, `repeats` rounds after one that warms up.

    Each round has an order of its own: in a fixed one the same call always finds the caches full of the matrix product.
    """
    if repeats < 1:
        raise SpeedError(f"repeats is {repeats}; use 1 or more.")
    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    every = {**calls, EQ: lambda: left @ right}
    seconds: dict[str, list[float]] = {name: [] for name in every}
    order, shuffle = list(every), random.Random(0).shuffle
    for turn in range(repeats + 1):
        shuffle(order)
        for name in order:
            started = clock()
            every[name]()
            if turn:
                seconds[name].append(clock() - started)
    return Rounds(seconds)


def measure_speed(model: str = "tiny", against: list[str] | None = None, parts: list[str] | None = None, repeats: int = 9,
                  threads: int = 0, clock: str = "wall", batch: int = 4) -> dict[str, Any]:
    """Figures by part (see PARTS), ready for JSON. model: a preset; against: some of PEERS; threads: 0 keeps torch's number.

    clock "cpu" counts the processor time of this process: for a machine that others use, with threads=1. batch is that of the
    training step. Raises SpeedError or PeerError with one sentence.
    """
    against, parts = check_peers(list(against or [])), list(parts or PARTS)
    wrong = [part for part in parts if part not in PARTS]
    if wrong or model not in PRESETS or clock not in CLOCKS:
        raise SpeedError(f"{(wrong or [model if model not in PRESETS else clock])[0]!r} is not known; parts are {', '.join(PARTS)}, "
                         f"models {', '.join(PRESETS)}, clocks {', '.join(CLOCKS)}.")
    with _threads(threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bench = _Bench(preset(model), against, repeats, CLOCKS[clock], batch)
        found = {part: getattr(bench, part)() for part in parts}
        return {"model": model, "threads": torch.get_num_threads(), "clock": clock, "parameters": bench.parameters, **found}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Bench:
    """The models of one measurement; each part is a method that returns plain data."""

    def __init__(self, config: IRISConfig, against: list[str], repeats: int, clock: Callable[[], float], batch: int) -> None:
        self.config, self.repeats, self.clock, self.batch = config, repeats, clock, batch
        self.model = IRISModel(config).eval()
        self.int8 = quantized(self.model.generator)
        self.peers = [build_peer(name, config.generator.latent_size) for name in against if name != "taesd"]
        self.taesd = build_taesd() if "taesd" in against else None
        self.text = torch.randn(1, config.text.max_tokens, config.text.dim)
        self.parameters = {"iris": parameter_count(self.model.generator), "iris decoder": measure_footprint(config).parameters["decoder"],
                           **{peer.name: parameter_count(peer.module) for peer in self.peers},
                           **({"taesd decoder": parameter_count(self.taesd.decoder)} if self.taesd else {})}

    def _rounds(self, calls: Calls, *references: str, more: int = 1, fewer: int = 1) -> dict[str, Any]:
        """The calls in `repeats` rounds, more or fewer; no ratio rests on fewer than FEWEST rounds unless so few were asked for."""
        return interleave(calls, max(min(self.repeats, FEWEST), more * self.repeats // fewer), self.clock).to_dict(*references)

    def _velocity(self, generator: Any, depth: int) -> GuidedVelocity:
        with torch.inference_mode():
            return GuidedVelocity(generator, self.model.generator.condition(self.text), num_iterations=depth)

    def _iris_parts(self) -> dict[str, tuple[Any, int]]:
        return {"iris x4": (self.model.generator, 4), "iris x8": (self.model.generator, 8), "iris int8 x4": (self.int8, 4), "iris int8 x8": (self.int8, 8)}

    def _iris(self) -> dict[str, GuidedVelocity]:
        return {name: self._velocity(*parts) for name, parts in self._iris_parts().items()}

    def _noise(self, side: int | None = None) -> Tensor:
        side = self.config.generator.latent_size if side is None else side
        return torch.randn(1, self.config.generator.latent_channels, side, side)

    @torch.inference_mode()
    def forward(self) -> dict[str, Any]:
        """One call of the denoiser at the model's own size."""
        z, t = self._noise(), torch.full((1,), 0.5)
        calls: Calls = {name: (lambda velocity=velocity: velocity(z, t)) for name, velocity in self._iris().items()}
        calls |= {peer.name: _peer_call(peer) for peer in self.peers}
        return self._rounds(calls, "iris x4")

    @torch.inference_mode()
    def picture(self) -> dict[str, Any]:
        """Keys and values of the text, four Euler steps and the decoder; TAESD's for the peers, where it is measured."""
        z, times = self._noise(), timestep_schedule(4)
        decode = self.model.autoencoder.decode
        calls: Calls = {name: (lambda parts=parts: decode(last_step(sample_euler(self._velocity(*parts), z, times)).latents))
                        for name, parts in self._iris_parts().items()}
        for peer in self.peers:
            start = torch.randn(1, *peer.shape)
            calls[peer.name] = lambda peer=peer, start=start: self._peer_picture(peer, start)
        return self._rounds(calls, "iris x4", *(peer.name for peer in self.peers), fewer=2)

    def _peer_picture(self, peer: Peer, start: Tensor) -> None:
        latents = last_step(sample_euler(lambda z, t: peer.velocity(z, 1000 * t), start, timestep_schedule(4))).latents
        if self.taesd is not None:
            side = 2 * self.config.generator.latent_size   # TAESD's latents; SANA's own autoencoder is far dearer
            self.taesd.decode(latents if latents.shape[1] == 4 else torch.zeros(1, 4, side, side))

    @torch.inference_mode()
    def growth(self) -> dict[str, Any]:
        """One call at 256, 1024 and 4096 latents (a core on half the grid has a quarter as many tokens), and the exponent of its growth between the first and the last."""
        t, velocity, found = torch.full((1,), 0.5), self._velocity(self.model.generator, 4), {}
        for step, side in enumerate(SIDES):
            z = self._noise(side)
            calls: Calls = {"iris x4": lambda z=z: velocity(z, t)}
            calls |= {peer.name: _peer_call(build_peer(peer.name, side)) for peer in self.peers}
            found[str(side * side)] = self._rounds(calls, "iris x4", *(peer.name for peer in self.peers), fewer=3**step)
        first, last = (found[str(side * side)]["eq"] for side in (SIDES[0], SIDES[-1]))
        found["exponent"] = {name: math.log(last[name]["value"] / first[name]["value"]) / math.log((SIDES[-1] / SIDES[0]) ** 2) for name in first}
        return found

    @torch.inference_mode()
    def mixer(self) -> dict[str, Any]:
        """One GRFM layer over one self-attention layer of the same width (which has more weights and products), from 64 tokens on.

        A layer takes milliseconds, and two threads meet a dozen times in one and sixty times in the other: hence many rounds.
        """
        g = self.config.generator
        grfm, attention = GRFM(g).eval(), GlobalAttention(g.dim, g.dim, g.head_dim).eval()
        return {str(side * side): self._rounds({"grfm": lambda x=x: grfm(x), "attention": lambda x=x: attention(x)}, "attention", more=32, fewer=2**step)
                for step, side in enumerate((8, *SIDES)) for x in (torch.randn(1, side, side, g.dim),)}

    def training(self) -> dict[str, Any]:
        """Forward and backward of a mean squared error, fp32: IRIS at 8 iterations with the last 4 differentiated."""
        size, text = self.config.generator.latent_size, self.text.expand(self.batch, -1, -1)
        z, t = torch.randn(self.batch, self.config.generator.latent_channels, size, size), torch.rand(self.batch)
        generator: Generator = self.model.generator
        calls: Calls = {"iris x8": lambda: _step(generator, lambda: generator(z, t, text, 8, grad_iterations=4))}
        for peer in self.peers:
            latents = torch.randn(self.batch, *peer.shape)
            calls[peer.name] = lambda peer=peer, latents=latents: _step(peer.module, lambda: peer.velocity(latents, 1000 * t))
        rounds = interleave(calls, max(min(self.repeats, FEWEST), self.repeats // 3), self.clock)
        rate = {name: self.batch / spread(rounds.seconds[name]).value for name in calls}
        return {**rounds.to_dict("iris x8"), "batch": self.batch, "images_per_second": rate}

    @torch.inference_mode()
    def codec(self) -> dict[str, Any]:
        """Encoder and decoder at the model's picture size."""
        size, autoencoder = self.config.autoencoder.image_size, self.model.autoencoder
        image, latents = torch.rand(1, 3, size, size) * 2 - 1, self._noise()
        encode: Calls = {"iris encode": lambda: autoencoder.encode(image)}
        decode: Calls = {"iris decode": lambda: autoencoder.decode(latents)}
        if self.taesd is not None:
            small = torch.randn(1, 4, size // 8, size // 8)
            encode["taesd encode"], decode["taesd decode"] = lambda: self.taesd.encode(image), lambda: self.taesd.decode(small)
        peers = ("taesd encode", "taesd decode") if self.taesd is not None else ()
        return {"encode": self._rounds(encode, *peers[:1]), "decode": self._rounds(decode, *peers[1:])}

    @torch.inference_mode()
    def ceiling(self) -> dict[str, Any]:
        """By part: FLOPs (matrix products and convolutions), time in eq, and the share of the matrix product's rate."""
        generator, autoencoder, flops = self.model.generator, self.model.autoencoder, measure_footprint(self.config).flops
        context, z, t = generator.condition(self.text), self._noise(), torch.full((1,), 0.5)
        embedded = generator.embed(z, t)
        state = generator.core(torch.zeros_like(embedded.injected), embedded.injected, embedded.condition, context, 1)
        calls: Calls = {"prelude": lambda: generator.embed(z, t),
                        "core": lambda: generator.core(state.tokens, embedded.injected, embedded.condition, context, 1),
                        "coda": lambda: generator.readout(state.tokens, embedded), "decoder": lambda: autoencoder.decode(z)}
        rounds = interleave(calls, self.repeats, self.clock)
        return {name: {"gflop": flops[name] / 1e9, "eq": asdict(rounds.eq(name)), "share": flops[name] / EQ_FLOPS / rounds.eq(name).value}
                for name in calls}


def _peer_call(peer: Peer) -> Callable[[], Tensor]:
    peer.module.eval()
    z, t = torch.randn(1, *peer.shape), torch.full((1,), 500.0)
    return lambda: peer.velocity(z, t)


def _step(module: torch.nn.Module, predict: Callable[[], Tensor]) -> None:
    module.train().requires_grad_(True)
    module.zero_grad(set_to_none=True)
    output = predict()
    F.mse_loss(output, torch.zeros_like(output)).backward()
