"""Runs of a sweep, each in processes of its own, one after another."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eir_jax.experiments.sweep import TASKS, Planned, is_finished, result_of

# Of a sweep that is not finished: a scheduler, whose SIGTERM is, is to start it again.
EXIT_CODES: dict[int, int] = {
    signal.SIGINT: 130,
    signal.SIGTERM: os.EX_TEMPFAIL,
    signal.SIGHUP: 129,
}
# On Linux: become the command, which gets SIGTERM (15) where the sweep is killed. (A
# preexec_fn would do that too, but not where threads have been started.)
PR_SET_PDEATHSIG = 1


END_WITH_PARENT = (
    f"import ctypes, os, sys; ctypes.CDLL(None).prctl({PR_SET_PDEATHSIG}, 15); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def run_all(
    runs: list[Planned], tasks: tuple[str, ...], requests: list[int]
) -> dict[str, str]:
    """Train and evaluate what is not finished; return {run: why it failed}.

    Args:
      runs: in their order.
      tasks: of the evaluation; none: all that the data allows.
      requests: signals; with the first one the run at hand is saved, and no more begun.
    """
    failed = {}
    for number, run in enumerate(runs, 1):
        name = f"{run.name}, seed {run.seed}"
        place = f"[{number}/{len(runs)}] {name}:"
        if is_finished(run, tasks or TASKS):
            print(f"{place} finished before, {result_of(run)}", flush=True)
            continue
        print(f"{place} running, what it prints is in {run.log}", flush=True)
        began = time.monotonic()
        reason = _train_and_evaluate(run, tasks, requests)
        if requests:
            break
        if reason:
            failed[name] = reason
            print(f"{place} failed: {reason}", flush=True)
        else:
            minutes, seconds = divmod(round(time.monotonic() - began), 60)
            took = f"{minutes}:{seconds:02} min"
            print(f"{place} finished after {took}, {result_of(run)}", flush=True)
    return failed


def _train_and_evaluate(
    run: Planned, tasks: tuple[str, ...], requests: list[int]
) -> str:
    """Return why it failed, '' where it did not.

    In processes of their own: a crash takes nothing with it, and memory is given back.
    """
    try:
        run.log.parent.mkdir(parents=True, exist_ok=True)
        run.log.touch()
    except OSError as error:
        return f"{run.log} cannot be written: {error}"
    evaluate = [*_module("evaluate"), f"--workdir={run.workdir}"]
    if tasks:
        evaluate.append(f"--tasks={','.join(tasks)}")
    for command in (command_of("main", run), evaluate):
        status = _call(command, run.log, requests)
        if requests:
            return "stopped"
        if status == EXIT_CODES[signal.SIGTERM]:
            return f"it was stopped (see {run.log}); start again to go on"
        if status:
            return f"{_last_line(run.log)} (exit status {status}, see {run.log})"
    if not is_finished(run, tasks or TASKS):
        return f"it ended before its last step (see {run.log}); start again to go on"
    return ""


def _call(command: list[str], log: Path, requests: list[int]) -> int:
    """Run a command, all it prints going to `log`; return its status.

    It has a session of its own, so that Ctrl-C reaches it by `requests` alone: as
    SIGTERM, on which training saves and ends. On Linux it gets that too where the sweep
    is killed, so that no run goes on without it.
    """
    if sys.platform == "linux":
        command = [sys.executable, "-c", END_WITH_PARENT, *command]
    with log.open("a") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        told = 0
        while process.poll() is None:
            if told < len(requests):
                process.terminate()
                told += 1
            time.sleep(0.1)
    return process.returncode


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collect the signals that stop, for the run at hand to be saved.

    What is ignored, as SIGHUP under nohup, stays so.
    """
    requests: list[int] = []
    numbers = [
        number for number in EXIT_CODES if signal.getsignal(number) != signal.SIG_IGN
    ]
    before = {n: signal.signal(n, lambda n, _: requests.append(n)) for n in numbers}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _module(name: str) -> list[str]:
    return [sys.executable, "-m", f"eir_jax.{name}"]


def command_of(module: str, run: Planned) -> list[str]:
    """Return the command that trains ('main') a run of the sweep."""
    return [*_module(module), *run.flags, f"--workdir={run.workdir}"]


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
    return lines[-1].removeprefix("error: ")[:300]
