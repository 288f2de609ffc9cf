"""Exploring Instance Relations (EIR): unsupervised feature embedding in JAX."""

import sys

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
