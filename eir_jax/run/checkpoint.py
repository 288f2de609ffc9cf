"""Checkpoints: Orbax behind one thin wrapper, with a checksum of our own.

Orbax writes each checkpoint in the background and whole or not at all, but restores
overwritten bytes and other types without a word. So `meta` beside each state holds a
checksum of every array, and what the state belongs to (settings, N, data).
"""

import gc
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from eir_jax.run.state import TrainState
from eir_jax.system import processes
from eir_jax.system.errors import UserError, first_line, lacks_memory

Meta = dict[str, Any]
KEPT_SINCE_0_1 = ("step", "params", "batch_stats", "opt_state")


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be restored as it was saved."""


class _Manager(ocp.CheckpointManager):
    """Orbax's, which a damaged file of metrics does not keep from the rest."""

    def __init__(self, *args, **how):
        self._unreadable: set[int] = set()
        super().__init__(*args, **how)

    def metrics(self, step: int) -> dict[str, Any] | None:
        """Return what `save` noted to rank a step by; None where it cannot be read."""
        try:
            found = super().metrics(step)
            if found is not None:
                float(found["knn"]), str(found.get("protocol", ""))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if step not in self._unreadable:
                _warn(
                    f"the kNN noted beside checkpoint {step} cannot be read "
                    f"({first_line(error)}): it takes no part in what is best"
                )
            self._unreadable.add(step)
            return None
        return found


class Checkpoints:
    """The checkpoints of one workdir.

    Args:
      directory: the folder, made on the first save.
      keep: newest checkpoints to keep, beside the best (by `knn` of `save`).
      keep_every: steps of a round, whose ends are kept too; 0: there is one round.
      read_only: never change the folder.
    """

    def __init__(
        self,
        directory: Path,
        keep: int = 1,
        keep_every: int = 0,
        read_only: bool = False,
    ):
        def metric(metrics: dict[str, Any]) -> float:
            same = metrics.get("protocol", "") == self._protocol
            return metrics["knn"] if same else -1.0

        self.directory = directory
        self._protocol = ""
        best = policies.BestN(
            get_metric_fn=metric, n=1, keep_checkpoints_without_metrics=False
        )
        kept = [policies.LatestN(keep), best]
        if keep_every:
            kept.append(policies.EveryNSteps(keep_every))
        self._manager = _Manager(
            directory.absolute(),
            item_names=("state", "meta"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept),
                best_fn=metric,
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                create=not read_only,
            ),
        )
        for step in self.steps:
            if metrics := self._manager.metrics(step):
                self._protocol = metrics.get("protocol", "")  # older ones have none
                break

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    @property
    def best(self) -> int | None:
        """The step with the best kNN of those kept; None where none was evaluated.

        Among those measured by the protocol of the newest: others do not compare.
        """
        return self._manager.best_step()

    def save(
        self, state: TrainState, meta: Meta, knn: float | None, protocol: str = ""
    ) -> None:
        """Save `state` in the background; `knn` (in [0, 1]) ranks it for 'best'.

        R@1 stands for kNN where the test classes are unseen. `protocol` is the hash of
        what decided the number: those of others take no part.

        Raises:
          UserError: the parameters are not finite (nothing is saved then), or the
            disk refuses.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        checksums, finite = jax.device_get(_checksums(state))
        if not finite:
            raise UserError(
                f"the parameters are not finite at step {step}; nothing was saved for "
                "it; lower optimizer.learning_rate"
            )
        meta = meta | {"step": step, "checksums": _named(checksums)}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
        )
        metrics = None
        if knn is not None:
            metrics = {"knn": knn, "protocol": protocol}
            self._protocol = protocol
        with _disk_errors(step):
            self._manager.save(step, args=args, metrics=metrics)

    def wait(self) -> None:
        """Wait until the last save is on disk.

        Raises:
          UserError: it could not be written.
        """
        with _disk_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the last save and free what Orbax holds.

        Raises:
          UserError: it could not be written.
        """
        with _disk_errors():
            self._manager.close()

    def read_meta(self, step: int) -> Meta:
        """Return what was noted beside the state; all processes must ask, in step.

        Raises:
          DamagedCheckpoint: it cannot be read, by one of the processes.
        """
        meta, reason = {}, ""
        try:
            text = (self.directory / str(step) / "meta" / "metadata").read_text()
            meta = json.loads(text)
            meta["checksums"], meta["num_examples"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = first_line(error)
        if reason := next(filter(None, processes.exchange(reason)), ""):
            raise DamagedCheckpoint(f"its notes cannot be read ({reason})")
        return meta

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """Return the state of a step, checked against its checksums.

        Args:
          step: one of `steps`.
          abstract: shapes, types and shardings to restore into; the bank may have
            another number of padding rows than the saved one.

        Raises:
          DamagedCheckpoint: files are missing, cut short or overwritten.
        """
        meta = self.read_meta(step)
        # By itself, as among several each process reads its own part, and Orbax would
        # have those that can wait for ever for one that cannot.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}
        )
        reader = ocp.Checkpointer(
            ocp.StandardCheckpointHandler(multiprocessing_options=alone),
            multiprocessing_options=alone,
        )
        # A bank was all that a state of version 0.1 remembered, under its own name.
        is_old = "memory_bank" in meta["checksums"]
        wanted = _as_old(abstract) if is_old else abstract
        args = ocp.args.StandardRestore(wanted, strict=False)
        reason = ""
        try:
            with _unraisable_silenced():
                path = self.directory.absolute() / str(step) / "state"
                state = reader.restore(path, args=args)
        except Exception as error:  # Orbax and TensorStore raise many types
            if lacks_memory(error):
                raise
            reason = str(error).splitlines()[0][:200]
        if reason := next(filter(None, processes.exchange(reason)), ""):
            raise DamagedCheckpoint(f"Orbax cannot read it: {reason}")
        checksums, _ = jax.device_get(_checksums(state))
        for name, value in _named(checksums).items():
            if meta["checksums"].get(name) != value:
                raise DamagedCheckpoint(f"the checksum of {name} differs")
        return _as_today(state) if is_old else state

    def restore_newest(
        self, abstract: Callable[[Meta], TrainState]
    ) -> tuple[TrainState, Meta] | None:
        """Return the newest whole state and its notes; None where there is none.

        Damaged ones are passed over, loudly, and left where they are.

        Args:
          abstract: gives the shapes, types and shardings to restore into, from the
            notes; it may refuse them with UserError.
        """
        seen = processes.exchange(" ".join(map(str, self.steps)))
        for step in self.steps:
            if not all(str(step) in steps.split() for steps in seen):
                _warn(f"checkpoint {step} is not seen by all processes: passed over")
                continue
            try:
                meta = self.read_meta(step)
                return self.restore(step, abstract(meta)), meta
            except DamagedCheckpoint as damage:
                _warn(f"checkpoint {step} is damaged: {damage}; trying the one before")
        return None

    def set_aside(self, after: int) -> None:
        """Move checkpoints newer than `after` (damaged, all) out of the way."""
        for step in self.steps if processes.is_main() else ():
            if step > after:
                target = self.directory.parent / "damaged" / str(step)
                target.parent.mkdir(exist_ok=True)
                if target.exists():
                    shutil.rmtree(target)
                shutil.move(self.directory / str(step), target)
                _warn(f"damaged checkpoint {step} is now in {target}")
        processes.exchange()  # none looks before they are moved
        self._manager.reload()


