"""The specification's quick start: a model of a given size that draws from text states, without a text encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from iris.config import IRISConfig, preset
from iris.flow import timestep_schedule
from iris.nn.autoencoder import WaveletVAE
from iris.nn.generator import Generator
from iris.sampling import GuidedVelocity, initial_noise, last_step, sample_euler


class IRISModel(nn.Module):
    """Autoencoder and generator of one config, with random weights until some are loaded."""

    def __init__(self, config: IRISConfig) -> None:
        super().__init__()
        self.config = config
        self.autoencoder = WaveletVAE(config.autoencoder)
        self.generator = Generator(config.generator)

    @torch.inference_mode()
    def generate(self, text_tokens: Tensor, num_steps: int = 4, num_iterations: int | str = 8, text_mask: Tensor | None = None,
                 guidance_scale: float = 1.0, seed: int = 0) -> Tensor:
        """Text states [B, L, text_dim] -> images [B, 3, H, W] in about [-1, 1]; image i takes the noise of seed + i."""
        batch = len(text_tokens)
        context = self.generator.condition(text_tokens, text_mask)
        velocity = GuidedVelocity(self.generator, context, self.generator.null_context(batch), guidance_scale, num_iterations)
        size = self.config.autoencoder.latent_size
        shape = (self.config.autoencoder.latent_channels, size, size)
        noise = initial_noise([seed + index for index in range(batch)], shape, text_tokens.device)
        return self.autoencoder.decode(last_step(sample_euler(velocity, noise, timestep_schedule(num_steps))).latents)


def create_iris_tiny() -> IRISModel:
    """19 M generator parameters."""
    return IRISModel(preset("tiny"))


def create_iris_small() -> IRISModel:
    """47 M generator parameters."""
    return IRISModel(preset("small"))


def create_iris_base() -> IRISModel:
    """135 M generator parameters."""
    return IRISModel(preset("base"))
