"""Training: losses, cached latents, one loop, five stages."""