@contextmanager
def _disk_errors(step: int | None = None) -> Iterator[None]:
    """Say in one line what keeps Orbax and TensorStore from writing."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        name = "the last checkpoint" if step is None else f"checkpoint {step}"
        raise UserError(
            f"{name} cannot be written: {first_line(error)}; the older ones are "
            "untouched; make room and start again on the same workdir"
        ) from error


@contextmanager
def _unraisable_silenced() -> Iterator[None]:
    """Drop the tracebacks of the reads that Orbax leaves behind when one fails."""
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    finally:
        gc.collect()
        sys.unraisablehook = before


def _warn(message: str) -> None:
    if processes.is_main():
        print(f"warning: {message}", file=sys.stderr, flush=True)


def _as_old(state: TrainState) -> dict[str, Any]:
    if state.memory.keys() != {"bank"}:
        raise UserError(
            "version 0.1 of this program, which knew memory banks alone, wrote these "
            "checkpoints; they are of another objective"
        )
    arrays = {name: getattr(state, name) for name in KEPT_SINCE_0_1}
    return arrays | {"memory_bank": state.memory["bank"]}


def _as_today(arrays: dict[str, Any]) -> TrainState:
    bank = arrays.pop("memory_bank")
    return TrainState(**arrays, memory={"bank": bank})


@jax.jit
def _checksums(state: Any) -> tuple[Any, jax.Array]:
    """Return a checksum of each leaf, and whether all are finite.

    Each is a sum of the array's words (16 bits of bfloat16, else 32), weighted by
    place, modulo 2^32: it does not depend on how the array is split over devices, nor
    on zero rows at its end.
    """

    def checksum(x: jax.Array) -> jax.Array:
        word = jnp.uint16 if x.dtype == jnp.bfloat16 else jnp.uint32
        words = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32).reshape(-1)
        place = jax.lax.iota(jnp.uint32, len(words))
        return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)

    finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(state)]).all()
    return jax.tree.map(checksum, state), finite


def _named(checksums: Any) -> dict[str, int]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): int(value)
        for path, value in jax.tree.leaves_with_path(checksums)
    }
