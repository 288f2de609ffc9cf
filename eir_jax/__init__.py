"""Exploring Instance Relations (EIR): unsupervised feature embedding in JAX.

The functions below stand in eir_jax.api, and docs/api.md shows them in use. JAX is
imported when one of them is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eir_jax.api import (
        TrainedEncoder,
        Transformer,
        evaluate,
        knn,
        load,
        neighbours,
        train,
    )

__version__ = "0.1.0"
__all__ = [
    "TrainedEncoder",
    "Transformer",
    "evaluate",
    "knn",
    "load",
    "neighbours",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'eir_jax' has no attribute '{name}'")
    if name == "evaluate":  # the command's module has the name, and can be called too
        return importlib.import_module("eir_jax.evaluate")
    return getattr(importlib.import_module("eir_jax.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
