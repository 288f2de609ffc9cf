"""The folder of a run: one run at a time, one set of settings."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ml_collections import ConfigDict

from eir_jax.system import files, processes
from eir_jax.system.config import flatten, read_config
from eir_jax.system.errors import UserError

# These decide what is recorded alone.
RECORDING_KEYS = (
    *("paper.", "evaluation_batch_size", "log_every_steps", "eval_every_epochs"),
    *("checkpoint_every_epochs", "keep_checkpoints", "profile_steps"),
    "progress_every_seconds",
)
# A run may go on with other values of these: they decide what is recorded, where the
# data lies and when training ends, not what any step computes. So may num_epochs while
# the learning rate does not follow it: of a cosine, or of several rounds, it does.
FREE_KEYS = (
    *RECORDING_KEYS,
    *("num_rounds", "bank.form", "skip_not_finite"),
    *("data.path", "data.expected", "data.placement"),
    *("knn.", "retrieval.", "linear."),
)


@contextmanager
def own(workdir: Path) -> Iterator[None]:
    """Make `workdir` if need be, and hold it as the only run that writes there.

    The lock is the kernel's: it ends with the process, however that ends. Of several
    processes the first one holds it.

    Raises:
      UserError: it cannot be written, has the name of a file, or another run holds it.
    """
    try:
        files.check_folder_name(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / ".lock").open("a+")
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be written: {error}") from None
    with lock:
        if not processes.is_main():
            yield
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise UserError(
                f"workdir {workdir} is in use by {holder}; wait for it, end it, or "
                "give another --workdir"
            ) from None
        except OSError as error:
            raise UserError(
                f"workdir {workdir} lies on a file system without locks ({error}); "
                "give another --workdir"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        yield


def check_settings(config: ConfigDict, workdir: Path) -> None:
    """Refuse to go on with settings that would change what a step computes.

    Where there is no checkpoint nothing goes on: any settings will do.

    Raises:
      UserError: `workdir` was started with others; which ones, and the way out.
    """
    if not (workdir / "config.json").exists() or not _any_checkpoint(workdir):
        return
    old, new = flatten(read_config(workdir / "config.json")), flatten(config)
    one_round = old["num_rounds"] == new["num_rounds"] == 1
    by_epochs = new["optimizer.schedule"] == "milestones"
    free = (*FREE_KEYS, "num_epochs") if one_round and by_epochs else FREE_KEYS
    different = [
        f"{key}: {old.get(key)} there, {new.get(key)} here"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(free)
    ]
    if different:
        raise UserError(
            f"workdir {workdir} is of another config ({'; '.join(different)}); "
            "give another --workdir, or the settings it was started with"
        )


def _any_checkpoint(workdir: Path) -> bool:
    folder = workdir / "checkpoints"
    return folder.is_dir() and any(x.name.isdecimal() for x in folder.iterdir())
