"""How long a start takes: from the command to the first step, and what it compiles."""

import time

import jax

COMPILATION = "/jax/core/compile/"  # tracing, lowering and the backend's work


class Startup:
    """Count the seconds of a start and of the compilations in it.

    Args:
      began: `time.monotonic()` at the start of the program.
    """

    def __init__(self, began: float):
        self.began, self._compiling = began, 0.0
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def _note(self, event: str, duration_secs: float, **_) -> None:
        if event.startswith(COMPILATION):
            self._compiling += duration_secs

    def words(self) -> str:
        """Say how long it took until now."""
        whole = time.monotonic() - self.began
        compiling = f"{self._compiling:.1f} s of it compiling"
        return f"first step after {whole:.1f} s, {compiling}"
