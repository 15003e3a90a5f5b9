"""IRIS: a small text-to-image model that lets its user choose how hard it thinks.

The few names a reader needs, loaded when first used, so that `import iris` costs nothing.
"""

from importlib import import_module

__version__ = "0.1.0"
_HOMES = {"IRISPipeline": "iris.pipeline", "IRISConfig": "iris.config", "preset": "iris.config", "IRISModel": "iris.model",
          "create_iris_tiny": "iris.model", "create_iris_small": "iris.model", "create_iris_base": "iris.model"}
__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'iris' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
