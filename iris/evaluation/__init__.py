"""Measuring a model: figures of merit, quality, footprint, probes of its inside, and the figures that show them.

The names that notebooks and the demo use, loaded when first asked for.
"""

from importlib import import_module

_HOMES = {
    "Estimate": "metrics", "kernel_distance": "metrics", "psnr": "metrics", "psnr_by_band": "metrics", "ssim": "metrics",
    "wilson_interval": "metrics",
    "nearest_training": "neighbours", "retrieval": "neighbours", "reconstruction_quality": "quality", "sample_kid": "quality", "scene_accuracy": "quality",
    "DepthExam": "depth", "Setting": "depth", "calibrate_threshold": "depth", "measure_depth": "depth",
    "Footprint": "footprint", "measure_footprint": "footprint", "peak_memory": "footprint",
    "interleave": "speed", "measure_speed": "speed",
    "Trace": "probes", "convergence": "probes", "learned_ranges": "probes", "overthinking": "probes", "path_independence": "probes",
    "trace": "probes",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'iris.evaluation' has no attribute {name!r}")
    return getattr(import_module(f"iris.evaluation.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
