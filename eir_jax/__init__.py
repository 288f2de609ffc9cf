"""Exploring Instance Relations (EIR): unsupervised feature embedding in JAX.

The functions below stand in eir_jax.api, and docs/api.md shows them in use. JAX is
imported when one of them is first used.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

# A command of ours begins (`python -m eir_jax.main`): Ctrl-C and SIGTERM are a line,
# also while it is being imported; `system.interruption` takes over from here.
if sys.argv[:1] == ["-m"] and any(
    word.removeprefix("-m").startswith("eir_jax.") for word in sys.orig_argv
):
    import os
    import signal

    def _end(number: int, _frame: object) -> None:
        os.write(2, f"stopped by {signal.Signals(number).name}\n".encode())
        os._exit(128 + number)

    signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGTERM, _end)

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
