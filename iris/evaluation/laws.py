"""Properties that the specification states, as numbers that a notebook can show: exactness, identities, gradients, depth, weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from iris.config import preset
from iris.data import ImageDataset
from iris.evaluation.footprint import Footprint, MemoryUse
from iris.evaluation.metrics import Estimate
from iris.evaluation.probes import Overthinking, PathIndependence
from iris.flow import interpolate, specification_weight
from iris.nn.generator import Generator
from iris.nn.haar import haar_dwt2, haar_idwt2
from iris.pipeline import IRISPipeline, from_pil
from iris.rng import rng_for

LAWS = 30  # purpose of the random streams used here


def haar_round_trip_error(images: Sequence[np.ndarray]) -> float:
    """Largest |idwt(dwt(x)) - x| over uint8 pictures as float32 in [-1, 1]."""
    pixels = from_pil([Image.fromarray(image) for image in images])
    return float((haar_idwt2(haar_dwt2(pixels)) - pixels).abs().max())


# --- the loss weight -----------------------------------------------------------------------------------------------


def logit_normal_density(t: np.ndarray, mean: float, std: float = 1.0) -> np.ndarray:
    """Density of LogitNormal(mean, std) at t in (0, 1)."""
    logit = np.log(t / (1 - t))
    return np.exp(-0.5 * ((logit - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi) * t * (1 - t))


def weight_identity(points: int = 19) -> tuple[np.ndarray, dict[str, list[Estimate]], float, float]:
    """The specification's loss weight w(t) = t / (1 - t) with t ~ LogitNormal(0, 1), beside e^(1/2) LogitNormal(1, 1).

    Returns t [points], both curves, their largest relative gap below the weight's clamp, and the share of a batch that the
    weighted loss effectively uses, (E w)^2 / E w^2, clamp and all (without it 1/e).
    """
    t = np.linspace(0.05, 0.95, points)
    weight = specification_weight(torch.from_numpy(t)).numpy()
    weighted, shifted = weight * logit_normal_density(t, 0.0), np.exp(0.5) * logit_normal_density(t, 1.0)
    gap = float(np.abs(weighted / shifted - 1).max())
    logit = np.linspace(-12, 12, 20_001)
    mass, w = np.exp(-0.5 * logit**2), specification_weight(torch.sigmoid(torch.from_numpy(logit))).numpy()
    share = float((w * mass).sum() ** 2 / ((w**2 * mass).sum() * mass.sum()))
    curves = {"t/(1-t) · LogitNormal(0, 1)": weighted, "√e · LogitNormal(1, 1)": shifted}
    return t, {name: [Estimate(float(y), (float(y), float(y))) for y in values] for name, values in curves.items()}, gap, share


# --- the generator -------------------------------------------------------------------------------------------------


@torch.no_grad()
def velocity_of_preset(name: str, seed: int = 0) -> float:
    """Largest |velocity| of an untrained generator of this preset, on random input at two iterations; its zero last layer makes it 0."""
    g = preset(name).generator
    rng = rng_for(seed, LAWS)
    z = torch.randn(1, g.latent_channels, g.latent_size, g.latent_size, generator=rng)
    tokens = torch.randn(1, g.text_tokens, g.text_dim, generator=rng)
    return float(Generator(g).eval()(z, torch.tensor([0.5]), tokens, num_iterations=2).abs().max())


def weights_without_gradient(pipe: IRISPipeline, dataset: ImageDataset, count: int = 4, seed: int = 0) -> list[str]:
    """Names of generator weights that the velocity loss on `count` pictures gives no gradient, at the mean depth; [] is good.

    One caption is dropped, so that the learned null caption takes part. The pipeline is left as it was.
    """
    examples = [dataset[index] for index in range(min(count, len(dataset)))]
    examples = examples * 2 if len(examples) == 1 else examples  # one of them keeps its caption
    latents = pipe.encode([Image.fromarray(example.image) for example in examples]).clone()
    condition = pipe.text_encoder.encode([example.captions[0] for example in examples]).to(pipe.device)
    tokens, mask = condition.tokens.clone(), condition.mask.clone()
    drop = torch.arange(len(examples), device=pipe.device) == 0
    rng = rng_for(seed, LAWS)
    path = interpolate(latents, torch.randn(latents.shape, generator=rng).to(latents), torch.rand(len(examples), generator=rng).to(latents))
    generator = pipe.generator.requires_grad_(True)
    try:
        velocity = generator(path.z_t, path.t, tokens, pipe.config.generator.mean_iterations, mask, drop)
        named = dict(generator.named_parameters())
        gradients = torch.autograd.grad((velocity - path.velocity).square().mean(), list(named.values()), allow_unused=True)
    finally:
        generator.requires_grad_(False)
    return [name for name, gradient in zip(named, gradients, strict=True) if gradient is None or not bool(gradient.abs().max() > 0)]


# --- depth ---------------------------------------------------------------------------------------------------------


def depths_that_fail(pipe: IRISPipeline, prompt: str, depths: Sequence[int], seed: int = 0) -> list[int]:
    """The depths at which the same weights give a picture that is not finite; [] is good."""
    return [depth for depth in depths if not bool(pipe(prompt, num_steps=1, num_iterations=depth, seed=seed).latents.isfinite().all())]


def depth_figures(longer: Overthinking, starts: PathIndependence, spent: Sequence[Sequence[int]]) -> dict[str, float]:
    """What the depth probes come to: where the error is least, how much worse the far end is, what different starts leave, what "auto" used."""
    by_depth = longer.errors.mean((0, 1))
    used = [count for picture in spent for count in picture]
    return {
        "best_depth": int(by_depth.argmin()) + 1, "error_ratio": float(by_depth[-1] / by_depth.min()),
        "start_distance": float(np.median(starts.velocity_distance[..., -1])),
        "mean_spent": float(np.mean(used)), "least_spent": int(min(used)), "most_spent": int(max(used)),
    }


def depth_reading(found: Mapping[str, float], bought: Mapping[str, Any], trained: int, deepest: int) -> list[str]:
    """What notebook 12 says in the end, from `depth_figures` and `depth.measure_depth` ({} where that was left out)."""
    sentences = [
        f"The error is least at {found['best_depth']} iterations (trained with {trained} or more); at {deepest} it is {found['error_ratio']:.3f} times that.",
        f"After {2 * deepest} iterations runs from different starts differ by {found['start_distance']:.1e} of the velocity.",
        f"Automatic depth used {found['mean_spent']:.1f} iterations a step, between {found['least_spent']} and {found['most_spent']}.",
    ]
    if bought:
        gained = gained_by_iterations(bought)
        efforts = ", ".join(f"{name} {steps} x {iterations}" for name, (steps, iterations) in bought["frontier"].items())
        sentences += [
            f"Relations right at 8 iterations minus at 2: {gained['relation_gain_points']:.0f} points. Efforts: {efforts}.",
            f"Automatic depth (threshold {bought['automatic']['threshold']:g}) spends {gained['auto_share_percent']:.0f} % of the cheapest fixed depth that draws as "
            f"many right, the carried state saves {gained['carried_saves_percent']:.0f} %.",
        ]
    return sentences


def gained_by_iterations(bought: Mapping[str, Any]) -> dict[str, float]:
    """From `depth.measure_depth`: what 8 iterations draw right more than 2 do, and what automatic depth and the carried state cost.

    The share of automatic depth is 100 % where its pictures are not as good: then nothing is saved.
    """
    if not bought:
        return {}
    right = {row["num_iterations"]: row["right"]["relation"]["value"] for row in bought["by_iterations"] if "right" in row}
    automatic = bought["automatic"]
    return {"relation_gain_points": 100 * (right[8] - right[2]), "auto_share_percent": 100 * (automatic["share_of_fixed"] if automatic["equal"] else 1.0),
            "auto_spread_passes": automatic["outcome"]["spread"], "carried_saves_percent": 100 * bought["carried"]["saved"]}


# --- the specification's table -------------------------------------------------------------------------------------


def weigh_variant(name: str, size: Footprint, memory: MemoryUse | None) -> dict[str, float | None]:
    """The specification's figures of a preset, sizes in MB (10^6 bytes).

    memory: of a process without the text encoder, or None when it was not measured. "total" is what the specification sums:
    weights in fp16 with the text tower, and what drawing adds in memory (here in fp32, so rather too much).
    """
    a = preset(name).autoencoder
    weights = sum(size.weight_bytes("fp16").values()) / 1e6
    activations = (memory.peak - memory.built) / 1e6 if memory else None
    return {
        "generator_millions": size.generator_parameters / 1e6, "core_share": size.core_share, "unrolled_16": size.unrolled_multiple(16),
        "unrolled_millions_8": size.unrolled(8) / 1e6, "unrolled_millions_16": size.unrolled(16) / 1e6,
        "layers_at_8": 8 * preset(name).generator.core_layers, "compression": 3 * a.image_size**2 / (a.latent_channels * a.latent_size**2),
        "latent_side": a.latent_size, "weights_megabytes": weights, "activations_megabytes": activations,
        "total_megabytes": weights + activations if activations is not None and size.text_parameters else None,
        "process_megabytes": memory.peak / 1e6 if memory else None,
    }
