"""What a run ran on: `run.json` in its workdir, a record of each start."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eir_jax.system import processes
from eir_jax.system.errors import UserError
from eir_jax.system.files import replacing, to_json

Session = dict[str, Any]
KEYS = (
    *("command", "commit", "jax", "device", "num_devices", "num_processes"),
    *("machine", "from_step", "to_step", "seconds"),
)
ROOT = Path(__file__).parents[2]


class RunRecord:
    """Note, at each checkpoint, how far this start of a run has come, and how long.

    A kill loses the seconds since the last checkpoint, as it does the steps. Of several
    processes the first one writes.

    Args:
      workdir: an existing folder; what it noted before stays.
      step: the step that training goes on from.
      began: `time.monotonic()` when this start did.
    """

    def __init__(self, workdir: Path, step: int, began: float):
        self._path = workdir / "run.json"
        self._before = read_sessions(workdir)
        self._began = began
        import jax  # here, as those who read records need none

        devices = jax.devices()
        self._session: Session = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["python", *sys.orig_argv[1:]]),
            "commit": commit(),
            "jax": jax.__version__,
            "python": platform.python_version(),
            "device": devices[0].device_kind,
            "num_devices": len(devices),
            "num_processes": processes.count(),
            "machine": f"{os.cpu_count()} CPU cores ({platform.machine()})",
            "from_step": step,
        }

    def write(self, step: int) -> None:
        """Note that `step` is reached and saved."""
        if not processes.is_main():
            return
        self._session["to_step"] = step
        self._session["seconds"] = round(time.monotonic() - self._began, 1)
        sessions = [*self._before, self._session]
        with replacing(self._path) as part:
            part.write_text(to_json({"sessions": sessions}, indent=2) + "\n")


def read_sessions(workdir: Path) -> list[Session]:
    """Return the starts of a run, oldest first; none of a run without `run.json`.

    Raises:
      UserError: the file is none of ours.
    """
    path = workdir / "run.json"
    if not path.exists():
        return []
    try:
        sessions = list(json.loads(path.read_text())["sessions"])
        for session in sessions:
            [session[key] for key in KEYS]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}: {error}); move it away to "
            "go on without it"
        ) from None
    return sessions


def made_by(workdir: Path) -> dict[str, str]:
    """Return what made a run, and what evaluates it now: {what: words}.

    Raises:
      UserError: `run.json` is none of ours.
    """
    import jax

    made = {}
    if sessions := read_sessions(workdir):
        last = sessions[-1]
        device = f"{last['num_devices']} x {last['device']}"
        made = {
            "trained by": last["command"],
            "trained on": f"{device}, JAX {last['jax']}",
            "trained from": last.get("started", ""),
            "steps of that start": f"{last['from_step']:,} to {last['to_step']:,}",
            "commit, training": last["commit"],
        }
    devices = jax.devices()
    return made | {
        "evaluated by": shlex.join(["python", *sys.orig_argv[1:]]),
        "evaluated on": f"{len(devices)} x {devices[0].device_kind}, "
        f"JAX {jax.__version__}",
        "evaluated at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit, evaluation": commit(),
    }


def commit() -> str:
    """Return the commit of this checkout, with '-dirty' if changed; else ''."""
    if not (ROOT / ".git").exists():
        return ""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or not its owner
        return ""
    return found.stdout.strip()
