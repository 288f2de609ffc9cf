"""A trace of some steps, by JAX's profiler: where their time goes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from eir_jax.system import processes


class StepProfile:
    """Trace some steps of a run into `workdir/profile`.

    Of several processes the first one is traced.

    Args:
      steps: counted from 1; may be empty.
      workdir: an existing folder.
      start_step: steps taken before; where they are among `steps`, the others are
        traced, and where all are, that is said.
      say: prints a line.
    """

    def __init__(
        self, steps: range, workdir: Path, start_step: int, say: Callable[[str], None]
    ):
        self._steps = steps if processes.is_main() else range(0)
        self._folder, self._say = workdir / "profile", say
        self._traced: list[int] = []
        if self._steps and self._steps[-1] <= start_step:
            words = f"{self._steps[0]}:{self._steps[-1]}"
            say(f"no profile: profile_steps={words} lie before step {start_step + 1}")

    def take(
        self, train_step: Callable, state: Any, batch: Any, step: int
    ) -> tuple[Any, Any]:
        """Return `train_step(state, batch)`, traced where this step is asked for."""
        if step not in self._steps:
            self.close()
            return train_step(state, batch)
        if not self._traced:
            jax.block_until_ready(state)  # what is asked for is traced alone
            jax.profiler.start_trace(self._folder)
        self._traced.append(step)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            state, metrics = train_step(state, batch)
        if step == self._steps[-1]:
            jax.block_until_ready(state)
            self.close()
        return state, metrics

    def close(self) -> None:
        """Write what is traced, if anything is, and say where and how to see it."""
        if not self._traced:
            return
        jax.profiler.stop_trace()
        first, last = self._traced[0], self._traced[-1]
        self._traced.clear()
        self._say(
            f"profile of steps {first} to {last}: `pip install xprof` and "
            f"`xprof --logdir={self._folder}`, or its newest *.trace.json.gz at "
            "https://ui.perfetto.dev"
        )
