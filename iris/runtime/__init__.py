"""Prompt to picture without torch: numpy, onnxruntime and tokenizers read what `python -m iris.export` wrote.

    python -m iris.runtime FOLDER "red apple" -o apple.png
"""

from importlib import import_module

__all__ = ["OnnxPipeline", "RuntimeFailure"]


def __getattr__(name: str):
    """Loaded when first used: who exports, or lacks onnxruntime, comes here for less."""
    if name not in __all__:
        raise AttributeError(f"module 'iris.runtime' has no attribute {name!r}")
    return getattr(import_module("iris.runtime.generate"), name)
